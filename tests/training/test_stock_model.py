"""The example script: a stock T5 learns three tasks, though one of them is a thousand times as loud."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_stock_model.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def losses(trainer, task):
    return [row[f"loss/{task}"] for row in trainer.state.log_history if f"loss/{task}" in row]


def test_every_task_of_a_stock_model_learns(tmp_path, script):
    trainer, right = script["train"](tmp_path, steps=60)
    assert set(right) == {"copy", "reverse", "sort"}
    for task in right:
        assert losses(trainer, task)[-1] < 0.9 * losses(trainer, task)[0]
        assert trainer.state.log_history[-1][f"steps/{task}"] > 0


@pytest.mark.slow
def test_the_example_gets_most_rows_right(tmp_path, script):
    _, right = script["train"](tmp_path, steps=1500)
    assert min(right.values()) > 0.5
