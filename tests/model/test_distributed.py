"""Two processes with half a batch each learn what one learns from the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from gloo_workers import ANSWERS, LOSSES, own_pairs, run_losses, work

from transformers_upv2.model.distributed import gather_with_gradient, rank, world_size


def test_one_process_gathers_nothing():
    features = torch.randn(2, 3)
    assert gather_with_gradient(features) is features
    assert (rank(), world_size()) == (0, 1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = Path(tmp_path_factory.mktemp("gloo"))
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{process}.pt") for process in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_equal_those_of_one_process(results, name):
    loss, gradient = run_losses()[name]
    for result in results:
        torch.testing.assert_close(result["losses"][name][0], loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result["losses"][name][1], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_without_gathering_a_process_compares_its_own_pairs(results):
    for process, result in enumerate(results):
        torch.testing.assert_close(result["own_pairs"], own_pairs(process))
    assert not torch.equal(results[0]["own_pairs"][0], results[1]["own_pairs"][0])


@pytest.mark.slow
def test_gathering_is_in_the_order_of_ranks_and_sums_gradients(results):
    for process, result in enumerate(results):
        values, gradient = result["gathered"]
        assert values[:, 0].tolist() == [1, 1, 2, 2]
        assert torch.equal(gradient, torch.arange(12.0).view(4, 3)[2 * process : 2 * process + 2] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 5])
def test_all_processes_choose_the_same_vocabulary_candidates(results, seed):
    """Or a process's share of the encoding would be of other words than its logits."""
    (ids, correction), (other_ids, other_correction) = (result["candidates"][seed] for result in results)
    assert torch.equal(ids, other_ids)
    assert torch.equal(correction, other_correction)
    assert set(ANSWERS.tolist()) <= set(ids.tolist())
    assert len(ids) == len(set(ANSWERS.tolist())) + 8
