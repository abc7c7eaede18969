"""Top-1 and top-5 accuracy, as a module of the library `evaluate`."""

import datasets
import evaluate
import torch

from transformers_upv2.evaluation.classification import ClassificationEvaluator, ClassificationPredictions


class TopKAccuracy(evaluate.Metric):
    """Share of the images whose class is first, or among the first five."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions: a score for every class; references: the index of the true class.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        found = ClassificationPredictions(torch.tensor(predictions), torch.tensor(references))
        return ClassificationEvaluator().score(found)
