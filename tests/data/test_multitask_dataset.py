from zlib import crc32

import numpy as np
import pytest
from torch.utils.data import DataLoader

from transformers_upv2.data.examples import DataError
from transformers_upv2.data.multitask_dataset import TaskDataset, WeightedConcat


class Numbers:
    """Examples that are their own index; some are bad."""

    def __init__(self, size, bad=(), name="n"):
        self.size, self.bad, self.name = size, set(bad), name

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise DataError(f"{self.name}{index} is bad")
        return {"value": index, "name": self.name}


def add_noise(example, rng):
    return {**example, "noise": rng.random()}


def first(batch):
    return batch


def test_an_example_is_a_function_of_index_and_draw():
    dataset = TaskDataset(Numbers(10), "detection", 7, add_noise)
    example = dataset[3, 12]
    assert example == TaskDataset(Numbers(10), "detection", 7, add_noise)[3, 12]
    assert (example["value"], example["replaced"]) == (3, [])
    assert dataset[4] == dataset[4, 4]
    others = [
        dataset[3, 13],
        TaskDataset(Numbers(10), "detection", 8, add_noise)[3, 12],
        TaskDataset(Numbers(10), "retrieval", 7, add_noise)[3, 12],
    ]
    for other in others:
        assert other["noise"] != example["noise"]
        assert other["rng_seed"] != example["rng_seed"]
    rng = np.random.default_rng([7, crc32(b"detection"), 12])
    assert example["rng_seed"] == int(rng.integers(2**63))
    assert example["noise"] == rng.random()


def test_bad_samples_are_replaced_the_same_way_every_time():
    dataset = TaskDataset(Numbers(10, bad=[3, 4, 5, 6, 7, 8]), "captioning", 0)
    example = dataset[3, 100]
    assert example["replaced"][0] == (3, "n3 is bad")
    assert example["value"] in {0, 1, 2, 9}
    resumed = TaskDataset(Numbers(10, bad=[3, 4, 5, 6, 7, 8]), "captioning", 0)
    again = resumed[3, 555]
    assert (again["value"], again["replaced"]) == (example["value"], example["replaced"])
    assert dict(dataset.bad_samples) == dict(example["replaced"])
    values = {dataset[index, 0]["value"] for index in range(3, 9)}
    assert len(values) > 1


def test_too_many_bad_samples_stop_with_the_list():
    dataset = TaskDataset(Numbers(10, bad=[2, 5]), "captioning", 0, max_bad_samples=1)
    dataset[2]
    dataset[2, 77]
    with pytest.raises(
        DataError,
        match=r"(?s)Task 'captioning' .* `max_bad_samples`=1 .* of 10, got 2.*2: n2 is.*5: n5 is",
    ):
        dataset[5]


def test_a_dataset_without_any_good_sample_stops():
    dataset = TaskDataset(Numbers(3, bad=[0, 1, 2]), "captioning", 0)
    with pytest.raises(DataError, match="bad samples of 3, got 3"):
        dataset[0]


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        TaskDataset(Numbers(3), "detection", 0, lambda example, rng: 1 / 0)[0]


def test_workers_report_and_change_nothing():
    dataset = TaskDataset(Numbers(6, bad=[1]), "detection", 0, add_noise)
    keys = [[(i, 10 + i)] for i in range(6)]
    here = [dataset[batch[0]] for batch in keys]
    loader = DataLoader(dataset, batch_sampler=keys, num_workers=1, collate_fn=first)
    there = [batch[0] for batch in loader]
    assert there == here
    assert there[1]["replaced"][0] == (1, "n1 is bad")


def test_weighted_concat_is_all_datasets_in_a_row():
    joined = WeightedConcat([Numbers(3, name="a"), Numbers(2, name="b")])
    assert [(joined[i]["name"], joined[i]["value"]) for i in range(len(joined))] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
    ]
    with pytest.raises(IndexError, match=r"`index` must be in \[0, 5\), got 5"):
        joined[5]


@pytest.mark.parametrize(("weights", "share"), [(None, 10 / 13), ([1, 3], 0.25)])
def test_weighted_concat_states_its_shares(weights, share):
    joined = WeightedConcat([Numbers(100, name="a"), Numbers(9, name="b")], weights)
    assert joined.sizes == [100, 9]
    assert joined.shares == pytest.approx([share, 1 - share])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`datasets` must be .* got sizes \[2, 0\]"):
        WeightedConcat([Numbers(2), Numbers(0)])
    with pytest.raises(ValueError, match=r"`weights` must be 1 positive numbers.* got \[0\]"):
        WeightedConcat([Numbers(2)], [0])
    with pytest.raises(ValueError, match="`dataset` of task 'x' must not be empty"):
        TaskDataset(Numbers(0), "x", 0)
