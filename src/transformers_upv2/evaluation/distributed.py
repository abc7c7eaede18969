"""Split an evaluation between processes: each asks about its part, the first one counts."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist
from torch.utils.data import Dataset

from transformers_upv2.model.distributed import rank, world_size

PredictionsT = TypeVar("PredictionsT")


class DatasetPart(Dataset):
    """A row of examples of a map-style dataset, with the dataset's own attributes.

    Attributes:
        first_index: Index of its first example in the whole dataset.
    """

    def __init__(self, dataset: Any, indices: range) -> None:
        self._dataset = dataset
        self._indices = indices
        self.first_index = indices.start

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._indices[index]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)


def own_part(dataset: Any, batch_size: int) -> Any:
    """Return this process' part of a dataset: whole batches, the same ones that a single process would form."""
    if world_size() == 1:
        return dataset
    num_batches = -(-len(dataset) // batch_size)
    ends = [num_batches * r // world_size() * batch_size for r in (rank(), rank() + 1)]
    return DatasetPart(dataset, range(*(min(end, len(dataset)) for end in ends)))


def score_together(
    predictions: PredictionsT | None,
    join: Callable[[Sequence[PredictionsT]], PredictionsT],
    score: Callable[[PredictionsT], dict[str, float]],
) -> dict[str, float]:
    """Join the predictions of all processes on the first one, score them there, and tell all.

    Args:
        predictions: Those of this process, None if it had no examples.
        join: Puts parts together that are in the order of the dataset.
        score: Computes the metrics.

    Returns:
        The metrics, on every process.

    Raises:
        ValueError: If no process had an example.
    """
    parts: list[PredictionsT | None] = [predictions]
    if world_size() > 1:
        gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
        dist.gather_object(predictions, gathered)
        parts = gathered or []
    results: list[Any] = [None]
    if rank() == 0:
        try:
            results = [score(join([part for part in parts if part is not None]))]
        except Exception as error:  # the others are waiting: they must fail as well
            results = [error]
    if world_size() > 1:
        dist.broadcast_object_list(results)
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]
