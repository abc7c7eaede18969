"""All tasks at once: which evaluator belongs to which task, and one call that runs them."""

from collections.abc import Mapping

from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.classification import ClassificationEvaluator
from transformers_upv2.evaluation.detection import DetectionEvaluator
from transformers_upv2.evaluation.evaluator import Evaluator
from transformers_upv2.evaluation.language_modeling import LanguageModelingEvaluator
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator


def default_evaluators() -> dict[str, Evaluator]:
    """Return the evaluator of every task."""
    return {
        "classification": ClassificationEvaluator(),
        "detection": DetectionEvaluator(),
        "captioning": CaptioningEvaluator(),
        "retrieval": RetrievalEvaluator(),
        "language_modeling": LanguageModelingEvaluator(),
    }


def evaluate_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    datasets: Mapping[str, Dataset],
    evaluators: Mapping[str, Evaluator] | None = None,
    batch_size: int = 16,
) -> dict[str, float]:
    """Evaluate a model on one dataset a task, or on several.

    Args:
        model: Any of the task models.
        processor: Its processor.
        datasets: A dataset under each task's name; a slash may follow to tell several apart, as
            in ``{"detection": ..., "retrieval/flickr30k": ...}``.
        evaluators: The evaluator of each task, by default `default_evaluators`.
        batch_size: Number of examples of one forward pass.

    Returns:
        All metrics under the dataset's key, such as ``detection/box_ap``.

    Raises:
        ValueError: If a dataset's task has no evaluator.
    """
    evaluators = default_evaluators() if evaluators is None else evaluators
    for key in datasets:
        if key.split("/")[0] not in evaluators:
            raise ValueError(
                f"The keys of `datasets` must start with one of {sorted(evaluators)}, got {key!r}. "
                "Rename the key or pass an evaluator for it."
            )
    metrics: dict[str, float] = {}
    for key, dataset in datasets.items():
        values = evaluators[key.split("/")[0]](model, processor, dataset, batch_size=batch_size)
        metrics |= {f"{key}/{name}": value for name, value in values.items()}
    return metrics
