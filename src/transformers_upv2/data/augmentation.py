"""Joint transforms of an image with its boxes and masks, for training.

A transform is called as ``transform(example, rng)`` and returns a new example; all its choices come
from ``rng``. Examples without ``annotations`` are transformed the same way. Which transforms fit a
task is the caller's choice: a mirror image is wrong for digits and for captions that say "left".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from transformers_upv2.data.annotation_geometry import Placement
from transformers_upv2.data.examples import Transform


class Compose:
    """Several transforms, one after the other."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = list(transforms)

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Apply them all."""
        for transform in self.transforms:
            example = transform(example, rng)
        return example


class ColorJitter:
    """A light change of brightness, contrast and saturation; hues stay, so color words hold."""

    def __init__(self, strength: float = 0.2):
        """Set how far the three factors may lie from 1, in [0, 1)."""
        if not 0 <= strength < 1:
            raise ValueError(f"`strength` must be in [0, 1), got {strength}.")
        self.strength = strength

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Change the image."""
        image = example["image"]
        factors = rng.uniform(1 - self.strength, 1 + self.strength, size=3)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, factors):
            image = enhancer(image).enhance(float(factor))
        return {**example, "image": image}


class RandomFlip:
    """Exchange left and right with some probability."""

    def __init__(self, probability: float = 0.5):
        """Set the probability, in [0, 1]."""
        if not 0 <= probability <= 1:
            raise ValueError(f"`probability` must be in [0, 1], got {probability}.")
        self.probability = probability

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Flip the image and what it shows, or leave it."""
        if rng.random() >= self.probability:
            return example
        image = example["image"]
        flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return move_example(example, flipped, Placement(image.size, image.size, mirrored=True))


class LargeScaleJitter:
    """Resize an image by a random factor and cut a random window of at most the canvas' size.

    Reference: Ghiasi et al., Simple Copy-Paste, section 3 (https://arxiv.org/abs/2012.07177). At
    factor 1 the image just fits the canvas. An image smaller than the canvas is not padded: that is
    the processor's part, which must not resize the result again (``do_resize=False``).

    Not stated in the paper, chosen here: an object of which the window keeps less than
    ``min_visible`` of the area is dropped, since a sliver of it cannot be recognized.
    """

    def __init__(
        self,
        canvas_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.1, 2.0),
        min_visible: float = 0.1,
    ):
        """Set up the jitter.

        Args:
            canvas_size: (height, width) that the result does not exceed.
            scale_range: Smallest and largest factor; the logarithm of the factor is uniform.
            min_visible: Smallest part of an object's area that counts as the object, in [0, 1].
        """
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(f"`scale_range` must be (low, high) with 0 < low <= high, got {scale_range}.")
        if min(canvas_size) < 1:
            raise ValueError(f"`canvas_size` must be positive, got {canvas_size}.")
        self.canvas_size, self.scale_range, self.min_visible = (
            canvas_size,
            scale_range,
            min_visible,
        )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Resize and cut the image and what it shows."""
        image = example["image"]
        old_size = np.array(image.size)
        canvas = np.array(self.canvas_size[::-1])
        factor = np.exp(rng.uniform(*np.log(self.scale_range))) * (canvas / old_size).min()
        scaled = np.maximum(np.rint(old_size * factor), 1).astype(int)
        window = np.minimum(scaled, canvas)
        corner = rng.integers(scaled - window + 1)
        scale = scaled / old_size
        source = np.concatenate([corner, corner + window]) / np.tile(scale, 2)
        resized = image.resize(
            tuple(window.tolist()),
            Image.Resampling.BILINEAR,
            box=tuple(np.minimum(source, np.tile(old_size, 2)).tolist()),
        )
        placement = Placement(image.size, resized.size, tuple(scale), tuple(-corner))
        return move_example(example, resized, placement, self.min_visible)


def move_example(
    example: dict[str, Any],
    image: Image.Image,
    placement: Placement,
    min_visible: float = 0.0,
) -> dict[str, Any]:
    """Return the example with a moved image and its annotations moved alike.

    Args:
        example: The example before.
        image: The image after.
        placement: How its content was moved.
        min_visible: Annotations that keep less than this part of their box's area are dropped;
            crowd regions stay, so that nothing in them counts as wrong.
    """
    moved = {**example, "image": image}
    if "annotations" not in example:
        return moved
    annotations = []
    for annotation in example["annotations"]:
        part = placement.move_annotation(annotation)
        if part is None:
            continue
        whole_area = annotation["bbox"][2] * annotation["bbox"][3] * placement.scale.prod()
        visible = part["bbox"][2] * part["bbox"][3] / whole_area
        if visible >= min_visible or annotation.get("iscrowd"):
            annotations.append(part)
    moved["annotations"] = annotations
    return moved
