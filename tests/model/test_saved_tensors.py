"""Damaged files are named, with what writes them."""

import pytest
import torch
from safetensors.torch import save_file

from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.image_index import ImageIndex
from transformers_upv2.model.saved_tensors import open_tensors


@pytest.fixture
def whole(tmp_path):
    save_file({"x": torch.arange(8.0)}, tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


def test_a_whole_file_is_read(whole):
    with open_tensors(whole, "save") as file:
        assert torch.equal(file.get_tensor("x"), torch.arange(8.0))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-4], lambda data: b"\xff\xd8\xff" * 9])
def test_damaged_files_are_named(whole, damage, session_model):
    whole.write_bytes(damage(whole.read_bytes()))
    for load, writer in ((ImageIndex.load, "ImageIndex.save"), (ImageEncoding.load, "ImageEncoding.save")):
        with pytest.raises(ValueError, match=rf"written by `{writer}`, '.*whole.safetensors' is damaged .* again"):
            load(whole)
    cache = session_model.model.candidate_cache
    with pytest.raises(ValueError, match=r"file written by `save_candidates`, '.*whole.safetensors' is damaged"):
        cache.load(session_model.model, whole)


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="something else"):
        open_tensors(tmp_path, "save")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_tensors(tmp_path / "nowhere", "save")
