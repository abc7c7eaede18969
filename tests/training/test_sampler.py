"""Unmixed sampling: pure, of the right frequencies, and without repeated samples."""

import math
from collections import Counter
from itertools import islice, pairwise

import pytest

from transformers_upv2.training.sampler import DrawSampler, UnmixedTaskSampler, WeightedDrawSampler

PROBABILITIES = {"detection": 0.35, "retrieval": 0.4, "captioning": 0.2, "language_modeling": 0.05}


@pytest.mark.parametrize("seed", range(5))
def test_frequencies_lie_within_three_sigma(seed):
    steps = 20_000
    sampler = UnmixedTaskSampler(PROBABILITIES, seed)
    counts = Counter(sampler.task_at(step) for step in range(steps))
    for task, probability in PROBABILITIES.items():
        sigma = math.sqrt(steps * probability * (1 - probability))
        assert abs(counts[task] - steps * probability) < 3 * sigma
    assert sampler.counts_before(steps) == counts


def test_the_task_is_a_function_of_seed_and_step():
    forward = UnmixedTaskSampler(PROBABILITIES, 3)
    sequence = [forward.task_at(step) for step in range(3000)]
    backward = UnmixedTaskSampler(PROBABILITIES, 3)
    assert [backward.task_at(step) for step in reversed(range(3000))] == sequence[::-1]
    other = UnmixedTaskSampler(PROBABILITIES, 4)
    assert [other.task_at(step) for step in range(3000)] != sequence


def test_neighboring_steps_are_independent():
    sampler = UnmixedTaskSampler({"a": 0.5, "b": 0.5}, 0)
    tasks = [sampler.task_at(step) for step in range(20_001)]
    same = sum(one == other for one, other in pairwise(tasks))
    assert abs(same - 10_000) < 3 * math.sqrt(5000)


def test_draw_numbers_count_the_events_of_a_task():
    sampler = UnmixedTaskSampler(PROBABILITIES, 1)
    counts = Counter()
    numbers = []
    for step in range(2500):
        task = sampler.task_at(step)
        numbers.append(counts[task])
        counts[task] += 1
    fresh = UnmixedTaskSampler(PROBABILITIES, 1)
    assert [fresh.draw_number(step) for step in reversed(range(2500))] == numbers[::-1]


def test_probabilities_are_relative():
    one, other = UnmixedTaskSampler({"a": 3, "b": 1}), UnmixedTaskSampler({"a": 0.75, "b": 0.25})
    assert one.sampling_probabilities == {"a": 0.75, "b": 0.25}
    assert [one.task_at(s) for s in range(99)] == [other.task_at(s) for s in range(99)]


def test_bad_probabilities_are_named():
    with pytest.raises(ValueError, match="got 0 for task 'b'"):
        UnmixedTaskSampler({"a": 1.0, "b": 0})
    with pytest.raises(ValueError, match="at least one task"):
        UnmixedTaskSampler({})


def draws(sampler, num_batches):
    return [item for batch in islice(iter(sampler), num_batches) for item in batch]


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (13, 4), (4, 4), (7, 10)])
def test_every_sample_is_drawn_once_an_epoch(size, batch_size):
    items = draws(DrawSampler(size, batch_size, seed=2, task="a"), 3 * size)
    assert [draw for _, draw in items] == list(range(3 * size * batch_size))
    indices = [index for index, _ in items]
    epochs = [indices[start : start + size] for start in range(0, len(indices), size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("size", [24, 25, 31, 100])
def test_no_sample_is_drawn_twice_in_a_global_batch(size):
    ranks = [DrawSampler(size, 4, task="a", rank=rank, world_size=2) for rank in range(2)]
    for batches in islice(zip(*ranks, strict=True), 200):
        indices = [index for batch in batches for index, _ in batch]
        assert len(set(indices)) == 8


def test_two_ranks_draw_what_one_draws_with_twice_the_batch():
    whole = list(islice(DrawSampler(30, 6, seed=5, task="a"), 20))
    halves = [DrawSampler(30, 3, seed=5, task="a", rank=rank, world_size=2) for rank in range(2)]
    joined = [one + other for one, other in islice(zip(*halves, strict=True), 20)]
    assert joined == whole


def test_any_batch_can_come_first():
    whole = list(islice(DrawSampler(30, 4, task="a"), 20))
    sampler = DrawSampler(30, 4, task="a")
    sampler.first_batch = 13
    assert list(islice(sampler, 7)) == whole[13:]


SIZES, SHARES = (40, 100), (0.5, 1.5)


def weighted(batch_size=4, rank=0, world_size=1, seed=0):
    return WeightedDrawSampler(SIZES, SHARES, batch_size, seed, "a", rank, world_size)


@pytest.mark.parametrize("seed", range(3))
def test_several_data_sets_are_drawn_by_weight_and_each_in_epochs(seed):
    items = draws(weighted(seed=seed), 1000)
    assert [draw for _, draw in items] == list(range(4000))
    small = [index for index, _ in items if index < 40]
    large = [index - 40 for index, _ in items if index >= 40]
    assert abs(len(small) - 1000) < 3 * math.sqrt(4000 * 0.25 * 0.75)
    for drawn, size in ((small, 40), (large, 100)):
        assert sorted(drawn[:size]) == sorted(drawn[size : 2 * size]) == list(range(size))
        assert drawn[:size] != drawn[size : 2 * size]


def test_no_sample_of_several_data_sets_is_drawn_twice_in_a_global_batch():
    """Each has its own epochs, which end somewhere in a batch."""
    ranks = [weighted(rank=rank, world_size=2) for rank in range(2)]
    for batches in islice(zip(*ranks, strict=True), 500):
        assert len({index for batch in batches for index, _ in batch}) == 8


def test_two_ranks_draw_from_several_data_sets_what_one_draws():
    whole = list(islice(weighted(6), 20))
    halves = [weighted(3, rank, 2) for rank in range(2)]
    assert [one + other for one, other in islice(zip(*halves, strict=True), 20)] == whole


def test_tasks_and_seeds_have_their_own_order():
    orders = {tuple(draws(DrawSampler(30, 30, seed, task), 1)) for seed in (0, 1) for task in "ab"}
    assert len(orders) == 4


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="'a' must not be empty"):
        DrawSampler(0, 4, task="a")
    with pytest.raises(ValueError, match="task 'a' must be positive, got 0"):
        DrawSampler(4, 0, task="a")
