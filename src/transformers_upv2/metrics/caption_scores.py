"""BLEU-1 to BLEU-4, ROUGE-L and CIDEr of captions, as a module of the library `evaluate`."""

import datasets
import evaluate

from transformers_upv2.evaluation.captioning import score_captions

_CITATION = "Chen et al., Microsoft COCO Captions (https://arxiv.org/abs/1504.00325)"


class CaptionScores(evaluate.Metric):
    """The COCO caption evaluation without Java; CIDEr's word weights come from all references together."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=__doc__,
            citation=_CITATION,
            inputs_description="predictions: one caption an image; references: a list of captions an image.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return score_captions(dict(enumerate(predictions)), dict(enumerate(references)))
