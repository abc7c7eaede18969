"""The log keeps tasks apart, and the progress bar shows their losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from multitask_toys import TASKS, make_trainer

from transformers_upv2.training.callbacks import TaskLogCallback, describe_replaced


def test_losses_are_averaged_per_task_since_the_last_call():
    log = TaskLogCallback()
    log.add_losses("a", torch.tensor(1.0), {"loss_box": torch.tensor(4.0)})
    log.add_losses("a", torch.tensor(3.0), {})
    log.add_losses("b", torch.tensor(7.0), {})
    assert log.collect() == {"loss/a": 2.0, "loss/a/box": 4.0, "loss/b": 7.0}
    assert log.collect() == {}


def test_norms_are_averaged_since_the_last_call():
    log = TaskLogCallback()
    assert log.collect_steps({"a": {"steps": 2, "skipped_steps": 0, "norm_sum": 8.0}}) == {
        "steps/a": 2,
        "grad_norm/a": 4.0,
    }
    later = {"a": {"steps": 3, "skipped_steps": 1, "norm_sum": 9.0}}
    assert log.collect_steps(later) == {"steps/a": 3, "skipped_steps/a": 1, "grad_norm/a": 1.0}
    assert log.collect_steps(later, with_norms=False) == {"steps/a": 3, "skipped_steps/a": 1}


def test_a_long_list_of_bad_samples_is_cut():
    replaced = {f"a/{i}": ["a", "broken", 2] for i in range(30)}
    text = describe_replaced(replaced)
    assert text.startswith("30 bad samples")
    assert "a/0 (2 times): broken" in text
    assert text.endswith("and 10 more")


def test_the_progress_bar_shows_the_loss_of_every_task(tmp_path, capsys):
    make_trainer(tmp_path, disable_tqdm=False, save_strategy="no").train()
    bar = capsys.readouterr().err
    assert "12/12" in bar
    assert all(f"{task}=" in bar for task in "abc")
    assert "square" not in bar


@pytest.mark.parametrize("sampling", ["unmixed", "mixed"])
def test_samples_and_time_shares_are_logged_for_every_task(tmp_path, sampling):
    arguments = {} if sampling == "unmixed" else {"sampling": "mixed", "optimizer": "adamw"}
    trainer = make_trainer(tmp_path, save_strategy="no", batch_sizes={"a": 3}, logging_steps=12, **arguments)
    trainer.train()
    logs = trainer.state.log_history[0]
    calls = [(task, len(index)) for task, index, _ in trainer.model.calls]
    for task in TASKS:
        assert logs[f"samples/{task}"] == sum(number for name, number in calls if name == task) > 0
        assert 0 < logs[f"time_share/{task}"] < 1
    assert sum(logs[f"time_share/{task}"] for task in TASKS) == pytest.approx(1)
    assert "learning_rate" in logs


@pytest.mark.parametrize("sampling", ["unmixed", "mixed"])
def test_the_speed_counts_the_samples_of_this_run(tmp_path, sampling):
    """Of batches of different sizes, and without those before a resume."""
    arguments = {} if sampling == "unmixed" else {"sampling": "mixed", "optimizer": "adamw"}
    options = {"batch_sizes": {"a": 1, "b": 2, "c": 16}, "per_device_train_batch_size": 8, **arguments}
    make_trainer(tmp_path, max_steps=4, **options).train()
    trainer = make_trainer(tmp_path, **options)
    speed = trainer.train(resume_from_checkpoint=True).metrics
    num_samples = sum(len(index) for _, index, _ in trainer.model.calls)
    assert speed["train_samples_per_second"] * speed["train_runtime"] == pytest.approx(num_samples, rel=1e-2)


NAMES = ("loss", "samples", "time_share", "steps", "grad_norm")


def numbers_of(history):
    """Return what a run noted of every task, by the names that transformers gives to them."""
    names = ["learning_rate", *(f"loss/{task}/square" for task in TASKS)]
    names += [f"{name}/{task}" for name in NAMES for task in TASKS]
    return {f"train/{name}": [row[name] for row in history if name in row] for name in names}


def test_tensorboard_gets_the_numbers_of_every_task(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = make_trainer(tmp_path, save_strategy="no", report_to=["tensorboard"])
    trainer.train()
    (file,) = (tmp_path / "logs").rglob("events.*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    for name, values in numbers_of(trainer.state.log_history).items():
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)
        assert len(values) >= 2


@pytest.mark.slow
def test_trackio_gets_the_numbers_of_every_task(tmp_path):
    """In processes of their own, for trackio reads its folder when it is imported."""
    pytest.importorskip("trackio")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    arguments = {"report_to": ["trackio"], "project": "toys", "run_name": "first", "save_steps": 12}
    options = json.dumps({"folder": str(tmp_path), "arguments": arguments})
    script = Path(__file__).with_name("multitask_toys.py")
    subprocess.run([sys.executable, str(script), options], env=environment, check=True, capture_output=True)
    state = json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())
    command = [sys.executable, "-c", READ_TRACKIO, "toys", "first"]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    for name, values in numbers_of(state["log_history"]).items():
        assert [row[name] for row in rows if name in row][: len(values)] == pytest.approx(values)
        assert len(values) >= 2


READ_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs(*sys.argv[1:])))
"""
