"""A recipe as it is read: one YAML file with five parts, and changes to it from the command line."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from transformers_upv2.model.tasks import get_task
from transformers_upv2.recipes import FOLDER, NAMES
from transformers_upv2.recipes.recipe_checks import (
    check_image_options,
    check_max_steps,
    check_model_source,
    check_transforms,
)

Tree = dict[str, Any]


class Loader(yaml.SafeLoader):
    """Reads booleans as YAML 1.2 does: ``save_strategy: no`` is a word, only true and false are booleans."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass
class Recipe:
    """All that a run is made of, as plain dicts.

    Attributes:
        model: Either ``checkpoint``, a saved model; or ``preset`` with ``config`` (fields that differ from it),
            ``parts`` (arguments of ``from_pretrained_parts``, by default those of the preset) and ``tokenizer``.
        data: Training data, as task -> name -> ``reader`` with its arguments, and a ``weight`` in the task.
        arguments: Of ``UniPerceiverV2TrainingArguments``.
        processor: Of ``UniPerceiverV2ImageProcessor``.
        transforms: Augmentation, as task -> list of ``name`` with its arguments.
        evaluation: Data to evaluate on, as ``task`` or ``task/name`` -> ``reader`` with its arguments.
        evaluators: Options of the evaluator of a task, such as ``num_beams``.
    """

    model: Tree
    data: dict[str, dict[str, Tree]]
    arguments: Tree = field(default_factory=dict)
    processor: Tree = field(default_factory=dict)
    transforms: dict[str, list[Tree]] = field(default_factory=dict)
    evaluation: dict[str, Tree] = field(default_factory=dict)
    evaluators: dict[str, Tree] = field(default_factory=dict)

    def restrict(self, tasks: Collection[str]) -> "Recipe":
        """Return the recipe for some of its tasks alone.

        Raises:
            ValueError: If it does not train one of them.
        """
        unknown = sorted(set(tasks) - set(self.data))
        if unknown:
            raise ValueError(f"`tasks` must be among those of the recipe, {sorted(self.data)}, got {unknown}.")

        def keep(tree: Any) -> Any:
            is_by_task = isinstance(tree, Mapping) and tree and all(key.split("/")[0] in self.data for key in tree)
            return {key: value for key, value in tree.items() if key.split("/")[0] in tasks} if is_by_task else tree

        parts = {each.name: keep(getattr(self, each.name)) for each in fields(self)}
        return Recipe(**parts | {"arguments": {key: keep(value) for key, value in self.arguments.items()}})


def read_recipe(config: str, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe and change it.

    Args:
        config: A recipe's name or a YAML file.
        changes: Such as ``arguments.max_steps=100``: dotted keys and values in YAML; ``null`` removes a key.

    Raises:
        ValueError: If there is no such recipe, or a part of it is missing, unknown or would be ignored.
    """
    path = FOLDER / f"{config}.yaml" if config in NAMES else Path(config)
    if not path.is_file():
        raise ValueError(f"`config` must be one of {list(NAMES)} or a YAML file, got {config!r}.")
    tree = yaml.load(path.read_text(encoding="utf-8"), Loader)
    for change in changes:
        apply_change(tree, change)
    known = [each.name for each in fields(Recipe)]
    unknown = sorted(set(tree) - set(known))
    missing = sorted({"model", "data"} - set(tree))
    if unknown or missing:
        raise ValueError(f"{path}: the parts of a recipe are {known}, got the unknown {unknown}, missing {missing}.")
    recipe = Recipe(**tree)
    for key in [*recipe.data, *recipe.transforms, *recipe.evaluation, *recipe.evaluators]:
        get_task(key.split("/")[0])
    check_model_source(recipe.model)
    check_image_options(recipe.processor, "processor")
    for task, options in recipe.arguments.get("image_options", {}).items():
        check_image_options(options, f"arguments.image_options.{task}")
    check_transforms(recipe.transforms, recipe.data)
    check_max_steps(recipe.arguments)
    return recipe


def apply_change(tree: Tree, change: str) -> None:
    """Set one value of a tree in place.

    Raises:
        ValueError: If it has no equals sign or goes through what is no branch.
    """
    key, equals, value = change.partition("=")
    *branches, leaf = key.split(".")
    if not equals:
        raise ValueError(f"A change must look like 'arguments.max_steps=100', got {change!r}.")
    for branch in branches:
        tree = tree.setdefault(branch, {})
        if not isinstance(tree, dict):
            raise ValueError(
                f"A change must go through parts of the recipe, got {change!r}, where {branch!r} is a value."
            )
    tree[leaf] = yaml.load(value, Loader)
    if tree[leaf] is None:
        del tree[leaf]
