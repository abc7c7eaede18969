"""Training arguments: the five quantities of every task, sampling, optimizer and collators."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments

from transformers_upv2.training.sampler import normalized_probabilities

SAMPLINGS = ("unmixed", "mixed")
OPTIMIZERS = ("tbgn", "adamw")
SMALLEST = {
    "sampling_probabilities": 0.0,
    "task_weights": 0.0,
    "loss_weights": 0.0,
    "batch_sizes": 1,
    "num_workers": 0,
}
"""The smallest value of an argument that has a number for every task; where it is whole, they all are."""
WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "optim": (("adamw_torch", "adamw_torch_fused"), "Choose one with `optimizer`, or pass your own in `optimizers`."),
    "auto_find_batch_size": ((False,), "Every task has a batch size of its own: lower `batch_sizes`."),
    "train_sampling_strategy": (("random",), "Every task is read in a random order."),
}
"""Arguments of transformers that would have no effect: what they may be, and what to do instead."""


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """``transformers.TrainingArguments`` for several tasks.

    Every argument that is a dict from tasks to numbers can be given on the command line as JSON,
    such as ``--batch_sizes '{"detection": 8}'``. Tasks that it leaves out have the default.

    Args:
        sampling_probabilities: s_k, how often each task is sampled; divided by their sum. Default:
            all tasks equally often. If given, it names every task.
        task_weights: ω_k, the length of a task's gradient under ``optimizer="tbgn"``. Default 1.
        loss_weights: w_k, the factor of a task's loss. It cancels under ``optimizer="tbgn"``.
            Default 1.
        batch_sizes: Samples per device and micro-batch. Default ``per_device_train_batch_size``.
        num_workers: Loader processes of each task. Default ``dataloader_num_workers``.
        sampling: "unmixed": one task an update. "mixed": one batch of every task an update, the
            losses added with s_k w_k.
        optimizer: "tbgn": TaskBalancedAdamW. "adamw": ``torch.optim.AdamW`` in which a missing gradient counts as
            zero, with gradients clipped if ``max_grad_norm`` is positive.
        lr_multipliers: Prefixes of parameter names, and by what they multiply the learning rate.
        max_bad_samples: Training stops when more samples than this had to be replaced.
    """

    _task_fields: ClassVar[tuple[str, ...]] = (
        "sampling_probabilities",
        "task_weights",
        "loss_weights",
        "batch_sizes",
        "num_workers",
    )
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, *_task_fields, "lr_multipliers"]

    sampling_probabilities: dict | str | None = field(
        default=None, metadata={"help": "How often each task is sampled, JSON. Default: equally."}
    )
    task_weights: dict | str | None = field(
        default=None, metadata={"help": "Length of each task's gradient under tbgn, JSON."}
    )
    loss_weights: dict | str | None = field(
        default=None, metadata={"help": "Factor of each task's loss, JSON. Cancels under tbgn."}
    )
    batch_sizes: dict | str | None = field(default=None, metadata={"help": "Samples per device of each task, JSON."})
    num_workers: dict | str | None = field(default=None, metadata={"help": "Loader processes of each task, JSON."})
    sampling: Literal["unmixed", "mixed"] = field(
        default="unmixed", metadata={"help": "One task an update, or a batch of every task."}
    )
    optimizer: Literal["tbgn", "adamw"] = field(
        default="tbgn", metadata={"help": "TaskBalancedAdamW, or torch.optim.AdamW."}
    )
    lr_multipliers: dict | str | None = field(
        default=None,
        metadata={"help": "Prefix of parameter names -> learning rate factor, JSON."},
    )
    max_bad_samples: int = field(
        default=100, metadata={"help": "Stop when more samples than this had to be replaced."}
    )
    # Other defaults than in transformers
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the collators choose the columns."}
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Clip gradients to this norm, with optimizer=adamw only."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True, metadata={"help": "Must stay true unless every task uses every parameter."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Batch entries that are labels."}
    )
    eval_do_concat_batches: bool = field(
        default=False, metadata={"help": "Whether to concatenate the outputs of all batches."}
    )

    def __post_init__(self) -> None:
        """Parse and check the arguments."""
        super().__post_init__()
        self._check_dicts()
        for name, (accepted, advice) in WITHOUT_EFFECT.items():
            value = getattr(self, name, accepted[0])
            if value not in accepted:
                raise ValueError(f"`{name}` must be one of {list(accepted)}, got {value!r}. {advice}")
        if self.max_bad_samples < 0:
            raise ValueError(f"`max_bad_samples` must not be negative, got {self.max_bad_samples}.")
        for name, choices in (("sampling", SAMPLINGS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        if self.optimizer == "tbgn" and self.sampling == "mixed":
            raise ValueError(
                "`optimizer='tbgn'` normalizes the gradient of one task, got "
                "`sampling='mixed'`, where an update adds up all tasks. Use `optimizer='adamw'`."
            )
        if self.optimizer == "tbgn" and self.max_grad_norm > 0:
            raise ValueError(
                "`max_grad_norm` must be 0 with `optimizer='tbgn'`, which gives every gradient "
                f"the same length, got {self.max_grad_norm}. Set it to 0, or `optimizer='adamw'`."
            )

    def _check_dicts(self) -> None:
        for name in (*self._task_fields, "lr_multipliers"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, dict):
                raise ValueError(
                    f"`{name}` must be a dict or a JSON object such as '{{\"detection\": 2}}', got {value!r}."
                )
            if name in SMALLEST:
                for task, number in (value or {}).items():
                    _check_number(name, task, number)

    def for_tasks(self, tasks: Collection[str]) -> dict[str, "TaskArguments"]:
        """Collect what the arguments say about each task.

        Args:
            tasks: The tasks that have a data set.

        Raises:
            ValueError: If an argument names another task, or ``sampling_probabilities`` leaves one
                out.
        """
        for name in self._task_fields:
            unknown = sorted(set(getattr(self, name) or {}) - set(tasks))
            if unknown:
                raise ValueError(
                    f"`{name}` must name only tasks with a data set, which are {sorted(tasks)}, "
                    f"got {unknown}. Pass a data set or remove the entry."
                )
        missing = sorted(set(tasks) - set(self.sampling_probabilities or tasks))
        if missing:
            raise ValueError(
                f"`sampling_probabilities` must name every task with a data set, it leaves out "
                f"{missing}. Add an entry or remove the data set."
            )
        probabilities = normalized_probabilities(
            {task: self._of_task("sampling_probabilities", task, 1.0) for task in tasks}
        )
        return {
            task: TaskArguments(
                sampling_probability=probabilities[task],
                task_weight=self._of_task("task_weights", task, 1.0),
                loss_weight=self._of_task("loss_weights", task, 1.0),
                batch_size=self._of_task("batch_sizes", task, self.per_device_train_batch_size),
                num_workers=self._of_task("num_workers", task, self.dataloader_num_workers),
            )
            for task in tasks
        }

    def _of_task(self, name: str, task: str, default: float) -> Any:
        return (getattr(self, name) or {}).get(task, default)


def _check_number(name: str, task: str, number: object) -> None:
    """Check one of the numbers of a task."""
    smallest = SMALLEST[name]
    is_whole = isinstance(smallest, int)
    is_number = isinstance(number, Integral if is_whole else Real) and not isinstance(number, bool)
    if not is_number or not smallest <= number < math.inf:  # type: ignore[operator]  # it is a number
        kind = "whole numbers" if is_whole else "finite numbers"
        raise ValueError(f"`{name}` must be {kind} of at least {smallest}, got {number!r} for task {task!r}.")


@dataclass(frozen=True)
class TaskArguments:
    """The five quantities of one task; the fifth, the image size, belongs to the processor.

    Args:
        sampling_probability: s_k.
        task_weight: ω_k.
        loss_weight: w_k.
        batch_size: Samples per device and micro-batch.
        num_workers: Loader processes.
    """

    sampling_probability: float
    task_weight: float
    loss_weight: float
    batch_size: int
    num_workers: int


@dataclass
class UniPerceiverV2TrainingArguments(MultiTaskTrainingArguments):
    """Arguments of ``UniPerceiverV2Trainer``.

    Args:
        max_text_length: Longest text in tokens, ``<s>`` and ``</s>`` included; the rest is cut off.
        mask_probability: Share of the words that masked language modeling asks for.
        image_options: Options of the image processor for each task, such as its ``size``.
    """

    _task_fields = (*MultiTaskTrainingArguments._task_fields, "image_options")
    _VALID_DICT_FIELDS = [*MultiTaskTrainingArguments._VALID_DICT_FIELDS, "image_options"]

    max_text_length: int = field(default=64, metadata={"help": "Longest text in tokens; the rest is cut off."})
    mask_probability: float = field(
        default=0.15, metadata={"help": "Share of the words that language modeling asks for."}
    )
    image_options: dict | str | None = field(
        default=None,
        metadata={"help": "Task -> options of the image processor, such as its size, JSON."},
    )
