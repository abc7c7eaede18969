"""What an evaluator is, and the few things that all of them do.

An evaluator runs in two steps: `predict` asks the model, `score` computes the metrics from the
predictions alone. So a baseline is predictions without a model, scored by the same code.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.distributed import own_part, score_together
from transformers_upv2.model.distributed import rank
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2TaskModel

PredictionsT = TypeVar("PredictionsT")


class Evaluator(Protocol):
    """Anything that turns a model and a dataset into named numbers."""

    def __call__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> dict[str, float]:
        """Return the metrics of `model` on `dataset`, named without the task."""


class TaskEvaluator(ABC, Generic[PredictionsT]):
    """An evaluator that asks the model first and counts afterwards.

    Where ``torch.distributed`` is in use, it is to be called on all processes with the same arguments: each asks about
    a part of the dataset, and all get the metrics of the whole.

    Attributes:
        task_class: The class through which the model is asked; any of our models is seen through
            it. ``None`` asks the model as it is, for example one of another library that has the
            same outputs.
    """

    task_class: type[UniPerceiverV2TaskModel] | None

    @abstractmethod
    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> PredictionsT:
        """Ask the model about every example, and keep what its answers are compared with."""

    @abstractmethod
    def join(self, parts: Sequence[PredictionsT]) -> PredictionsT:
        """Put predictions about consecutive parts of a dataset together."""

    @abstractmethod
    def score(self, predictions: PredictionsT) -> dict[str, float]:
        """Compute the metrics, named without the task."""

    def __call__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> dict[str, float]:
        """Predict and score.

        Args:
            model: Any of the task models.
            processor: Its processor.
            dataset: A map-style dataset of plain dicts, as the readers in ``data/`` give.
            batch_size: Number of examples of one forward pass.
            progress: Whether a progress bar is shown.

        Returns:
            The metrics, named without the task.

        Raises:
            ValueError: If the dataset is empty or the batch size is not positive.
        """
        check_sizes(dataset, batch_size)
        part = own_part(dataset, batch_size)
        predictions = None
        if len(part) > 0:
            progress = progress and rank() == 0
            predictions = self.predict(model, processor, part, batch_size=batch_size, progress=progress)
        return score_together(predictions, self.join, self.score)

    def view(self, model: Any) -> Any:
        """Return `model` as a `task_class` that shares its parameters."""
        if self.task_class is None or isinstance(model, self.task_class):
            return model
        return self.task_class.from_model(model)


@contextmanager
def prediction_mode(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation without gradients, and restore the mode of every module afterwards.

    ``torch.inference_mode`` is avoided: what a model caches under it could not be used when
    training goes on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_sizes(dataset: Dataset | Sequence, batch_size: int) -> None:
    """Make sure that there is something to ask about.

    Raises:
        ValueError: If the dataset is empty or the batch size is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("`dataset` must hold at least one example, got 0.")


def iterate_batches(
    dataset: Dataset | Sequence, batch_size: int, description: str, progress: bool
) -> Iterator[list[Any]]:
    """Yield the examples of a map-style dataset in order, `batch_size` at a time.

    Raises:
        ValueError: If the dataset is empty or the batch size is not positive.
    """
    check_sizes(dataset, batch_size)
    num_examples = len(dataset)  # type: ignore[arg-type]
    with tqdm(total=num_examples, desc=description, disable=not progress, leave=False) as bar:
        for start in range(0, num_examples, batch_size):
            examples = [dataset[i] for i in range(start, min(start + batch_size, num_examples))]
            yield examples
            bar.update(len(examples))


def image_inputs(
    processor: ProcessorMixin, examples: Sequence[Mapping[str, Any]], model: nn.Module
) -> dict[str, Tensor]:
    """Return ``pixel_values`` and ``pixel_mask`` of the examples' images for `model`."""
    images = [example["image"] for example in examples]
    return to_model(processor.image_processor(images=images, return_tensors="pt"), model)


def text_inputs(processor: ProcessorMixin, texts: Sequence[str], model: nn.Module) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of the texts for `model`."""
    inputs = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
    return to_model({key: inputs[key] for key in ("input_ids", "attention_mask")}, model)


def to_model(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Move a batch to the model's device, and its floats to the model's dtype."""
    parameter = next(model.parameters())
    return {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for key, value in batch.items()
    }


def find_labels(model: Any, dataset: Dataset) -> list[int]:
    """Return the model's label of each class of the dataset, see `match_class_names`."""
    model_names = [model.config.id2label[i] for i in range(len(model.config.id2label))]
    return match_class_names(dataset.class_names, model_names)  # type: ignore[attr-defined]


def match_class_names(names: Sequence[str], model_names: Sequence[str]) -> list[int]:
    """Find classes by their names, so a dataset may have some of the model's classes alone, in any order.

    Args:
        names: The classes of a dataset.
        model_names: What the model knows, in the order of its labels.

    Returns:
        The label of each of ``names``.

    Raises:
        ValueError: If the model does not know one, or lists that differ hold a name twice.
    """
    if list(names) == list(model_names):
        return list(range(len(model_names)))
    label_of = {name: label for label, name in enumerate(model_names)}
    unknown = [name for name in names if name not in label_of]
    if unknown or len(set(names)) < len(names) or len(label_of) < len(model_names):
        raise ValueError(
            f"`dataset.class_names` must be labels of the model, each once, got {len(names)} names {names[:3]}... for "
            f"{len(model_names)} labels {list(model_names[:3])}..., unknown are {unknown[:3]}. "
            "Correct the names, or call `model.set_labels(dataset.class_names, tokenizer)`."
        )
    return [label_of[name] for name in names]
