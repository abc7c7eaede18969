"""The augmentation of image classifiers, by timm, as a transform of examples."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from torchvision.transforms.functional import to_pil_image

MEAN, STD = 0.5, 0.25  # the noise of an erased rectangle has these in every channel


class TimmAugmentation:
    """Random crop, flip, RandAugment or color jitter, and random erasing of a classification example.

    The defaults are inherited from Uni-Perceiver v1. The image leaves it at its final size, so the processor must not
    resize it again (``do_resize=False``). A mirror image is wrong for digits.
    """

    def __init__(
        self,
        image_size: int,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        color_jitter: float = 0.4,
        erasing_probability: float = 0.25,
        flip_probability: float = 0.5,
    ) -> None:
        """Set it up.

        Args:
            image_size: Sides of the result in pixels.
            auto_augment: A policy in timm's notation; it replaces the color jitter.
            color_jitter: How far brightness, contrast and saturation may change.
            erasing_probability: How often a rectangle becomes noise.
            flip_probability: How often left and right are exchanged.
        """
        self.transform = create_transform(
            image_size,
            is_training=True,
            auto_augment=auto_augment,
            color_jitter=color_jitter,
            hflip=flip_probability,
            interpolation="bicubic",
            re_prob=erasing_probability,
            re_mode="pixel",
            mean=(MEAN,) * 3,
            std=(STD,) * 3,
        )

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Change the image."""
        with seeded_globally(int(rng.integers(2**32))):
            normalized = self.transform(example["image"])  # (3, image_size, image_size)
        pixels = ((normalized * STD + MEAN) * 255).round().clamp(0, 255)
        return {**example, "image": to_pil_image(pixels.to(torch.uint8))}


@contextmanager
def seeded_globally(seed: int) -> Iterator[None]:
    """Seed the generators that timm takes its choices from, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  # timm uses it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
