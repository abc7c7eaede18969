"""The log keeps tasks apart, and the progress bar shows their losses."""

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


def test_tensorboard_gets_the_numbers_of_every_task(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer = make_trainer(tmp_path, save_strategy="no", report_to=["tensorboard"])
    trainer.train()
    (file,) = (tmp_path / "logs").rglob("events.*")
    events = accumulator.EventAccumulator(str(file))
    events.Reload()
    for task in TASKS:
        for name in ("loss", "samples", "time_share", "steps", "grad_norm"):
            assert events.Scalars(f"train/{name}/{task}")
        assert events.Scalars(f"train/loss/{task}/square")
    assert events.Scalars("train/learning_rate")
