"""The twelve COCO numbers for boxes and masks, as a module of the library `evaluate`."""

import json
from collections.abc import Sequence
from pathlib import Path

import datasets
import evaluate

from transformers_upv2.data.json_files import read_json
from transformers_upv2.evaluation.detection import DetectionEvaluator, DetectionPredictions


class CocoAveragePrecision(evaluate.Metric):
    """AP and AR of detections that lie in a COCO results file, against a COCO instances file.

    ``compute(predictions=[results.json], references=[instances.json])``; both are paths, since a row of a table cannot
    hold the annotations of an image. All images of the instances file take part.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Lin et al., Microsoft COCO (https://arxiv.org/abs/1405.0312)",
            inputs_description="predictions: a COCO results file; references: its COCO instances file.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        if len(predictions) != 1:
            raise ValueError(
                f"`predictions` must hold one results file, got {len(predictions)}. Compute one at a time."
            )
        results = json.loads(Path(predictions[0]).read_text(encoding="utf-8"))
        content = read_json(Path(references[0]))
        return DetectionEvaluator().score(
            DetectionPredictions(
                annotation_file=Path(references[0]),
                image_ids=[image["id"] for image in content["images"]],
                boxes=[result for result in results if "bbox" in result],
                masks=[result for result in results if "segmentation" in result] or None,
            )
        )
