"""The batches of a multi-task run: one loader per task, joined into one sequence of updates."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from transformers_upv2.training.sampler import DrawSampler, UnmixedTaskSampler
from transformers_upv2.training.seeding import seed_global_generators


class SeededDataset(Dataset):
    """Any map-style data set, read by ``(index, draw)``: all its randomness is keyed by the draw.

    Args:
        dataset: The data set.
        seed: Key of the randomness.
        task: Key of the randomness.
    """

    def __init__(self, dataset: Dataset, seed: int, task: str) -> None:
        self.dataset = dataset
        self.seed = seed
        self.task = task

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, draw = key
        seed_global_generators(self.seed, "sample", self.task, draw)
        return self.dataset[index]


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
        self._loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **options)
        self._iterator: Iterator[dict[str, Any]] = iter(())
        self._next_number = -1

    def __getitem__(self, number: int) -> dict[str, Any]:
        if number != self._next_number:
            self.sampler.first_batch = number
            self._iterator = iter(self._loader)
        self._next_number = number + 1
        return next(self._iterator)


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
        batches: Mapping[str, TaskBatches],
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
