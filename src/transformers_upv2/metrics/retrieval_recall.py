"""Recall of image-text retrieval in both directions, as a module of the library `evaluate`."""

import datasets
import evaluate
import torch

from transformers_upv2.evaluation.retrieval import RetrievalEvaluator, RetrievalPredictions


class RetrievalRecall(evaluate.Metric):
    """Recall at 1, 5 and 10 from the normalized features of both sides; an image may have several texts."""

    def _info(self) -> evaluate.MetricInfo:
        feature = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=(
                "predictions: the feature of each text; references: the feature of its image with the image's number "
                "as `image_id`; texts of one image repeat it."
            ),
            features=datasets.Features(
                {"predictions": feature, "references": {"image_id": datasets.Value("int64"), "feature": feature}}
            ),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[dict], fold_size: int | None = None
    ) -> dict[str, float]:
        images = {reference["image_id"]: reference["feature"] for reference in references}
        index = {image_id: number for number, image_id in enumerate(images)}
        found = RetrievalPredictions(
            torch.tensor(list(images.values())),
            torch.tensor(predictions),
            torch.tensor([index[reference["image_id"]] for reference in references]),
        )
        return RetrievalEvaluator(fold_size=fold_size).score(found)
