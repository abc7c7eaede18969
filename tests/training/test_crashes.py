"""What a run survives: a full disk, a dead loader worker, kills at any moment; streams go on where they were."""

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from multitask_toys import TASKS, ToyDataset, make_trainer, same_weights, streamed_datasets
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from transformers_upv2.training.checkpoints import newest_checkpoint


class FillDisk(TrainerCallback):
    """From some update on, no file may be longer than so many bytes."""

    def __init__(self, step, limit):
        self.step, self.limit = step, limit

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))


@pytest.mark.parametrize("limit", [100, 3000])  # not even the weights, or not the optimizer's state
def test_a_full_disk_stops_the_run_with_what_to_do(tmp_path, limit):
    trainer = make_trainer(tmp_path, callbacks=[FillDisk(7, limit)], logging_strategy="no")
    try:
        with pytest.raises(RuntimeError, match=r"step 8 must be written to .* GiB are free.*Make room.*checkpoint-4"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert get_last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-4")
    make_trainer(tmp_path).train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", save_strategy="no")
    whole.train()
    assert same_weights(load_file(tmp_path / "checkpoint-12" / "model.safetensors"), whole.model.state_dict())


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "file_sizes.json", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, file, caplog):
    trainer = make_trainer(tmp_path)
    trainer.train()
    newest = tmp_path / "checkpoint-12" / file
    if file == "optimizer.pt":
        newest.write_bytes(newest.read_bytes()[:-1])
    else:
        newest.unlink()
    if file == "file_sizes.json":  # as older runs have written them
        assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
        return
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert f"checkpoint-12 is passed over, since these of its files are missing or cut off: ['{file}']" in caplog.text
    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.model.calls == trainer.model.calls[16:]
    assert same_weights(resumed.model.state_dict(), trainer.model.state_dict())


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    make_trainer(tmp_path, save_steps=12).train()
    (tmp_path / "checkpoint-12" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"must be whole, got 1 that lack files. Remove them to begin anew"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)


class DeadlyDataset(ToyDataset):
    """Reading one of its examples kills the reader."""

    def __getitem__(self, index):
        if index == 30 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_dies_stops_the_run_with_what_to_do(tmp_path):
    datasets = {task: DeadlyDataset(task) for task in TASKS}
    trainer = make_trainer(tmp_path, datasets=datasets, num_workers={"a": 1}, save_strategy="no", max_steps=60)
    with pytest.raises(
        RuntimeError, match=r"(?s)must live until the end, got: DataLoader worker.*lower `num_workers`"
    ):
        trainer.train()
    subprocess.run([sys.executable, "-c", ""], check=True)  # the end of another process does not raise it again


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_a_batch_over_is_told_alike(tmp_path, error):
    def hang_up(_):
        raise error

    trainer = make_trainer(tmp_path, save_strategy="no")
    trainer.get_train_dataloader = partial(hang_up, None)
    with pytest.raises(
        RuntimeError, match=r"(?s)must live until the end, got: DataLoader worker exited unexpectedly.*resume"
    ):
        trainer.train()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_streams_resume_bit_equal(tmp_path, num_workers):
    """The checkpoint lies in the second epoch of a stream, with batches loaded ahead of it."""
    options = {"num_workers": {"b": num_workers, "c": num_workers}, "per_device_train_batch_size": 7}
    options |= {"sampling_probabilities": {"a": 0.1, "b": 0.5, "c": 0.4}, "max_steps": 24, "save_steps": 12}
    whole = make_trainer(tmp_path, datasets=streamed_datasets(), **options)
    whole.train()
    resumed = make_trainer(tmp_path, datasets=streamed_datasets(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert resumed.model.calls == whole.model.calls[24:]
    drawn = [index for task, indices, _ in whole.model.calls for index in indices if task == "b"]
    assert set(drawn) == set(range(50))
    (tmp_path / "checkpoint-12" / "streams-0-of-1.pt").unlink()
    with pytest.raises(ValueError, match=r"streams-0-of-1.pt, none found for \['b', 'c'\]"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_killed_at_random_moments_end_bit_equal(tmp_path, processes):
    script = Path(__file__).with_name("crash_toy.py")
    command = [sys.executable, str(script), str(tmp_path / "runs"), str(processes), "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "report.json").read_text())["kills"] >= 1
    for rank in range(processes):
        whole, killed = (torch.load(tmp_path / "runs" / n / f"final-{rank}.pt") for n in ("whole", "killed"))
        assert same_weights(whole, killed)
    names = {path.name for path in (tmp_path / "runs" / "killed").iterdir()}
    assert {"checkpoint-12", "checkpoint-11"} <= names
    assert "_incomplete" not in names
