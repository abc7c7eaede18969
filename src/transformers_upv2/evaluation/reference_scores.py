"""The blind baseline and the ceiling of every metric, under the same keys as the metrics."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.evaluation.baselines import (
    caption_ceiling,
    caption_without_image,
    classify_by_color,
    guess_most_frequent_word,
    retrieve_by_color,
    shuffle_class_names,
)
from transformers_upv2.evaluation.captioning import CaptionPredictions
from transformers_upv2.evaluation.classification import ClassificationPredictions
from transformers_upv2.evaluation.detection import DetectionPredictions
from transformers_upv2.evaluation.evaluator import TaskEvaluator
from transformers_upv2.evaluation.language_modeling import MaskedWordPredictions, text_words
from transformers_upv2.evaluation.retrieval import RetrievalPredictions

TRIVIAL_CEILING = 1.0
"""The best possible value of every metric that is a share or an AP."""


@dataclass(frozen=True)
class BlindQuestion:
    """What a baseline may look at.

    Attributes:
        model: Only detection uses it: its detections get wrong class names.
        processor: The model's processor.
        dataset: The test split.
        train_dataset: The training split of the same task.
        evaluator: The evaluator that will score the answer.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    dataset: Dataset
    train_dataset: Dataset
    evaluator: Any


def _blind_classification(question: BlindQuestion) -> ClassificationPredictions:
    return classify_by_color(question.dataset, question.train_dataset)


def _blind_detection(question: BlindQuestion) -> DetectionPredictions:
    dataset = question.dataset
    found = question.evaluator.predict(question.model, question.processor, dataset)
    return shuffle_class_names(found, dataset.category_ids)  # type: ignore[attr-defined]


def _blind_captioning(question: BlindQuestion) -> CaptionPredictions:
    train_captions = list(captions_by_image(question.train_dataset).values())
    return caption_without_image(captions_by_image(question.dataset), train_captions)


def _blind_retrieval(question: BlindQuestion) -> RetrievalPredictions:
    captions_per_image = question.evaluator.captions_per_image
    return retrieve_by_color(question.dataset, question.train_dataset, captions_per_image)


def _blind_language_modeling(question: BlindQuestion) -> MaskedWordPredictions:
    tokenizer, train = question.processor.tokenizer, question.train_dataset
    texts = [train[i]["text"] for i in range(len(train))]  # type: ignore[arg-type]
    asked = question.evaluator.asked_words(tokenizer, question.dataset)
    return guess_most_frequent_word(asked, text_words(tokenizer, texts))


BLIND_ANSWERS: dict[str, Callable[[BlindQuestion], Any]] = {
    "classification": _blind_classification,
    "detection": _blind_detection,
    "captioning": _blind_captioning,
    "retrieval": _blind_retrieval,
    "language_modeling": _blind_language_modeling,
}
"""How each task is answered without looking."""


def blind_baselines(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    datasets: Mapping[str, Dataset],
    train_datasets: Mapping[str, Dataset],
    evaluators: Mapping[str, TaskEvaluator],
) -> dict[str, float]:
    """Score what can be known without looking.

    Args:
        model: The model whose detections get wrong class names; nothing else asks it.
        processor: Its processor.
        datasets: The test dataset of each task.
        train_datasets: The training dataset of the same tasks.
        evaluators: The evaluator of each task.

    Returns:
        Metrics such as ``detection/box_ap``.

    Raises:
        ValueError: If a task has no training dataset.
    """
    missing = datasets.keys() - train_datasets.keys()
    if missing:
        raise ValueError(
            f"`train_datasets` must have every task of `datasets`, got none for {sorted(missing)}. "
            "Pass the training split: baselines learn from it."
        )
    scores: dict[str, float] = {}
    for task, dataset in datasets.items():
        evaluator = evaluators[task]
        question = BlindQuestion(model, processor, dataset, train_datasets[task], evaluator)
        values = evaluator.score(BLIND_ANSWERS[task](question))
        scores |= {f"{task}/{name}": value for name, value in values.items()}
    return scores


def ceilings(metrics: Mapping[str, float], captions_dataset: Dataset | None) -> dict[str, float]:
    """Return the best value that each metric can reach.

    For captions it is what people reach against each other; everything else can be perfect.

    Args:
        metrics: Metrics such as ``detection/box_ap``; only the keys are read.
        captions_dataset: The test dataset of captioning, if that was evaluated.
    """
    values = dict.fromkeys(metrics, TRIVIAL_CEILING)
    if captions_dataset is not None:
        people = caption_ceiling(captions_by_image(captions_dataset))
        values |= {f"captioning/{name}": value for name, value in people.items()}
    return values


def captions_by_image(dataset: Dataset) -> dict[Hashable, Sequence[str]]:
    """Return the captions of each image id."""
    examples = (dataset[index] for index in range(len(dataset)))  # type: ignore[arg-type]
    return {example["image_id"]: example["captions"] for example in examples}
