"""Batches by number, in any order, with randomness that belongs to the draw."""

import torch
from multitask_toys import ToyDataset
from torch.utils.data import default_collate

from transformers_upv2.training.loader import JoinedBatches, SeededDataset, TaskBatches
from transformers_upv2.training.sampler import DrawSampler, UnmixedTaskSampler


def task_batches(task="a"):
    dataset = SeededDataset(ToyDataset(task), 0, task)
    return TaskBatches(dataset, DrawSampler(50, 4, task=task), default_collate, {})


def test_a_batch_depends_on_its_number_alone():
    forward = task_batches()
    batches = [forward[number] for number in range(30)]
    backward = task_batches()
    for number in (29, 13, 14, 0):
        assert torch.equal(backward[number]["x"], batches[number]["x"])
    assert not torch.equal(batches[0]["x"], batches[13]["x"])


def test_a_sample_has_new_noise_in_every_draw():
    dataset = SeededDataset(ToyDataset("a"), 0, "a")
    assert torch.equal(dataset[3, 7]["x"], dataset[3, 7]["x"])
    assert not torch.equal(dataset[3, 7]["x"], dataset[3, 57]["x"])


def test_updates_are_joined_without_gaps():
    sampler = UnmixedTaskSampler({"a": 0.6, "b": 0.4})
    joined = JoinedBatches({task: task_batches(task) for task in "ab"}, sampler, 20, accumulation=2)
    assert len(joined) == 40
    expected = {task: iter([task_batches(task)[n] for n in range(40)]) for task in "ab"}
    for position in range(40):
        item = joined[position]
        ((task, batch),) = item["batches"].items()
        assert item["position"] == position
        assert task == sampler.task_at(position // 2)
        assert torch.equal(batch["x"], next(expected[task])["x"])


def test_mixed_updates_have_a_batch_of_every_task():
    joined = JoinedBatches({task: task_batches(task) for task in "ab"}, None, 5)
    for position in range(5):
        batches = joined[position]["batches"]
        assert list(batches) == ["a", "b"]
        assert torch.equal(batches["b"]["x"], task_batches("b")[position]["x"])
