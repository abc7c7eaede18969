"""What a person can read about every task while a multi-task run goes on."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState
from transformers.utils import logging
from typing_extensions import override

logger = logging.get_logger(__name__)

NUM_LISTED_SAMPLES = 20


class TaskLogCallback(TrainerCallback, ExportableState):
    """Collects the losses and the replaced samples of every task, over all ranks.

    Attributes:
        replaced: Every bad sample so far, as ``"task/index": [task, reason, times replaced]``, with a name in place
            of the index where it comes from a stream; saved in checkpoints.
        first_statistics: What the optimizer had counted of every task when the run began or went on.
    """

    def __init__(self) -> None:
        self.replaced: dict[str, list[Any]] = {}
        self._new_replaced: list[tuple[str, int | str, str]] = []
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._statistics: dict[str, dict[str, float]] = {}
        self.first_statistics: dict[str, dict[str, float]] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._tasks_of_step: set[str] = set()
        self._last_time = time.perf_counter()

    def add_losses(self, task: str, loss: Tensor, loss_terms: Mapping[str, Tensor]) -> None:
        """Note the loss of a batch and its terms; the numbers are read at the next logging step."""
        self._tasks_of_step.add(task)
        terms = {name.removeprefix("loss_"): term for name, term in loss_terms.items()}
        values = {f"loss/{task}": loss} | {f"loss/{task}/{k}": v for k, v in terms.items()}
        for name, value in values.items():
            self._sums[name] = value.detach() + self._sums.get(name, 0)
            self._counts[name] += 1

    def add_replaced(self, task: str, replaced: Iterable[tuple[int | str, str]]) -> None:
        """Note samples that were replaced in a batch of this rank."""
        self._new_replaced += [(task, index, reason) for index, reason in replaced]

    def gather_replaced(self) -> None:
        """Make ``replaced`` complete; to be called on all ranks."""
        for task, index, reason in gather_object(self._new_replaced):
            self.replaced.setdefault(f"{task}/{index}", [task, reason, 0])[2] += 1
        self._new_replaced = []

    def collect(self) -> dict[str, float]:
        """Return the mean losses and the time shares since the last call; to be called on all ranks.

        A task's time share is that of its updates, the loading of their data included, on this rank.
        """
        own = {k: (value.item(), self._counts[k]) for k, value in self._sums.items()}
        self._sums, self._counts = {}, defaultdict(int)
        totals: dict[str, list[float]] = {}
        for ranks_share in gather_object([own]):
            for name, (value, number) in ranks_share.items():
                total = totals.setdefault(name, [0.0, 0])
                total[0] += value
                total[1] += number
        self.gather_replaced()
        counts: dict[str, int] = defaultdict(int)
        for task, _, times in self.replaced.values():
            counts[f"replaced_samples/{task}"] += times
        seconds, self._seconds = self._seconds, defaultdict(float)
        shares = {f"time_share/{task}": value / sum(seconds.values()) for task, value in seconds.items()}
        return {name: value / number for name, (value, number) in sorted(totals.items())} | counts | shares

    def require_few_replaced(self, limit: int) -> None:
        """Stop a run with too many bad samples.

        Raises:
            RuntimeError: If more than ``limit`` samples had to be replaced.
        """
        if len(self.replaced) > limit:
            raise RuntimeError(
                f"At most `max_bad_samples` = {limit} samples may be bad. Repair or remove them, or raise the limit. "
                f"{describe_replaced(self.replaced)}"
            )

    def collect_steps(
        self, statistics: Mapping[str, Mapping[str, float]], with_norms: bool = True
    ) -> dict[str, float]:
        """Return what the optimizer counted: steps in all, raw gradient norms since the last call.

        Args:
            statistics: ``task_statistics`` of a ``TaskBalancedAdamW``.
            with_norms: False leaves out the norms.
        """
        logs: dict[str, float] = {}
        for task, now in statistics.items():
            before = self._statistics.get(task, {"steps": 0, "norm_sum": 0.0})
            self._statistics[task] = dict(now)
            num_new = now["steps"] - before["steps"]
            logs[f"steps/{task}"] = now["steps"]
            if now["skipped_steps"]:
                logs[f"skipped_steps/{task}"] = now["skipped_steps"]
            if num_new > 0 and with_norms:
                logs[f"grad_norm/{task}"] = (now["norm_sum"] - before["norm_sum"]) / num_new
        return logs

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {}, "attributes": {"replaced": self.replaced}}

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go on from what a checkpoint counted."""
        callbacks: Any = state.stateful_callbacks  # a dict from names to states, once the run has begun
        saved = callbacks.get(type(self).__name__, self.state())
        self.replaced = dict(saved["attributes"]["replaced"])
        self.collect_steps(kwargs["optimizer"].param_groups[0].get("task_statistics", {}))
        self.first_statistics = dict(self._statistics)
        self._last_time = time.perf_counter()

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the time since the last update for the tasks of this one, in equal parts."""
        now = time.perf_counter()
        for task in self._tasks_of_step:
            self._seconds[task] += (now - self._last_time) / len(self._tasks_of_step)
        self._tasks_of_step, self._last_time = set(), now

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report the replaced samples and the skipped steps."""
        if not state.is_world_process_zero:
            return
        for task, numbers in self._statistics.items():
            if numbers["skipped_steps"]:
                logger.warning(
                    f"{task}: {numbers['skipped_steps']} steps were skipped, since their gradient vanished or was not "
                    "finite."
                )
        if self.replaced:
            logger.warning(describe_replaced(self.replaced))


class TaskProgressCallback(ProgressCallback):
    """One progress bar that shows the latest loss of every task."""

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar where the run goes on."""
        super().on_train_begin(args, state, control, **kwargs)
        self.losses: dict[str, str] = {}

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses behind the bar, and metrics above it."""
        if not state.is_world_process_zero or self.training_bar is None:
            return
        losses = {k: v for k, v in (logs or {}).items() if k.startswith("loss/")}
        if losses:
            self.losses |= {
                name.removeprefix("loss/"): f"{value:.3g}" for name, value in losses.items() if name.count("/") == 1
            }
            self.training_bar.set_postfix(self.losses, refresh=False)
        else:
            super().on_log(args, state, control, logs=logs, **kwargs)


def base_learning_rate(optimizer: Optimizer, base: float) -> float:
    """Return what a schedule has made of a learning rate, whatever multipliers its groups have.

    Args:
        optimizer: With groups from `parameter_groups`, whose rates one schedule moves.
        base: The learning rate that was asked for.
    """
    group = max(optimizer.param_groups, key=lambda group: group["initial_lr"])
    return base * (group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0)


def samples_seen(
    statistics: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], updated_as: str | None = None
) -> dict[str, float]:
    """Return how many samples of every task were seen, those of skipped steps included.

    Args:
        statistics: ``task_statistics`` of a ``TaskBalancedAdamW``.
        sizes: Samples of every task in one of its updates.
        updated_as: The task of all updates where they hold every task.
    """
    counts = {task: statistics.get(updated_as or task) for task in sizes}
    return {f"samples/{t}": (c["steps"] + c["skipped_steps"]) * sizes[t] for t, c in counts.items() if c is not None}


def describe_replaced(replaced: Mapping[str, list[Any]]) -> str:
    """List bad samples, the first ones with their reasons."""
    names = list(replaced)
    lines = [f"  {name} ({replaced[name][2]} times): {replaced[name][1]}" for name in names[:NUM_LISTED_SAMPLES]]
    if len(names) > len(lines):
        lines.append(f"  and {len(names) - len(lines)} more")
    return "\n".join([f"{len(names)} bad samples were replaced by others:", *lines])
