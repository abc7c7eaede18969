"""Our metrics for the library `evaluate`, which loads them from their files, without a network.

import evaluate
from transformers_upv2.metrics import metric_path
scores = evaluate.load(metric_path("caption_scores")).compute(predictions=[...], references=[[...], ...])
"""

from pathlib import Path

NAMES = ("caption_scores", "coco_average_precision", "retrieval_recall", "top_k_accuracy")


def metric_path(name: str) -> str:
    """Return the file that ``evaluate.load`` takes.

    Args:
        name: One of ``NAMES``.

    Raises:
        ValueError: If there is no such metric.
    """
    if name not in NAMES:
        raise ValueError(f"`name` must be one of {list(NAMES)}, got {name!r}.")
    return str(Path(__file__).parent / f"{name}.py")
