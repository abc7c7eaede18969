"""Write the card of a checkpoint: a template, filled with what a run states about itself and what was measured."""

import dataclasses
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from huggingface_hub import CardData

from transformers_upv2.evaluation.report import HEADLINE_METRICS
from transformers_upv2.evaluation.results import model_index

TEMPLATE = "model_card_template.md"
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
        test_data: The Hub's id of the data behind the numbers, and a readable name.
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
    test_data: tuple[str, str]
    selection: str
    limits: str
    credits: str


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
    keys = [key for key in HEADLINE_METRICS if key in metrics]
    if not keys:
        raise ValueError(f"`metrics` must hold at least one of {list(HEADLINE_METRICS)}, got {sorted(metrics)}.")
    columns = (baselines or {}, metrics, ceilings or {})
    rows = [f"| {key} | " + " | ".join(_number(column.get(key)) for column in columns) + " |" for key in keys]
    template = resources.files("transformers_upv2").joinpath(TEMPLATE).read_text(encoding="utf-8")
    places = {**dataclasses.asdict(facts), "metadata": _metadata(facts, metrics, keys), "metrics": "\n".join(rows)}
    return Template(template).substitute(places)


def _metadata(facts: CardFacts, metrics: Mapping[str, float], keys: list[str]) -> str:
    """Write the Hub's metadata; the main metrics are its model-index."""
    datasets = {key.rpartition("/")[0]: facts.test_data for key in keys}
    fields: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "object-detection",
        "tags": list(TAGS),
        "model-index": model_index(facts.name, {key: metrics[key] for key in keys}, datasets),
    }
    return CardData(**fields).to_yaml().strip()


def _number(value: float | None) -> str:
    """Write a value; -1 is the evaluation's sign for what the data does not define."""
    return "\u2013" if value in (None, -1) else f"{value:.3f}"
