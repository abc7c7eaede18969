"""Checkpoint files are read without running code, and all that is no weight is named."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transformers_upv2.model.pretrained_weights import copy_tensors, read_checkpoint

TENSORS = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


@pytest.mark.parametrize("entry", ["model", "state_dict", None])
def test_tensors_alone_or_in_an_entry(tmp_path, entry):
    content = TENSORS if entry is None else {entry: TENSORS | {"step": 3}, "iteration": 9, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "file.pth")
    tensors, others = read_checkpoint(tmp_path / "file.pth")
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert others == ([] if entry is None else ["iteration", "optimizer", "step"])


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "file.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "file.safetensors")[0]["weight"], TENSORS["weight"])


def test_arrays_and_code_are_refused(tmp_path):
    message = r"must be a file of plain tensors .* got .*\.pkl: .* A pickle of NumPy arrays \(.pkl"
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": {"weight": np.ones(2)}}))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "zoo.pkl")
    torch.save({"model": TENSORS, "code": nn.Linear(1, 1)}, tmp_path / "code.pkl")
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / "code.pkl")


@pytest.mark.parametrize("content", [{"model": {}, "iteration": 3}, [torch.ones(2)], 3])
def test_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"must hold named tensors, alone or under one of .* got "):
        read_checkpoint(tmp_path / "file.pth")


@pytest.mark.parametrize("prefix", ["", "module.", "_backbone.", "module.encoder_q."])
def test_tensors_find_their_places_behind_a_prefix(prefix):
    module = nn.Linear(3, 2)
    copied = copy_tensors(
        module,
        {prefix + name: value for name, value in TENSORS.items()} | {"fc.w": torch.ones(1)},
        "backbone",
        "a file",
    )
    assert torch.equal(module.weight.data, TENSORS["weight"])
    assert (copied.names, copied.left_out, copied.renamed) == (["weight", "bias"], ["fc.w"], prefix != "")


def test_a_long_list_of_misfits_is_cut():
    module = nn.Sequential(*(nn.Linear(3, 2) for _ in range(3)))
    tensors = {name: torch.zeros(7) for name in module.state_dict()}
    with pytest.raises(ValueError, match=r"got 6 tensors of other shapes from a file: `0.weight` .* and 3 more"):
        copy_tensors(module, tensors, "backbone", "a file")
