"""Streams: endless, resumable at every example, disjoint over ranks and workers, mixed by weight."""

import io
import math
from collections import Counter
from functools import partial
from itertools import islice

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from transformers_upv2.data.examples import DataError
from transformers_upv2.training.loader import StreamedTaskBatches, datasets_of_task
from transformers_upv2.training.sampler import DrawSampler
from transformers_upv2.training.streams import (
    EndlessStream,
    ShuffledStream,
    Stream,
    StreamedBatches,
    name_of_bad,
    own_share,
)

NUM_READ = Counter()


def read(shards, size):
    for shard in shards:
        for number in range(size):
            NUM_READ["examples"] += 1
            yield {"number": shard * size + number}


def make_stream(num_shards=4, size=5):
    return datasets.IterableDataset.from_generator(read, gen_kwargs={"shards": list(range(num_shards)), "size": size})


def shuffled_shards():
    return make_stream().shuffle(seed=3, buffer_size=1)


def numbers(length):
    return [{"number": number} for number in range(length)]


class Flaky(list):
    """A map-style data set, some of whose examples are bad."""

    def __getitem__(self, index):
        if index % 7 == 3:
            raise DataError(f"example {index} is broken")
        return super().__getitem__(index)


def collate(examples):
    return {"numbers": [example["number"] for example in examples]}


def make_batches(streams=None, weights=(1.0,), ranks=(0, 1), num_workers=0, batch_size=3, **options):
    shares = [own_share(stream, "a", ranks, num_workers) for stream in streams or [make_stream()]]
    dataset = StreamedBatches(shares, weights, batch_size, collate, task="a", ranks=ranks, **options)
    return StreamedTaskBatches(dataset, {"num_workers": num_workers})


def test_streams_of_datasets_are_streams():
    assert isinstance(make_stream(), Stream)
    assert isinstance(ShuffledStream(numbers(3)), Stream)
    assert not isinstance(datasets.Dataset.from_list(numbers(3)), Stream)


@pytest.mark.parametrize("make", [make_stream, shuffled_shards, lambda: ShuffledStream(numbers(20), seed=1)])
def test_an_endless_stream_goes_on_from_every_example(make):
    """Three epochs of 20, the ends of the first two among the positions."""
    stream = EndlessStream(make())
    states, whole = [stream.state_dict()], []
    for _ in range(60):
        whole.append(next(stream)["number"])
        states.append(stream.state_dict())
    assert all(sorted(whole[start : start + 20]) == list(range(20)) for start in (0, 20, 40))
    for position in (0, 1, 4, 5, 13, 19, 20, 21, 40, 47):
        resumed = EndlessStream(make(), states[position])
        assert [next(resumed)["number"] for _ in range(12)] == whole[position : position + 12]


def test_orders_change_with_the_epoch():
    for make in (make_stream, lambda: ShuffledStream(numbers(20))):
        stream = EndlessStream(make())
        epochs = {tuple(next(stream)["number"] for _ in range(20)) for _ in range(5)}
        assert len(epochs) >= 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("make", [make_stream, lambda: ShuffledStream(numbers(20))])
def test_ranks_read_disjoint_shares(make, world_size):
    shares = [own_share(make(), "a", (rank, world_size), 0) for rank in range(world_size)]
    drawn = [example["number"] for share in shares for example in share]
    assert sorted(drawn) == list(range(20))


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [make_stream, lambda: ShuffledStream(numbers(20))])
def test_batches_resume_at_every_number(make, num_workers):
    whole = make_batches([make()], num_workers=num_workers)
    states, drawn = [whole.state_dict()], []
    for number in range(15):
        drawn.append(whole[number])
        states.append(whole.state_dict())
    epoch = [number for batch in drawn[:7] for number in batch["numbers"]]
    assert len(set(epoch[:18])) == 18  # no worker has read another's share
    for number in (0, 1, 6, 7) if num_workers else range(15):
        resumed = make_batches([make()], num_workers=num_workers)
        resumed.load_state_dict(states[number])
        assert [resumed[n] for n in range(number, min(15, number + 5))] == drawn[number : number + 5]


def test_a_stream_is_never_whole_in_memory():
    NUM_READ.clear()
    batches = make_batches([make_stream(size=10**6)])
    for number in range(7):
        batches[number]
    assert NUM_READ["examples"] == 21


def test_streams_are_mixed_by_weight():
    """And the choice does not depend on the batch size or the number of ranks, but on the draw."""
    streams = [make_stream(), ShuffledStream([{"number": -1}] * 4)]
    batches = make_batches(streams, (3.0, 1.0), batch_size=100)
    drawn = [number for n in range(20) for number in batches[n]["numbers"]]
    assert abs(drawn.count(-1) - 500) < 3 * math.sqrt(2000 * 0.75 * 0.25)
    ranks = [make_batches(streams, (3.0, 1.0), (rank, 2), batch_size=50) for rank in range(2)]
    halves = [number for n in range(20) for batches in ranks for number in batches[n]["numbers"]]
    assert [number == -1 for number in halves] == [number == -1 for number in drawn]


def test_examples_are_prepared_with_the_draws_of_map_style_data_sets():
    def keep_draw(example, draw):
        return {"number": draw}

    for rank in range(2):
        batches = make_batches(ranks=(rank, 2), prepare=keep_draw)
        expected = islice(DrawSampler(20, 3, rank=rank, world_size=2), 4)
        assert [batches[n]["numbers"] for n in range(4)] == [[draw for _, draw in batch] for batch in expected]


def add_noise(example):
    return {"number": example["number"] + torch.rand(()).item()}


def test_mapped_randomness_belongs_to_the_draw():
    whole, resumed = (make_batches([make_stream().map(add_noise)]) for _ in range(2))
    drawn = [whole[n] for n in range(4)]
    state = whole.state_dict()
    torch.rand(5)
    resumed.load_state_dict(state)
    assert resumed[4] == whole[4]
    other_seed = make_batches([make_stream().map(add_noise)], seed=1)
    assert other_seed[0] != drawn[0]


def refuse(example, draw, *, good):
    if example["number"] not in good:
        raise DataError(f"no {example['number']}")
    return example


def test_bad_examples_are_replaced_by_the_next_and_listed():
    yielded = make_batches([ShuffledStream(Flaky(numbers(20)))])
    drawn = [yielded[n] for n in range(6)]
    assert all(len(batch["numbers"]) == 3 for batch in drawn)
    reasons = {reason for batch in drawn for _, reason in batch.get("replaced", ())}
    assert reasons == {f"sample {n}: example {n} is broken" for n in (3, 10, 17)}
    raised = make_batches([make_stream(1, 20)], prepare=partial(refuse, good={0, 1, 2, 5, 6}))
    assert raised[0] == {"numbers": [0, 1, 2]}
    bad = [(name_of_bad(reason), reason) for reason in (f"no {n}" for n in (3, 4, *range(7, 20)))]
    assert raised[1] == {"numbers": [5, 6, 0], "replaced": bad}
    hopeless = make_batches(prepare=partial(refuse, good={1}), max_bad_samples=10)
    with pytest.raises(DataError, match=r"`max_bad_samples` = 10 bad examples in a row.*last one was: no 12"):
        hopeless[0]


def picture(number):
    file = io.BytesIO()
    Image.new("L", (2, 2), number).save(file, "PNG")
    return b"broken" if number in (3, 4, 9) else file.getvalue()


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_stream_of_datasets_goes_on_behind_pictures_that_cannot_be_decoded(num_shards):
    rows = datasets.Dataset.from_dict({"number": list(range(10)), "image": [{"bytes": picture(n)} for n in range(10)]})
    rows = rows.cast_column("image", datasets.Image())
    batches = make_batches([rows.to_iterable_dataset(num_shards=num_shards)])
    drawn = [batches[n] for n in range(5)]
    read = [number for batch in drawn for number in batch["numbers"]]
    assert [sorted(read[:7]), sorted(read[7:14])] == [[0, 1, 2, 5, 6, 7, 8]] * 2
    reasons = [reason for batch in drawn for _, reason in batch.get("replaced", ())]
    assert len(reasons) >= 6
    assert all("cannot identify image file" in reason for reason in reasons)
    resumed = make_batches([rows.to_iterable_dataset(num_shards=num_shards)])
    resumed.load_state_dict(positions_after(rows, num_shards))
    assert [resumed[n] for n in range(2, 5)] == drawn[2:]


def positions_after(rows, num_shards):
    """Return the position behind the second batch."""
    batches = make_batches([rows.to_iterable_dataset(num_shards=num_shards)])
    for number in range(2):
        batches[number]
    return batches.state_dict()


def fail(batch):
    raise OSError(f"cannot read {batch['number']}")


def test_a_stream_that_cannot_go_on_behind_a_bad_example_says_so():
    stream = EndlessStream(make_stream().map(fail, batched=True, batch_size=2))
    with pytest.raises(RuntimeError, match=r"must be able to go on behind it, got twice: cannot read \[0, 1\]"):
        [next(stream) for _ in range(3)]


def test_bad_setups_are_named():
    with pytest.raises(ValueError, match=r"task 'a' must have a shard for every .* 6 in all, got 4"):
        own_share(make_stream(), "a", (0, 2), 3)
    with pytest.raises(DataError, match=r"must give every process .* an empty share"):
        next(EndlessStream(ShuffledStream([])))
    batches = make_batches()
    batches[0]
    with pytest.raises(ValueError, match="task 'a' must be read on from batch 1, got 3"):
        batches[3]
    with pytest.raises(ValueError, match="of the streamed task 'a' must be as in the checkpoint, 2, got 1"):
        batches.load_state_dict({"num_workers": 2})


class PlainIterable(IterableDataset):
    def __iter__(self):
        return iter(())


def test_data_sets_of_a_task_have_all_weights_or_none():
    one, other, stream = numbers(4), numbers(9), make_stream()
    assert datasets_of_task(one, "a") == ([one], None)
    assert datasets_of_task({"x": one, "y": other}, "a") == ([one, other], None)
    assert datasets_of_task({"x": (one, 2.0), "y": (stream, 1.0)}, "a") == ([one, stream], [2.0, 1.0])
    with pytest.raises(ValueError, match=r"got PlainIterable. `datasets.IterableDataset.from_generator` has them"):
        datasets_of_task(PlainIterable(), "a")
    for mixed in ({"x": (one, 1.0), "y": other}, {"x": one, "y": stream}):
        with pytest.raises(
            ValueError, match=r"task 'a' must be given as \(dataset, weight\).* no weight for \[.*'y'\]"
        ):
            datasets_of_task(mixed, "a")
