"""The log keeps tasks apart, and the progress bar shows their losses."""

import torch
from multitask_toys import make_trainer

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
