"""Write the card of a checkpoint: a template, filled with what a run states about itself and what was measured."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from huggingface_hub import CardData

from transformers_upv2.evaluation.report import HEADLINE_METRICS
from transformers_upv2.evaluation.results import HUB_TASKS, model_index

TEMPLATE = "model_card_template.md"
THIS = "this checkpoint"
MEANINGS = {
    "blind": '"Blind" answers without looking at the image.',
    "ceiling": '"Ceiling" is the best there is\n(for captions: one reference against the others, which a caption that '
    "agrees with all of them can pass).",
}
TAGS = (
    "uniperceiver_v2",
    "image-classification",
    "object-detection",
    "image-segmentation",
    "image-to-text",
    "image-text-retrieval",
    "fill-mask",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card states beside the numbers: every field is a place of the template.

    Args:
        name: The checkpoint's name.
        folder: Where the card's code finds it; an upload puts the repository's name there.
        summary: What it is and what it knows.
        command: The command that trained it.
        data: What it was trained on.
        parts: Where pretrained parts came from.
        hardware: What it ran on, and how long.
        seed: The run's seed.
        evaluation_command: What measured the numbers.
        test_data: The Hub's id and a readable name of the data behind the numbers, by the key of the dataset as in
            ``{"detection": ("detection-datasets/coco", "COCO val2017")}``.
        example: An image beside the card, which its code shows; None if there is none.
        selection: How the checkpoint and its settings were chosen.
        limits: What it cannot do.
        credits: Whose work is in it, with licenses.
    """

    name: str
    folder: str
    summary: str
    command: str
    data: str
    parts: str
    hardware: str
    seed: int
    evaluation_command: str
    test_data: Mapping[str, tuple[str, str]]
    selection: str
    limits: str
    credits: str
    example: str | None = "example.jpg"


def fill_card(
    facts: CardFacts,
    metrics: Mapping[str, float],
    baselines: Mapping[str, float] | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> str:
    """Fill the template.

    Args:
        facts: What the run states.
        metrics: What was measured, under keys such as ``detection/box_ap``.
        baselines: Values of answers without an image, under the same keys.
        ceilings: The best values there are, under the same keys.

    Returns:
        The card, Markdown with the Hub's metadata on top.

    Raises:
        ValueError: If none of the main metrics was measured: a card without numbers says nothing.
    """
    keys = main_metrics(metrics)
    if not keys:
        raise ValueError(f"`metrics` must hold at least one of {list(HEADLINE_METRICS)}, got {sorted(metrics)}.")
    template = resources.files("transformers_upv2").joinpath(TEMPLATE).read_text(encoding="utf-8")
    places = {
        **dataclasses.asdict(facts),
        "metadata": _metadata(facts, metrics, keys),
        "metrics": _table(keys, {"blind": baselines or {}, THIS: metrics, "ceiling": ceilings or {}}),
        "imports": "\nfrom transformers.utils import cached_file" if facts.example else "",
        "image": f'cached_file(folder, "{facts.example}")' if facts.example else '"photo.jpg"',
        "evaluation_data": "; ".join(sorted({facts.test_data[dataset_of(key)][1] for key in keys})),
    }
    return Template(template).substitute(places)


def main_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Return the keys of the main metrics that were measured, on whatever datasets, the most important ones first."""
    measured = {key: f"{key.split('/')[0]}/{key.rpartition('/')[2]}" for key in metrics}
    return [key for headline in HEADLINE_METRICS for key, name in measured.items() if name == headline]


def dataset_of(key: str) -> str:
    """Return the key of a metric's dataset, such as ``retrieval/flickr30k``."""
    return key.rpartition("/")[0]


def _metadata(facts: CardFacts, metrics: Mapping[str, float], keys: list[str]) -> str:
    """Write the Hub's metadata; the main metrics are its model-index."""
    fields: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": HUB_TASKS[keys[0].split("/")[0]],
        "tags": list(TAGS),
        "model-index": model_index(facts.name, {key: metrics[key] for key in keys}, facts.test_data),
    }
    return CardData(**fields).to_yaml().strip()


def _table(keys: list[str], columns: Mapping[str, Mapping[str, float]]) -> str:
    """Write the numbers side by side, without the columns that were not measured, and what the columns mean."""
    shown = {title: values for title, values in columns.items() if any(key in values for key in keys)}
    rows = [["metric", *shown], *([key, *(_number(values.get(key)) for values in shown.values())] for key in keys)]
    first, *others = ("| " + " | ".join(row) + " |" for row in rows)
    table = "\n".join([first, "|---" * len(rows[0]) + "|", *others])
    meanings = " ".join(MEANINGS[title] for title in shown if title in MEANINGS)
    return f"{meanings}\n\n{table}" if meanings else table


def _number(value: float | None) -> str:
    """Write a value; -1 is the evaluation's sign for what the data does not define."""
    return "\u2013" if value in (None, -1) else f"{value:.3f}"
