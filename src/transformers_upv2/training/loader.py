"""The batches of a multi-task run: one loader per task, joined into one sequence of updates.

The data set of a task is map-style (``len(dataset)`` and ``dataset[index]``) or a stream, which is
any ``datasets.IterableDataset`` or another object with these members:

- ``num_shards`` and ``shard(num_shards, index)``: it can be divided between the processes;
- ``set_epoch(epoch)``: chooses the order of the next pass;
- ``state_dict()`` and ``load_state_dict(state)``: the position behind the example yielded last, and
  where the next pass begins;
- ``__iter__``: one pass over the examples, in a ``DataLoader`` worker over the worker's share. A bad
  example is yielded as a ``DataError``, or raised as one or as an ``OSError``, with the position behind it.

``Stream`` in ``transformers_upv2.training.streams`` states them as a protocol. A task may also have
several data sets, ``{name: dataset}`` or ``{name: (dataset, weight)}``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from datasets import DatasetDict, IterableDatasetDict
from torch.utils.data import DataLoader, Dataset, IterableDataset

from transformers_upv2.data.multitask_dataset import ReplacingReader
from transformers_upv2.training.sampler import DrawSampler, UnmixedTaskSampler
from transformers_upv2.training.seeding import seed_global_generators
from transformers_upv2.training.streams import State, Stream, StreamedBatches


class NumberedBatches(Protocol):
    """The batches of one task on this rank, by number."""

    def __getitem__(self, number: int) -> dict[str, Any]: ...


class Replacement(NamedTuple):
    """An example in place of bad ones, ``(index, reason)`` each."""

    example: Any
    replaced: list[tuple[int, str]]


class SeededDataset(Dataset):
    """Any map-style data set, read by ``(index, draw)``: all its randomness is keyed by the draw.

    A sample that cannot be read (``OSError``, as PIL's errors are, or ``DataError``) is replaced by another, which is
    then given as a ``Replacement``.

    Args:
        dataset: The data set.
        seed: Key of the randomness.
        task: Key of the randomness.
        max_bad_samples: With more bad samples than this, reading stops with the list.
    """

    def __init__(self, dataset: Dataset, seed: int, task: str, max_bad_samples: int = 100) -> None:
        self.dataset = dataset
        self._reader = ReplacingReader(dataset, task, seed, max_bad_samples)
        self.seed = seed
        self.task = task

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, draw = key
        seed_global_generators(self.seed, "sample", self.task, draw)
        example, replaced = self._reader.read(index)
        return Replacement(example, replaced) if replaced else example


def collate_with_replaced(collate: Callable[[list[Any]], dict[str, Any]], examples: list[Any]) -> dict[str, Any]:
    """Collate examples; what their replacements stand for is added under ``"replaced"``."""
    replaced = [pair for example in examples if isinstance(example, Replacement) for pair in example.replaced]
    batch = collate([each.example if isinstance(each, Replacement) else each for each in examples])
    return {**batch, "replaced": [*batch.get("replaced", ()), *replaced]} if replaced else batch


class TaskBatches:
    """The batches of one task on this rank, by number.

    Reading them in order goes on where the loader is; any other number starts the loader there.

    Args:
        dataset: Read by ``(index, draw)``.
        sampler: What every batch holds.
        collate: Examples to a batch.
        options: Further arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: DrawSampler,
        collate: Callable[[list[Any]], dict[str, Any]],
        options: Mapping[str, Any],
    ) -> None:
        self.sampler = sampler
        collate = partial(collate_with_replaced, collate)
        self._loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **options)
        self._iterator: Iterator[dict[str, Any]] = iter(())
        self._next_number = -1

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number != self._next_number:
            self.sampler.first_batch = number
            self._iterator = iter(self._loader)
        self._next_number = number + 1
        return next(self._iterator)


class StreamedTaskBatches:
    """The batches of one task on this rank, from its streams.

    They can only be read in order, from the start or from where ``load_state_dict`` puts it.

    Args:
        dataset: What the loader workers read.
        options: Further arguments of ``torch.utils.data.DataLoader``.
    """

    def __init__(self, dataset: StreamedBatches, options: Mapping[str, Any]) -> None:
        self.dataset = dataset
        self._loader = DataLoader(dataset, batch_size=None, collate_fn=_unchanged, **options)
        self._iterator: Iterator[Any] | None = None
        self._next_number = 0
        self._positions: dict[int, list[State]] = {}

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number != self._next_number:
            raise ValueError(
                f"The streams of task {self.dataset.task!r} must be read on from batch "
                f"{self._next_number}, got {number}. Resume from a checkpoint that holds their positions."
            )
        if self._iterator is None:
            self._iterator = self._begin()
        self._next_number = number + 1
        worker, self._positions[worker], batch = next(self._iterator)
        return batch

    def _begin(self) -> Iterator[Any]:
        self.dataset.first_batch = self._next_number
        self.dataset.positions = dict(self._positions)
        iterator = iter(self._loader)
        for _ in range(self._next_number % self._num_workers):
            next(iterator)  # workers take turns, beginning with the first
        return iterator

    @property
    def _num_workers(self) -> int:
        return max(1, self._loader.num_workers)

    def state_dict(self) -> State:
        """Return the position behind the batch read last."""
        return {"number": self._next_number, "num_workers": self._num_workers, "positions": dict(self._positions)}

    def load_state_dict(self, state_dict: State) -> None:
        """Go on from a position.

        Raises:
            ValueError: If it is of another number of workers.
        """
        if state_dict["num_workers"] != self._num_workers:
            raise ValueError(
                f"`num_workers` of the streamed task {self.dataset.task!r} must be as in the checkpoint, "
                f"{state_dict['num_workers']}, got {self._num_workers}. Every worker has its own position."
            )
        self._iterator = None
        self._next_number = state_dict["number"]
        self._positions = dict(state_dict["positions"])


def _unchanged(item: Any) -> Any:
    """Collate function where the data set does the work; torch's default would turn tuples into lists."""
    return item


def save_positions(streams: Mapping[str, StreamedTaskBatches], checkpoint: str, ranks: tuple[int, int]) -> None:
    """Save the positions of all streamed tasks of this rank, if there are any."""
    file = _positions_file(checkpoint, ranks)
    if streams:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({task: batches.state_dict() for task, batches in streams.items()}, file)


def load_positions(streams: Mapping[str, StreamedTaskBatches], checkpoint: str, ranks: tuple[int, int]) -> None:
    """Put all streamed tasks of this rank where they were saved.

    Raises:
        ValueError: If the position of one is missing.
    """
    file = _positions_file(checkpoint, ranks)
    positions = torch.load(file, weights_only=True) if streams and file.exists() else {}
    missing = sorted(set(streams) - set(positions))
    if missing:
        raise ValueError(
            f"The positions of all streamed tasks must be in {file}, none found for {missing}. Resume from a "
            "checkpoint of as many processes and the same streamed tasks."
        )
    for task, batches in streams.items():
        batches.load_state_dict(positions[task])


def _positions_file(checkpoint: str, ranks: tuple[int, int]) -> Path:
    rank, world_size = ranks
    return Path(checkpoint) / f"streams-{rank}-of-{world_size}.pt"


class JoinedBatches(Dataset):
    """All micro-batches of a run on this rank: item i belongs to update ``i // accumulation``.

    An item is ``{"position": i, "batches": {task: batch}}``, with one task in unmixed sampling and
    all tasks in mixed sampling.

    Args:
        batches: The batches of every task.
        sampler: The task of every update; None trains every task in every update.
        num_updates: Length of the run.
        accumulation: Micro-batches per update; they share their task.
    """

    def __init__(
        self,
        batches: Mapping[str, NumberedBatches],
        sampler: UnmixedTaskSampler | None,
        num_updates: int,
        accumulation: int = 1,
    ) -> None:
        self.batches = batches
        self.sampler = sampler
        self.num_updates = num_updates
        self.accumulation = accumulation

    def __len__(self) -> int:
        return self.num_updates * self.accumulation

    def __getitem__(self, position: int) -> dict[str, Any]:
        step, micro_batch = divmod(position, self.accumulation)
        if self.sampler is None:
            events = dict.fromkeys(self.batches, step)
        else:
            events = {self.sampler.task_at(step): self.sampler.draw_number(step)}
        return {
            "position": position,
            "batches": {
                task: self.batches[task][event * self.accumulation + micro_batch] for task, event in events.items()
            },
        }


def only_item(items: Sequence[Any]) -> Any:
    """Collate function of a loader whose items are batches already."""
    (item,) = items
    return item


def require_by_name(datasets: Any, argument: str, names: str) -> None:
    """Make sure that data sets come as a dict.

    Raises:
        ValueError: If they do not.
    """
    if not isinstance(datasets, Mapping):
        raise ValueError(f"`{argument}` must be a dict from {names} to data sets, got {type(datasets).__name__}.")


def datasets_of_task(dataset: Any, task: str) -> tuple[list[Any], list[float] | None]:
    """Return the data sets of one task and how often each is drawn from.

    Args:
        dataset: A data set, ``{name: dataset}`` or ``{name: (dataset, weight)}``.
        task: The task.

    Returns:
        The data sets and their weights; no weights where none were given.

    Raises:
        ValueError: If these are splits, or an iterable data set is no ``Stream``, or some have weights and others
            not, or there are several with a stream among them and no weights.
    """
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise ValueError(
            f"The data set of task {task!r} must be one split, got the splits {list(dataset)}. Choose one, such as "
            f"`dataset[{next(iter(dataset), 'train')!r}]`, or give `dict(dataset)` to train on all of them."
        )
    named = dataset if isinstance(dataset, Mapping) else {"": dataset}
    pairs = {name: entry if isinstance(entry, tuple) else (entry, None) for name, entry in named.items()}
    for one, _ in pairs.values():
        if isinstance(one, IterableDataset) and not isinstance(one, Stream):
            raise ValueError(
                f"An iterable data set of task {task!r} must have `num_shards`, `shard`, `set_epoch`, `state_dict` "
                f"and `load_state_dict`, got {type(one).__name__}. `datasets.IterableDataset.from_generator` has them."
            )
    unweighted = [name for name, (_, weight) in pairs.items() if weight is None]
    is_streamed = any(isinstance(one, Stream) for one, _ in pairs.values())
    if len(pairs) > 1 and unweighted and (is_streamed or len(unweighted) < len(pairs)):
        raise ValueError(
            f"All data sets of task {task!r} must be given as (dataset, weight), or none of them where none is "
            f"streamed, since the default weight is the root of the size. Got no weight for {unweighted}."
        )
    return [one for one, _ in pairs.values()], None if unweighted else [weight for _, weight in pairs.values()]
