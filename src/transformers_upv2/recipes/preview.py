"""Show what a recipe would train on, as it is in the data and as augmentation changes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers_upv2.data.examples import Transform
from transformers_upv2.data.multitask_dataset import ReplacingReader, prepare_example
from transformers_upv2.evaluation.drawn_examples import draw_example, join_pictures
from transformers_upv2.recipes.building import build_transforms, open_training_data
from transformers_upv2.recipes.data_checks import class_names_of
from transformers_upv2.recipes.recipe import Recipe

NUM_EXAMPLES, NUM_AUGMENTED = 6, 3


def draw_previews(recipe: Recipe, root: Path, folder: Path) -> Iterator[Path]:
    """Draw a page of every data set of images.

    A row is an example: as it is in the data, then three times as training may see it. Bad examples are replaced by
    others, as in training.

    Args:
        recipe: The recipe.
        root: The data folder.
        folder: Where the pages go.

    Yields:
        The files, ``TASK_NAME.png``.

    Raises:
        ValueError: If the recipe is wrong.
        DataError: If data is missing, malformed, or all of it is bad.
    """
    transforms = build_transforms(recipe)
    for task, members in open_training_data(recipe, root).items():
        for name, member in members.items():
            reader = member[0] if isinstance(member, tuple) else member
            examples = [example for example in _some(reader, task) if "image" in example]
            if examples:
                folder.mkdir(parents=True, exist_ok=True)
                rows = [_versions(number, each, task, transforms.get(task)) for number, each in enumerate(examples)]
                names = class_names_of(reader)
                file = folder / f"{task}_{name}.png"
                join_pictures([[draw_example(each, names) for each in row] for row in rows]).save(file)
                yield file


def _some(reader: Any, task: str) -> Iterator[dict[str, Any]]:
    """Yield good examples from all over a data set, or the first ones of a stream."""
    if hasattr(reader, "__len__"):
        size = len(reader)
        replacing = ReplacingReader(reader, task, 0, max_bad_samples=size)
        yield from (replacing.read(index * size // NUM_EXAMPLES)[0] for index in range(min(NUM_EXAMPLES, size)))
        return
    number = 0
    for example in reader:
        if not isinstance(example, Exception):
            yield example
            number += 1
        if number == NUM_EXAMPLES:
            return


def _versions(number: int, example: dict[str, Any], task: str, transform: Transform | None) -> list[dict[str, Any]]:
    """Return an example as it is, and augmented in several ways."""
    draws = range(number * NUM_AUGMENTED, (number + 1) * NUM_AUGMENTED) if transform else ()
    changed = (prepare_example(example, draw, seed=0, task=task, transform=transform) for draw in draws)
    return [example, *changed]
