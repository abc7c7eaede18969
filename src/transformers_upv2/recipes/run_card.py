"""The card of a run: what its recipe and its trainer know, for its author to complete."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from transformers_upv2.model_card import CardFacts, dataset_of, fill_card, main_metrics
from transformers_upv2.recipes.building import PATHS, pretrained_parts
from transformers_upv2.recipes.recipe import Recipe, Tree
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

CARD = "README.md"


def write_card(
    recipe: Recipe, root: Path, trainer: UniPerceiverV2Trainer, metrics: Mapping[str, float], run_time: str
) -> str:
    """Write the card into the run's folder, unless one is there.

    Args:
        recipe: The recipe.
        root: The data folder.
        trainer: After training.
        metrics: What was measured, under keys such as ``detection/box_ap``.
        run_time: How long it took.

    Returns:
        What was done, for a person.
    """
    out = Path(str(trainer.args.output_dir))
    card = out / CARD
    if card.exists():
        return f"{card} stays as it was; remove it and give the command again to have it written from this run."
    if not main_metrics(metrics):
        return f"{card} is not written: a card needs numbers, and the recipe evaluates on nothing."
    card.write_text(fill_card(_describe_run(recipe, root, trainer, metrics, run_time), metrics), encoding="utf-8")
    return f"{card} is the card of this run. Complete its limits and read it before you publish it."


def _describe_run(
    recipe: Recipe, root: Path, trainer: UniPerceiverV2Trainer, metrics: Mapping[str, float], run_time: str
) -> CardFacts:
    out, steps = Path(str(trainer.args.output_dir)), trainer.state.global_step
    start = recipe.model.get("checkpoint") or f"preset `{recipe.model.get('preset')}`"
    return CardFacts(
        name=out.name,
        folder=out.as_posix(),
        summary=f"Trained on {', '.join(recipe.data)}, {steps} updates in all, from {start}.",
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        data="; ".join(_describe_data(recipe, trainer)),
        parts=", ".join(_describe_parts(recipe.model)),
        hardware=f"{trainer.args.world_size} x {_device_name(trainer.args.device)}, {run_time}",
        seed=trainer.args.seed,
        evaluation_command="the end of the same command",
        test_data={
            key: (root.resolve().name, f"{_source(options)} ({len(trainer.eval_dataset[key])} examples)")
            for key, options in recipe.evaluation.items()
            if key in map(dataset_of, metrics)
        },
        selection="One seed; the weights of the last update.",
        limits="*Not written yet: a run does not know where its model fails.*",
        credits=f"It starts from {start}, whose licence holds for it as well.",
        example=None,
    )


def _describe_data(recipe: Recipe, trainer: UniPerceiverV2Trainer) -> Iterator[str]:
    for task, members in recipe.data.items():
        for name, options in members.items():
            dataset = trainer.train_dataset[task][name]
            reader = dataset[0] if isinstance(dataset, tuple) else dataset
            size = f"{len(reader)} examples" if hasattr(reader, "__len__") else f"{reader.num_shards} shards, streamed"
            yield f"{task}: `{_source(options)}` ({size})"


def _source(options: Tree) -> str:
    """Name the file or folder that a reader reads first."""
    value = next(options[key] for key in PATHS if key in options)
    return str(value[0] if isinstance(value, list) else value)


def _describe_parts(model: Tree) -> Iterator[str]:
    if "checkpoint" in model:
        yield f"all of `{model['checkpoint']}`"
        return
    parts = pretrained_parts(model)
    yield from (f"{name} `{source}`" for name, source in parts.items())
    yield "all else random" if parts else "none"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
