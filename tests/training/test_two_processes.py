"""The whole model on two processes: the loss and the gradient of one process with the double batch.

Retrieval gathers its negatives, captions and masked words share the encoding of the vocabulary.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from two_process_model import TASKS, losses_and_gradients, work


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, (str(folder),), nprocs=2)
    return losses_and_gradients(), [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_learn_what_one_learns(results, task):
    loss, gradient = results[0][task]
    assert max(value.abs().max() for value in gradient.values()) > 1e-3
    for result in results[1]:
        shared_loss, shared_gradient = result[task]
        torch.testing.assert_close(shared_loss, loss, rtol=1e-5, atol=1e-5)
        assert set(shared_gradient) == set(gradient)
        for name, value in gradient.items():
            torch.testing.assert_close(shared_gradient[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_tasks_that_use_different_parameters_train_with_gradient_checkpointing(tmp_path):
    script = Path(__file__).with_name("checkpointing_toy.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    paths = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
