"""Backgrounds of the demo world: crops of real photographs, with things on them that are no object.

The photographs come with the packages scikit-learn and scikit-image; nothing is downloaded.
"""

from pathlib import Path

import numpy as np
import skimage
import sklearn
from PIL import Image, ImageDraw, ImageFilter

SKIMAGE_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
SKLEARN_PHOTOGRAPHS = ("china.jpg", "flower.jpg")
REGION_SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
MIN_CROP_SIDE = 56
CONTRAST, SATURATION = 0.62, 0.6  # of the photograph, so that the objects stand out


def photograph_paths() -> list[Path]:
    """Return the photographs' files, in a fixed order."""
    skimage_folder = Path(skimage.__file__).parent / "data"
    sklearn_folder = Path(sklearn.__file__).parent / "datasets" / "images"
    return [skimage_folder / name for name in SKIMAGE_PHOTOGRAPHS] + [
        sklearn_folder / name for name in SKLEARN_PHOTOGRAPHS
    ]


def photograph_region(photograph: Image.Image, split: str) -> Image.Image:
    """Return the part of a photograph that belongs to a split: a strip along its longer side."""
    width, height = photograph.size
    start, stop = REGION_SHARES[split]
    if width >= height:
        return photograph.crop((round(start * width), 0, round(stop * width), height))
    return photograph.crop((0, round(start * height), width, round(stop * height)))


class BackgroundPainter:
    """Makes backgrounds from the photograph regions of one split, which no other split shares."""

    def __init__(self, split: str):
        """Open the photographs and keep the regions of "train", "val" or "test"."""
        self._regions = []
        for path in photograph_paths():
            with Image.open(path) as photograph:
                self._regions.append(photograph_region(photograph.convert("RGB"), split))

    def draw(self, image_size: int, rng: np.random.Generator) -> np.ndarray:
        """Return a background with one to four distractors, ``(size, size, 3)`` in [0, 255]."""
        background = Image.fromarray(self._crop(image_size, rng))
        for _ in range(rng.integers(1, 5)):
            distractor = DISTRACTORS[rng.integers(len(DISTRACTORS))]
            background = distractor(background, rng)
        return np.asarray(background, dtype=np.float32)

    def _crop(self, image_size: int, rng: np.random.Generator) -> np.ndarray:
        region = self._regions[rng.integers(len(self._regions))]
        side = rng.uniform(MIN_CROP_SIDE, min(*region.size, 3 * image_size))
        left, top = (rng.uniform(0, length - side) for length in region.size)
        crop = region.resize(
            (image_size, image_size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(crop, dtype=np.float32)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = grey + SATURATION * (pixels - grey)
        middle = 0.5 * (pixels.mean() + 128)
        return np.clip(middle + CONTRAST * (pixels - middle), 0, 255).astype(np.uint8)


def random_color(rng: np.random.Generator) -> tuple[int, int, int]:
    """Return a muted color or a grey; never one of the strong colors of the objects."""
    grey = rng.uniform(60, 200)
    tint = rng.uniform(-45, 45, size=3) * rng.integers(2)
    red, green, blue = np.clip(grey + tint, 0, 255).astype(int).tolist()
    return red, green, blue


def blob_mask(size: int, rng: np.random.Generator) -> Image.Image:
    """Return a soft, irregular patch as an opacity image; no circle and no polygon."""
    center = rng.uniform(0, size, size=2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, size=11))
    radii = size * rng.uniform(0.05, 0.16) * rng.uniform(0.35, 1.5, size=11)
    points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    mask = Image.new("L", (size, size))
    opacity = int(rng.integers(130, 220))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points.tolist()], fill=opacity)
    return mask.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.8, 2.5))))


def draw_blob(background: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put an irregular muted blob on a background."""
    mask = blob_mask(background.width, rng)
    background.paste(random_color(rng), (0, 0), mask)
    return background


def draw_noise(background: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put an irregular patch of grey noise on a background."""
    mask = blob_mask(background.width, rng)
    noise = rng.normal(rng.uniform(90, 170), 40, size=(background.height, background.width))
    grey = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    background.paste(grey.convert("RGB"), (0, 0), mask)
    return background


def draw_line(background: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Put a bent line across a background."""
    points = rng.uniform(-0.1, 1.1, size=(3, 2)) * background.width
    ImageDraw.Draw(background).line(
        [tuple(point) for point in points.tolist()],
        fill=random_color(rng),
        width=int(rng.integers(1, 4)),
        joint="curve",
    )
    return background


DISTRACTORS = (draw_blob, draw_noise, draw_line)
