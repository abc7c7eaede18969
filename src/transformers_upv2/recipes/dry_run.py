"""Check a recipe before anything is spent: its data, the memory of its model, the updates of every task."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from transformers_upv2.evaluation.detection import asked_about
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.recipes.building import (
    build_arguments,
    build_config,
    build_evaluators,
    build_transforms,
    check_reporting,
    open_evaluation_data,
    open_training_data,
)
from transformers_upv2.recipes.data_checks import check_datasets, check_shards, describe_images, look_at
from transformers_upv2.recipes.object_remarks import describe_objects, describe_shared_images
from transformers_upv2.recipes.recipe import Recipe
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments

BYTES_PER_PARAMETER = 16
"""A weight, its gradient and its two moments in float32."""


def describe_run(recipe: Recipe, root: Path, out: Path, world_size: int = 1) -> list[str]:
    """Read an example of every data set, check what would stop the run later and count what it will do.

    Args:
        recipe: The recipe.
        root: The data folder.
        out: Where the run would write.
        world_size: Number of processes of the run.

    Returns:
        Lines for a person.

    Raises:
        ValueError: If the recipe or its arguments are wrong, class names differ, or a stream has too few shards.
        ImportError: If what shows the curves is not installed.
        DataError: If a data set is missing or malformed, more of its first examples are bad than the run would bear,
            or too many images are missing.
    """
    # whether this machine can do bfloat16 does not matter here
    arguments = build_arguments(recipe.arguments | {"bf16": False}, out)
    datasets = open_training_data(recipe, root)
    evaluation = open_evaluation_data(recipe, root)
    build_transforms(recipe)
    check_datasets(datasets, evaluation, build_evaluators(recipe))
    check_shards(datasets, arguments, world_size)
    check_reporting(arguments)
    lines = ["data:"]
    for task, members in datasets.items():
        for name, member in members.items():
            reader = member[0] if isinstance(member, tuple) else member
            remarks = describe_images(f"{task} {name}", reader, arguments.max_bad_samples)
            found = look_at(f"{task} {name}", reader, arguments.max_bad_samples)
            lines.append(f"  {task:20} {name:12} {', '.join([*found, *remarks])}")
            lines += _indent(describe_objects(reader))
    for name, reader in evaluation.items():
        remarks = describe_images(f"evaluation {name}", reader, 0)
        found = look_at(f"evaluation {name}", asked_about(reader), 0)
        lines.append(f"  {name:20} {'evaluation':12} {', '.join([*found, *remarks])}")
        lines += _indent(describe_objects(reader))
        lines += _indent(describe_shared_images(reader, datasets.get(name.split("/")[0], {})))
    lines += ["updates:", *_describe_tasks(arguments, datasets, world_size)]
    return [*lines, *_describe_memory(recipe)]


def _indent(remarks: Iterable[str]) -> Iterator[str]:
    return (f"      {remark}" for remark in remarks)


def _describe_tasks(
    arguments: UniPerceiverV2TrainingArguments, datasets: dict[str, dict[str, Any]], world_size: int
) -> Iterator[str]:
    for task, each in arguments.for_tasks(datasets).items():
        updates = arguments.max_steps * (1.0 if arguments.sampling == "mixed" else each.sampling_probability)
        samples = updates * each.batch_size * arguments.gradient_accumulation_steps * world_size
        readers = [member[0] if isinstance(member, tuple) else member for member in datasets[task].values()]
        passes = ""
        if all(hasattr(reader, "__len__") for reader in readers):
            passes = f", {samples / sum(map(len, readers)):.1f} passes over its data"
        yield (
            f"  {task:20} about {updates:.0f} of {arguments.max_steps}, batch {each.batch_size} x "
            f"{arguments.gradient_accumulation_steps} x {world_size} processes: {samples:.0f} samples{passes}"
        )


def _describe_memory(recipe: Recipe) -> Iterator[str]:
    if "checkpoint" in recipe.model:
        config = AutoConfig.from_pretrained(recipe.model["checkpoint"])
    else:
        config = build_config(recipe.model)
    with torch.device("meta"):
        model = UniPerceiverV2ForMultiTask(config)
    number = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    yield (
        f"memory: {number / 1e6:.0f} million trainable parameters; weights, gradients and moments take "
        f"{number * BYTES_PER_PARAMETER / 2**30:.1f} GiB in float32 on every device"
    )
    yield "  activations come on top; the head of a shipped recipe states a measured peak"
