"""The forms in which metrics are handed on: JSON, a row of the paper's Table 6, metadata of a model card.

All of them start from what an evaluation returns: ``{"detection/box_ap": 0.1, "retrieval/flickr30k/image_to_text_r1":
0.2, ...}``, the key of the dataset and the name of the metric with a slash between them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PARAMETERS_COLUMN = "#params"


@dataclass(frozen=True)
class Column:
    """One column of Table 6.

    Attributes:
        title: Task, data and metric.
        dataset: The key of its dataset.
        metric: The name of the metric.
    """

    title: str
    dataset: str
    metric: str


TABLE_6 = (
    Column("ImageNet-1k Acc", "classification", "top1"),
    Column("COCO box mAP", "detection", "box_ap"),
    Column("COCO mask mAP", "detection", "mask_ap"),
    Column("COCO caption B@4", "captioning", "bleu4"),
    Column("COCO caption CIDEr", "captioning", "cider"),
    Column("COCO text R@1", "retrieval", "image_to_text_r1"),
    Column("Flickr30k text R@1", "retrieval/flickr30k", "image_to_text_r1"),
    Column("COCO image R@1", "retrieval", "text_to_image_r1"),
    Column("Flickr30k image R@1", "retrieval/flickr30k", "text_to_image_r1"),
)
"""The columns of Table 6 in its order; "text retrieval" finds texts for an image."""

HUB_TASKS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "captioning": "image-to-text",
    "retrieval": "image-text-to-image",
    "language_modeling": "fill-mask",
}
"""The Hub's name of each task; masks are told apart by ``mask_`` in the metric."""


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Write metrics as JSON, in sorted order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(metrics), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_results(
    out: Path,
    model_name: str,
    metrics: Mapping[str, float],
    table: str,
    datasets: Mapping[str, tuple[str, str]],
) -> None:
    """Write metrics in all three forms.

    Args:
        out: Folder for ``metrics.json``, ``table_6.md`` and ``model_index.yaml``, made if it is missing.
        model_name: The model.
        metrics: What was measured.
        table: What `format_table_6` made of them, in Markdown.
        datasets: As for `model_index`.
    """
    write_metrics(metrics, out / "metrics.json")
    (out / "table_6.md").write_text(table + "\n", encoding="utf-8")
    metadata = {"model-index": model_index(model_name, metrics, datasets)}
    (out / "model_index.yaml").write_text(yaml.safe_dump(metadata, sort_keys=False), encoding="utf-8")


def format_table_6(runs: Mapping[str, Mapping[str, float]], parameters: Mapping[str, int] | None = None) -> str:
    """Write a Markdown table with the columns of the paper's Table 6, in percent as there.

    Args:
        runs: The metrics of each model, by its name.
        parameters: Number of deployed parameters of each model.

    Returns:
        The table; a dash stands for what was not measured.
    """
    lines = [
        ["Methods", PARAMETERS_COLUMN, *(column.title for column in TABLE_6)],
        ["---", *["---:"] * (len(TABLE_6) + 1)],
    ]
    for name, metrics in runs.items():
        number = (parameters or {}).get(name)
        values = [metrics.get(f"{column.dataset}/{column.metric}") for column in TABLE_6]
        lines.append([name, "-" if number is None else f"{number / 1e6:.0f}M", *map(_percent, values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def model_index(
    model_name: str, metrics: Mapping[str, float], datasets: Mapping[str, tuple[str, str]]
) -> list[dict[str, Any]]:
    """Make the ``model-index`` of a model card's metadata.

    Args:
        model_name: The model.
        metrics: What was measured; numbers that the data does not define (-1) are left out.
        datasets: The Hub's id and a readable name of the dataset behind each key, such as ``{"detection":
            ("detection-datasets/coco", "COCO val2017")}``.

    Returns:
        Plain lists and dicts, one result for each dataset and kind of task.

    Raises:
        ValueError: If a metric's dataset has no entry.
    """
    results: dict[tuple[str, str], dict[str, Any]] = {}
    for key, value in metrics.items():
        dataset, _, metric = key.rpartition("/")
        if dataset not in datasets:
            raise ValueError(
                f"`datasets` must have an entry for {dataset!r} of the metric {key!r}, got {sorted(datasets)}."
            )
        if value == -1:
            continue
        task = "image-segmentation" if metric.startswith("mask_") else HUB_TASKS[dataset.split("/")[0]]
        identifier, readable = datasets[dataset]
        result = results.setdefault(
            (dataset, task), {"task": {"type": task}, "dataset": {"type": identifier, "name": readable}, "metrics": []}
        )
        result["metrics"].append({"type": metric, "name": metric, "value": round(float(value), 4)})
    return [{"name": model_name, "results": list(results.values())}]


def _percent(value: float | None) -> str:
    return "-" if value is None or value == -1 else f"{100 * value:.1f}"
