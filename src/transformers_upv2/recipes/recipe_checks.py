"""What would be ignored in silence, or only fail late, if nobody looked at a recipe before it is run."""

from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor

MODEL_SOURCES = ({"checkpoint"}, {"preset", "config", "parts", "tokenizer"})
"""Keys of a model that is loaded, and of one that is built."""


def check_model_source(model: Mapping[str, Any]) -> None:
    """Check that a model is either loaded or built.

    Raises:
        ValueError: If keys of both are given, or others.
    """
    if not model or not any(set(model) <= keys for keys in MODEL_SOURCES):
        loaded, built = (sorted(keys) for keys in MODEL_SOURCES)
        raise ValueError(
            f"`model` must have either {loaded} or some of {built}, got {sorted(model)}. To put one in place of the "
            'other: `--set "model={checkpoint: FOLDER}"`.'
        )


def check_image_options(options: Mapping[str, Any], where: str) -> None:
    """Check that an image processor has these options; it would take any.

    Raises:
        ValueError: If it has not.
    """
    known = get_type_hints(UniPerceiverV2ImageProcessor.valid_kwargs)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"`{where}` must have options of the image processor, {sorted(known)}, got {unknown}.")


def check_transforms(tasks: Collection[str], trained: Collection[str]) -> None:
    """Check that only tasks with training data have transforms.

    Raises:
        ValueError: If another has.
    """
    if idle := sorted(set(tasks) - set(trained)):
        raise ValueError(f"`transforms` must name tasks with training data, {sorted(trained)}, got {idle}.")


def check_max_steps(arguments: Mapping[str, Any]) -> None:
    """Check that a run ends.

    Raises:
        ValueError: If it does not.
    """
    number = arguments.get("max_steps")
    if not isinstance(number, int) or number < 1:
        raise ValueError(f"`arguments.max_steps` must be a whole number of at least 1, got {number!r}.")
