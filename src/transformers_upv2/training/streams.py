"""Streamed data sets: examples that are read in order, from a position that can be saved.

A stream is never whole in memory. Every process reads its own shards, every loader worker its own
share of them, and each worker hands its position over with every batch, so a checkpoint holds the
position of what was trained on and not of what was loaded ahead.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable
from zlib import crc32

import numpy as np
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from transformers_upv2.data.examples import BAD_SAMPLE_ERRORS, DataError, reason_of
from transformers_upv2.training.seeding import seed_from, seed_global_generators

State = dict[str, Any]
PrepareExample = Callable[[Any, int], Any]


@runtime_checkable
class Stream(Protocol):
    """What a streamed data set has to be; every ``datasets.IterableDataset`` is one.

    - What is read is a function of the epoch and the position. Functions mapped over it may draw from
      the global generators, which are seeded for every example. A shuffle buffer is not part of a
      position (``datasets`` fills it anew), so a run with one resumes, but not bit-equal: shuffle
      the shards, or the examples when they are written.
    - In a worker of a ``DataLoader`` it yields this worker's share, as torch asks of every
      iterable data set (``torch.utils.data.get_worker_info``).
    - A bad example is yielded as a ``DataError``, or raised as one or as an ``OSError`` if the position is then
      behind it, as that of ``datasets`` is. The next good example takes its place. Bad examples are told apart by
      their messages, so that one that comes again in every epoch counts as one; a message must name its
      example, as by shard and row.
    """

    @property
    def num_shards(self) -> int:
        """Into how many parts it can be divided."""

    def shard(self, num_shards: int, index: int) -> "Stream":
        """Return part ``index`` of ``num_shards`` disjoint ones."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; what ``load_state_dict`` was given in another epoch is void."""

    def state_dict(self) -> State:
        """Return the position behind the example yielded last."""

    def load_state_dict(self, state_dict: State) -> None:
        """Let the next iteration begin at a position of the chosen epoch."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the examples of an epoch."""


class EndlessStream:
    """The examples of a stream, epoch after epoch.

    Args:
        stream: The stream; it is copied, since workers and processes are in different epochs.
        state: Where to begin, from ``state_dict``.
    """

    def __init__(self, stream: Stream, state: State | None = None) -> None:
        self._stream = copy.deepcopy(stream)
        self._iterator: Iterator[Any] | None = None
        state = state or {"epoch": 0, "position": None}
        self._epoch, self._position = state["epoch"], state["position"]
        self._last_fault: State | None = None

    def state_dict(self) -> State:
        """Return the position behind the example read last."""
        is_reading = self._iterator is not None
        return {"epoch": self._epoch, "position": self._stream.state_dict() if is_reading else self._position}

    def __next__(self) -> Any:
        for _ in range(2):  # an epoch may just have ended; two empty ones are an error
            if self._iterator is None:
                self._stream.set_epoch(self._epoch)
                if self._position is not None:
                    self._stream.load_state_dict(self._position)
                self._iterator = iter(self._stream)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator, self._position = None, None
                self._epoch += 1
            except BAD_SAMPLE_ERRORS as error:
                return self._pass_over(error)
        raise DataError(
            "A stream must give every process and every loader worker an example, got an empty "
            "share. Write more shards, or lower `num_workers`."
        )

    def _pass_over(self, error: Exception) -> DataError:
        """Go on behind an example that could not be read, in a new iteration: one that has raised is over."""
        fault = self.state_dict()
        if fault == self._last_fault:
            raise RuntimeError(
                "A stream that raises at a bad example must be able to go on behind it, got twice: "
                f"{reason_of(error)}. Remove the example, or yield a `DataError` in its place."
            ) from error
        self._last_fault, self._iterator, self._position = fault, None, fault["position"]
        return DataError(reason_of(error))


class ShuffledStream:
    """A map-style data set as a stream, in a new order every epoch.

    Args:
        dataset: The data set.
        seed: Key of the order.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed
        self._share = (1, 0)
        self._epoch = self._position = self._first = 0

    @property
    def num_shards(self) -> int:
        """Length of the data set, or of its share."""
        num_shards, index = self._share
        return len(range(index, len(self.dataset), num_shards))  # type: ignore[arg-type]

    def shard(self, num_shards: int, index: int) -> "ShuffledStream":
        """Return part ``index`` of ``num_shards`` disjoint ones."""
        part = copy.copy(self)
        part._share = _subdivide(self._share, num_shards, index)
        return part

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        if epoch != self._epoch:
            self._first = 0
        self._epoch = epoch

    def state_dict(self) -> State:
        """Return the position behind the example yielded last."""
        return {"position": self._position}

    def load_state_dict(self, state_dict: State) -> None:
        """Let the next iteration begin at a position."""
        self._first = state_dict["position"]

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's examples of an epoch."""
        worker = get_worker_info()
        share = self._share if worker is None else _subdivide(self._share, worker.num_workers, worker.id)
        members = range(share[1], len(self.dataset), share[0])  # type: ignore[arg-type]
        key = seed_from(self.seed, "stream", *share, self._epoch)
        order = np.random.Generator(np.random.Philox(key)).permutation(len(members))
        first, self._first = self._first, 0
        for self._position, place in enumerate(order[first:], start=first + 1):
            try:
                example = self.dataset[members[place]]
            except BAD_SAMPLE_ERRORS as error:
                example = DataError(f"sample {members[place]}: {reason_of(error)}")
            yield example


class StreamedBatches(IterableDataset):
    """Numbered batches of one task from its streams, on one rank.

    Batch ``n`` is read by worker ``n % num_workers`` and holds the draws that ``DrawSampler`` gives
    it. The draw decides by weight which stream an example comes from, and keys its randomness.

    An item is ``(worker, positions, batch)``, and ``None`` where a worker has no batch to give,
    because another one's batch comes first.

    Args:
        streams: This rank's share of every stream.
        weights: How often an example is taken from each stream, up to a common factor.
        batch_size: Samples per batch and rank.
        collate: Examples to a batch.
        prepare: Called as ``prepare(example, draw)``; raises ``DataError`` for a bad example.
        seed: Key of the randomness.
        task: Key of the randomness.
        ranks: This rank and the number of all.
        max_bad_samples: How many bad examples in a row are replaced.

    Attributes:
        first_batch: Number of the first batch.
        positions: Where each worker begins, the start where absent.
    """

    def __init__(  # noqa: PLR0913  # as many as a task has
        self,
        streams: Sequence[Stream],
        weights: Sequence[float],
        batch_size: int,
        collate: Callable[[list[Any]], dict[str, Any]],
        prepare: PrepareExample | None = None,
        *,
        seed: int = 0,
        task: str = "",
        ranks: tuple[int, int] = (0, 1),
        max_bad_samples: int = 100,
    ) -> None:
        self.streams = streams
        self.upper_bounds = np.cumsum(weights)[:-1] / np.sum(weights)
        self.batch_size = batch_size
        self.collate = collate
        self.prepare = prepare
        self.seed = seed
        self.task = task
        self.ranks = ranks
        self.max_bad_samples = max_bad_samples
        self.first_batch = 0
        self.positions: Mapping[int, list[State]] = {}

    def __iter__(self) -> Iterator[tuple[int, list[State], dict[str, Any]] | None]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        positions = self.positions.get(worker, [None] * len(self.streams))
        members = [EndlessStream(s, position) for s, position in zip(self.streams, positions, strict=True)]
        number = self.first_batch // num_workers * num_workers + worker
        while True:
            if number < self.first_batch:
                yield None
            else:
                batch = self._read(members, number)
                yield worker, [member.state_dict() for member in members], batch
            number += num_workers

    def _read(self, members: list[EndlessStream], number: int) -> dict[str, Any]:
        rank, world_size = self.ranks
        start = (number * world_size + rank) * self.batch_size
        replaced: list[tuple[str, str]] = []
        examples = [self._example(members, draw, replaced) for draw in range(start, start + self.batch_size)]
        batch = self.collate(examples)
        return {**batch, "replaced": [*batch.get("replaced", ()), *replaced]} if replaced else batch

    def _example(self, members: list[EndlessStream], draw: int, replaced: list[tuple[str, str]]) -> Any:
        """Read the example of a draw, and note the bad ones before it."""
        chance = seed_from(self.seed, "stream", self.task, draw) / 2**63
        member = members[int(np.searchsorted(self.upper_bounds, chance, side="right"))]
        seed_global_generators(self.seed, "sample", self.task, draw)
        for _ in range(self.max_bad_samples + 1):
            example = next(member)
            try:
                if isinstance(example, DataError):
                    raise example
                return example if self.prepare is None else self.prepare(example, draw)
            except DataError as error:
                replaced.append((name_of_bad(reason_of(error)), reason_of(error)))
        raise DataError(
            f"A stream of task '{self.task}' must not have more than `max_bad_samples` = "
            f"{self.max_bad_samples} bad examples in a row. Mend the data; the last one was: {replaced[-1][1]}"
        )


def name_of_bad(reason: str) -> str:
    """Return a short name of a bad example of a stream, where examples have no numbers."""
    return f"{crc32(reason.encode()):08x}"


def own_share(stream: Stream, task: str, ranks: tuple[int, int], num_workers: int) -> Stream:
    """Return one rank's share of a stream.

    Args:
        stream: The stream.
        task: Its task, for the message.
        ranks: This rank and the number of all.
        num_workers: Loader workers of each rank.

    Raises:
        ValueError: If a rank or a worker would get nothing.
    """
    rank, world_size = ranks
    needed = world_size * max(1, num_workers)
    if stream.num_shards < needed:
        raise ValueError(
            f"A stream of task {task!r} must have a shard for every loader worker of every process, "
            f"{needed} in all, got {stream.num_shards}. Write more shards, or lower `num_workers`."
        )
    return stream if world_size == 1 else stream.shard(num_shards=world_size, index=rank)


def _subdivide(share: tuple[int, int], num_shards: int, index: int) -> tuple[int, int]:
    """Return part ``index`` of a share, as (distance of its members, the first of them)."""
    step, first = share
    return step * num_shards, first + step * index
