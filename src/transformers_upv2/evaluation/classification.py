"""Top-1 and top-5 accuracy of image classification."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.evaluator import (
    TaskEvaluator,
    find_labels,
    image_inputs,
    iterate_batches,
    prediction_mode,
)
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2TaskModel,
)


@dataclass(frozen=True)
class ClassificationPredictions:
    """Scores and truth of every example.

    Attributes:
        logits: One score a class, ``(examples, classes)``.
        labels: The true class, ``(examples,)``.
    """

    logits: Tensor
    labels: Tensor


@dataclass
class ClassificationEvaluator(TaskEvaluator[ClassificationPredictions]):
    """Share of the images whose class is first, or among the first five.

    Inputs: examples with ``image`` and ``label``, a dataset with ``class_names``.
    """

    task_class: type[UniPerceiverV2TaskModel] | None = UniPerceiverV2ForImageClassification

    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> ClassificationPredictions:
        """Score every class of every image."""
        view = self.view(model)
        label_of_class = find_labels(view, dataset)
        logits: list[Tensor] = []
        labels: list[int] = []
        with prediction_mode(view):
            for examples in iterate_batches(dataset, batch_size, "classification", progress):
                logits.append(view(**image_inputs(processor, examples, view)).logits.float().cpu())
                labels.extend(label_of_class[example["label"]] for example in examples)
        return ClassificationPredictions(torch.cat(logits), torch.tensor(labels))

    def join(self, parts: Sequence[ClassificationPredictions]) -> ClassificationPredictions:
        """Put parts together."""
        return ClassificationPredictions(
            torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts])
        )

    def score(self, predictions: ClassificationPredictions) -> dict[str, float]:
        """Return ``top1`` and ``top5``; with fewer than five classes ``top5`` is 1."""
        num_best = min(5, predictions.logits.shape[1])
        best = predictions.logits.topk(num_best).indices  # (examples, num_best)
        hits = best == predictions.labels[:, None]
        return {
            "top1": hits[:, 0].float().mean().item(),
            "top5": hits.any(dim=1).float().mean().item(),
        }
