"""The examples of one training task: keyed randomness, replaced bad samples, weighted mixtures."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
from torch.utils.data import Dataset

from transformers_upv2.data.examples import BAD_SAMPLE_ERRORS, DataError, Transform, reason_of

REPLACEMENT = crc32(b"replacement")  # keeps the choice of replacements apart from the draws


def task_generator(seed: int, task: str, *key: int) -> np.random.Generator:
    """Return the generator of one purpose, a pure function of (seed, task, key)."""
    return np.random.default_rng([seed, crc32(task.encode()), *key])


def prepare_example(
    example: dict[str, Any], draw: int, *, seed: int, task: str, transform: Transform | None = None
) -> dict[str, Any]:
    """Prepare an example of a stream as ``TaskDataset`` does with one of a map-style dataset."""
    return _draw_example(example, task_generator(seed, task, draw), transform)


def _draw_example(example: dict[str, Any], rng: np.random.Generator, transform: Transform | None) -> dict[str, Any]:
    rng_seed = int(rng.integers(2**63))
    return {**(example if transform is None else transform(example, rng)), "rng_seed": rng_seed}


class WeightedConcat(Dataset[dict[str, Any]]):
    """Several datasets of one task in a row, and in which shares they are to be drawn from."""

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float] | None = None):
        """Join the datasets.

        Args:
            datasets: Map-style datasets that are not empty.
            weights: Share of each in the draws, up to a common factor. Not stated in the paper,
                chosen here: by default the square root of its size, between equal shares and
                shares by size.
        """
        self.datasets = list(datasets)
        sizes = [len(dataset) for dataset in self.datasets]
        if not sizes or min(sizes) == 0:
            raise ValueError(f"`datasets` must be one or more, none empty, got sizes {sizes}.")
        shares = np.sqrt(sizes) if weights is None else np.asarray(weights, dtype=np.float64)
        if shares.shape != (len(sizes),) or not (shares > 0).all():
            raise ValueError(f"`weights` must be {len(sizes)} positive numbers, one a dataset, got {weights}.")
        self.shares = shares / shares.sum()
        self.sizes = sizes
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}.")
        member = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[member]) - len(self.datasets[member])
        return self.datasets[member][index - start]


class ReplacingReader:
    """Reads the samples of a map-style dataset, and another one where a sample cannot be read.

    Which one is a function of seed, task and index.

    Args:
        dataset: The dataset.
        task: Name of its task.
        seed: Key of the choice.
        max_bad_samples: With more bad samples than this, reading stops with the list.

    Attributes:
        bad: Reason of each bad sample that this process met, by index.
    """

    def __init__(self, dataset: Any, task: str, seed: int, max_bad_samples: int) -> None:
        self.dataset, self.task, self.seed, self.max_bad_samples = dataset, task, seed, max_bad_samples
        self.bad: dict[int, str] = {}

    def read(self, index: int) -> tuple[Any, list[tuple[int, str]]]:
        """Return a sample or its replacement, and the bad samples that it stands for.

        Raises:
            DataError: If there are more bad samples than allowed.
        """
        replaced: list[tuple[int, str]] = []
        rng = task_generator(self.seed, self.task, index, REPLACEMENT)
        while True:
            try:
                return self.dataset[index], replaced
            except BAD_SAMPLE_ERRORS as error:
                self._note_bad(index, reason_of(error))
                replaced.append((index, reason_of(error)))
                index = int(rng.integers(len(self.dataset)))

    def _note_bad(self, index: int, reason: str) -> None:
        self.bad[index] = reason
        if len(self.bad) > min(self.max_bad_samples, len(self.dataset) - 1):
            listing = "\n".join(f"  {number}: {why}" for number, why in self.bad.items())
            raise DataError(
                f"Task '{self.task}' must have at most `max_bad_samples`={self.max_bad_samples} "
                f"bad samples of {len(self.dataset)}, got {len(self.bad)}. Mend the data or raise "
                f"the limit:\n{listing}"
            )


class TaskDataset(Dataset[dict[str, Any]]):
    """The examples of one task, transformed, with every random choice keyed.

    Indexed by ``(index, draw)``: which example, and the how-manieth draw of the task it is. A plain
    index counts as its own draw. Example and augmentation are pure functions of seed, task, index
    and draw, whatever process loads them, and thus the same after a resume.

    An example that cannot be loaded (``DataError``, ``OSError``) is replaced by another of the same task, chosen
    by seed, task and index. Each example lists under ``"replaced"`` what it stands for, since
    this object is copied into each worker process, and under ``"rng_seed"`` an integer for later
    random choices (caption, masked words).

    Attributes:
        bad_samples: (index, reason) of each bad sample that this process met.
    """

    def __init__(
        self,
        dataset: Any,
        task: str,
        seed: int,
        transform: Transform | None = None,
        max_bad_samples: int = 100,
    ):
        """Wrap a dataset.

        Args:
            dataset: A map-style dataset of the task's examples.
            task: Name of the task; with the seed it keys all randomness.
            seed: The run's data seed.
            transform: Called as ``transform(example, rng)``.
            max_bad_samples: With more bad samples than this, loading stops with the list.
        """
        if len(dataset) == 0:
            raise ValueError(f"`dataset` of task '{task}' must not be empty.")
        self.dataset, self.task, self.seed = dataset, task, seed
        self.transform = transform
        self._reader = ReplacingReader(dataset, task, seed, max_bad_samples)

    @property
    def bad_samples(self) -> list[tuple[int, str]]:
        """(index, reason) of each bad sample that this process met."""
        return list(self._reader.bad.items())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, key)
        rng = task_generator(self.seed, self.task, draw)
        example, replaced = self._reader.read(index)
        return {**_draw_example(example, rng, self.transform), "replaced": replaced}
