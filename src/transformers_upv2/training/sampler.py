"""Unmixed sampling: which task an update trains, and which examples a batch of it holds.

Reference: Uni-Perceiver v2, section 4.4 (https://arxiv.org/abs/2211.09808): one task is sampled
per iteration, the same on all GPUs, with probability s_k.
Not stated in the paper, chosen here: both are pure functions of the seed and a running number, so
any position can be computed without the ones before it, and nothing has to be saved to resume.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
from torch.utils.data import Sampler

from transformers_upv2.training.seeding import seed_from

STEPS_PER_BLOCK = 1024


class UnmixedTaskSampler:
    """The task of every update.

    Args:
        sampling_probabilities: s_k of every task; divided by their sum.
        seed: Another seed, another sequence.

    Raises:
        ValueError: If there is no task or a probability is not a positive number.
    """

    def __init__(self, sampling_probabilities: Mapping[str, float], seed: int = 0) -> None:
        self.sampling_probabilities = normalized_probabilities(sampling_probabilities)
        self.seed = seed
        self.tasks = tuple(self.sampling_probabilities)
        self._upper_bounds = np.cumsum(list(self.sampling_probabilities.values()))[:-1]
        self._counts_before_block = [np.zeros(len(self.tasks), dtype=np.int64)]
        self._block = lru_cache(maxsize=8)(self._draw_block)

    def task_at(self, step: int) -> str:
        """Return the task of update ``step``, counted from 0."""
        return self.tasks[self._block(step // STEPS_PER_BLOCK)[step % STEPS_PER_BLOCK]]

    def draw_number(self, step: int) -> int:
        """Return how many updates before ``step`` had the task that ``step`` has."""
        return self.counts_before(step)[self.task_at(step)]

    def counts_before(self, step: int) -> dict[str, int]:
        """Return how many of the updates 0 .. ``step`` - 1 each task has."""
        block, offset = divmod(step, STEPS_PER_BLOCK)
        while len(self._counts_before_block) <= block:
            last = len(self._counts_before_block) - 1
            self._counts_before_block.append(self._counts_before_block[last] + self._count(self._block(last)))
        counts = self._counts_before_block[block] + self._count(self._block(block)[:offset])
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    def _count(self, task_indices: np.ndarray) -> np.ndarray:
        return np.bincount(task_indices, minlength=len(self.tasks))

    def _draw_block(self, block: int) -> np.ndarray:
        """Draw the task indices of one block of updates, ``(STEPS_PER_BLOCK,)``."""
        # Raw 64-bit words: NumPy promises that these never change between versions.
        words = np.random.Philox(seed_from(self.seed, "task", block)).random_raw(STEPS_PER_BLOCK)
        return np.searchsorted(self._upper_bounds, (words >> 11) * 2.0**-53, side="right")


class DrawSampler(Sampler[list[tuple[int, int]]]):
    """Batches of one task on one rank: endless, without a repeated sample inside an epoch.

    An item is a list of ``(index, draw)``: the sample, and the running number of the draw in the
    task. Batch n covers the draws from ``n * batch_size * world_size``, and rank r takes the r-th
    slice of them, so two ranks draw together what one rank draws with twice the batch size.

    Args:
        num_samples: Length of the data set.
        batch_size: Samples per batch and rank.
        seed: Key of the order.
        task: Key of the order.
        rank: Number of this process.
        world_size: How many processes draw together.

    Raises:
        ValueError: If the data set is empty or the batch size is not positive.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        task: str = "",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"The data set of task {task!r} must not be empty. Remove the task.")
        if batch_size < 1:
            raise ValueError(f"The batch size of task {task!r} must be positive, got {batch_size}.")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.task = task
        self.rank = rank
        self.global_batch_size = batch_size * world_size
        self.first_batch = 0
        self._is_part = False
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in count(self.first_batch):
            start = number * self.global_batch_size + self.rank * self.batch_size
            yield [(self.index_at(draw), draw) for draw in range(start, start + self.batch_size)]

    def index_at(self, draw: int) -> int:
        """Return the sample of draw ``draw`` of the task."""
        epoch, position = divmod(draw, self.num_samples)
        return int(self._order(epoch)[position])

    def _draw_order(self, epoch: int) -> np.ndarray:
        """Permute the data set, ``(num_samples,)``.

        The global batch in which an epoch begins also holds the end of the epoch before. In
        retrieval a repeated image would be its own wrong answer, so the samples of that end are
        moved out of the first batch; this needs a data set of at least three global batches.
        """
        order = self._shuffle(epoch)
        num_old = epoch * self.num_samples % self.global_batch_size
        if self._is_part and epoch:  # of a batch, so where the batches begin is not known
            num_old = self.global_batch_size - 1
        if num_old and self.num_samples >= 3 * self.global_batch_size:
            head = order[: 2 * self.global_batch_size]
            is_repeated = np.isin(head, self._shuffle(epoch - 1)[-num_old:])
            order[: len(head)] = np.concatenate([head[~is_repeated], head[is_repeated]])
        return order

    def _shuffle(self, epoch: int) -> np.ndarray:
        generator = np.random.Generator(np.random.Philox(seed_from(self.seed, "order", self.task, epoch)))
        return generator.permutation(self.num_samples)


class WeightedDrawSampler(DrawSampler):
    """Batches of one task that has several data sets, from which samples are drawn by weight.

    The draw decides which data set it takes, and each has its own epochs, so here too no sample is
    drawn twice in a batch. An index counts through all data sets in a row.

    Args:
        sizes: Lengths of the data sets.
        shares: How often each is drawn from, up to a common factor.
        batch_size: Samples per batch and rank.
        seed: Key of the order.
        task: Key of the order.
        rank: Number of this process.
        world_size: How many processes draw together.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[float],
        batch_size: int,
        seed: int = 0,
        task: str = "",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(sum(sizes), batch_size, seed, task, rank, world_size)
        self._parts = [
            DrawSampler(size, batch_size, seed, f"{task}/{number}", rank, world_size)
            for number, size in enumerate(sizes)
        ]
        for part in self._parts:
            part._is_part = True
        self._starts = np.cumsum([0, *sizes])
        shares_by_number = {str(number): share for number, share in enumerate(shares)}
        self._choice = UnmixedTaskSampler(shares_by_number, seed_from(seed, "data set", task))

    def index_at(self, draw: int) -> int:
        """Return the sample of draw ``draw`` of the task."""
        number = int(self._choice.task_at(draw))
        return int(self._starts[number]) + self._parts[number].index_at(self._choice.draw_number(draw))


def normalized_probabilities(sampling_probabilities: Mapping[str, float]) -> dict[str, float]:
    """Check the s_k and divide them by their sum.

    Raises:
        ValueError: If there is none or one is not a positive finite number.
    """
    if not sampling_probabilities:
        raise ValueError("`sampling_probabilities` must name at least one task, got none.")
    for task, probability in sampling_probabilities.items():
        if not 0 < probability < float("inf"):
            raise ValueError(
                f"`sampling_probabilities` must be positive and finite, got {probability} for task "
                f"{task!r}. Remove a task that shall not be trained."
            )
    total = sum(sampling_probabilities.values())
    return {task: value / total for task, value in sampling_probabilities.items()}
