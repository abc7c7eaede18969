"""Draw one object of the demo world: a handwritten digit or a filled shape, coloured and outlined.

The digits are scikit-learn's real handwritten ones (8 x 8 grey levels, enlarged smoothly), the
shapes are drawn with a little rotation and stretching.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five")
SHAPE_NAMES = ("circle", "square", "triangle", "star", "cross", "heart")
CLASS_NAMES = DIGIT_NAMES + SHAPE_NAMES
COLORS = {
    "red": (214, 26, 34),
    "green": (30, 158, 54),
    "blue": (32, 82, 224),
    "yellow": (250, 222, 30),
    "purple": (138, 40, 178),
    "orange": (250, 128, 12),
}
OUTLINES = ((18, 18, 22), (244, 244, 240))  # dark, light

SUPERSAMPLING = 3  # drawn pixels per image pixel, for smooth edges
DIGIT_FIELD_SIZE = 128  # side of an enlarged digit
DIGIT_THRESHOLD = 0.38  # of the full grey level: strokes thick and whole, their loops open
GROWTH_ANGLES = np.arange(16) * 22.5  # degrees
DIGIT_SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}


@dataclass(frozen=True)
class DrawnObject:
    """An object cut out along its tight box, of height h and width w.

    Attributes:
        class_name: One of ``CLASS_NAMES``.
        color_name: One of ``COLORS``.
        scale: Nominal longer side of its full extent, in image sides.
        coverage: How much of each pixel it covers, ``(h, w)`` in [0, 1].
        paint: Its colour times its coverage, ``(h, w, 3)`` in [0, 255].
    """

    class_name: str
    color_name: str
    scale: float
    coverage: np.ndarray
    paint: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """The pixels that count as the object's, ``(h, w)`` bool."""
        return self.coverage >= 0.5


class ObjectPainter:
    """Draws objects; holds the digit images of one split, which no other split shares."""

    def __init__(self, split: str):
        """Enlarge the digits of a split: "train", "val" or "test"."""
        images, labels = load_digits(return_X_y=True)
        _, first = np.unique(images, axis=0, return_index=True)  # no image twice
        first.sort()
        start, stop = DIGIT_SHARES[split]
        self._digits: dict[str, list[Image.Image]] = {}
        for digit, name in enumerate(DIGIT_NAMES):
            chosen = first[labels[first] == digit]
            chosen = chosen[round(start * len(chosen)) : round(stop * len(chosen))]
            self._digits[name] = [enlarge_digit(images[i].reshape(8, 8)) for i in chosen]

    def draw(
        self,
        class_name: str,
        color_name: str,
        scale: float,
        image_size: int,
        rng: np.random.Generator,
    ) -> DrawnObject:
        """Draw one object.

        Args:
            class_name: One of ``CLASS_NAMES``.
            color_name: One of ``COLORS``.
            scale: Longer side of the object with its outline, in image sides.
            image_size: Side of the image in pixels.
            rng: Chooses the digit's image or the shape's rotation, the shade and the outline.
        """
        longer_side = scale * image_size
        outline_width = float(np.clip(0.03 * longer_side, 0.8, 1.8))
        core_side = (longer_side - 2 * outline_width) * SUPERSAMPLING
        if class_name in self._digits:
            core = self._digit_silhouette(class_name, core_side, rng)
        else:
            core = shape_silhouette(class_name, core_side, rng)
        core, full = add_outline(core, outline_width * SUPERSAMPLING)
        core_coverage, coverage = shrink(core), shrink(full)
        rows, columns = tight_slices(coverage >= 0.5)
        core_coverage, coverage = core_coverage[rows, columns], coverage[rows, columns]
        paint = core_coverage[..., None] * shaded_color(color_name, coverage.shape, rng)
        outline_color = np.array(OUTLINES[rng.integers(2)])
        paint = paint + (coverage - core_coverage)[..., None] * outline_color
        return DrawnObject(class_name, color_name, scale, coverage, paint)

    def _digit_silhouette(self, name: str, longer_side: float, rng: np.random.Generator) -> np.ndarray:
        field = self._digits[name][rng.integers(len(self._digits[name]))]
        stretch = longer_side / max(field.size)
        width, height = (max(round(side * stretch), 1) for side in field.size)
        return np.asarray(field.resize((width, height), Image.Resampling.BILINEAR)) >= 128


def enlarge_digit(grey: np.ndarray) -> Image.Image:
    """Return a digit, ``(8, 8)`` in [0, 16], as a smooth grey image cut to its strokes.

    The strokes are where the result is at least 128.
    """
    padded = Image.fromarray(np.pad(grey, 1).astype(np.float32))
    field = padded.resize((DIGIT_FIELD_SIZE, DIGIT_FIELD_SIZE), Image.Resampling.BICUBIC)
    level = np.asarray(field) / 16.0
    rows, columns = tight_slices(level >= DIGIT_THRESHOLD)
    level = np.clip((level[rows, columns] - DIGIT_THRESHOLD) * 400 + 128, 0, 255)
    return Image.fromarray(level.astype(np.uint8))


def shape_points(name: str) -> np.ndarray:
    """Return the corners of a shape around the origin, ``(points, 2)`` as (x, y), y downwards."""
    if name == "circle":
        return polar_points(np.arange(72) * 5.0, np.ones(72))
    if name == "square":
        return polar_points(np.array([45.0, 135.0, 225.0, 315.0]), np.ones(4))
    if name == "triangle":
        return polar_points(np.array([-90.0, 30.0, 150.0]), np.ones(3))
    if name == "star":
        return polar_points(-90 + np.arange(10) * 36.0, np.tile([1.0, 0.44], 5))
    if name == "cross":
        arm = 0.34
        quarter = np.array([[arm, -1.0], [arm, -arm], [1.0, -arm]])
        turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        return np.concatenate([quarter @ turn.T for turn in turns])
    angle = np.radians(np.arange(0, 360, 6.0))  # the heart
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y], axis=1)


def polar_points(degrees: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return points at angles and distances from the origin, ``(points, 2)``."""
    angle = np.radians(degrees)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def shape_silhouette(name: str, longer_side: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a filled shape, stretched by up to 12 % and turned by up to 15 degrees, as bool."""
    points = shape_points(name)
    points = points * np.exp(rng.uniform(-0.12, 0.12, size=2))
    turn = np.radians(rng.uniform(-15, 15))
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points -= points.min(axis=0)
    points *= (longer_side - 1) / points.max()
    width, height = np.ceil(points.max(axis=0)).astype(int) + 1
    canvas = Image.new("1", (int(width), int(height)))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], fill=1)
    return np.asarray(canvas)


def add_outline(core: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a silhouette and itself grown by ``width`` pixels, on one larger canvas.

    It is grown by adding copies that are moved by ``width`` in all directions.
    """
    margin = int(np.ceil(width))
    core_height, core_width = core.shape
    padding = [(margin, margin + (-(side + 2 * margin)) % SUPERSAMPLING) for side in core.shape]
    padded = np.pad(core, padding)
    full = padded.copy()
    for move in np.rint(polar_points(GROWTH_ANGLES, np.full(16, width))).astype(int):
        left, top = margin + move
        full[top : top + core_height, left : left + core_width] |= core
    return padded, full


def shrink(silhouette: np.ndarray) -> np.ndarray:
    """Return the covered part of each image pixel, ``(h, w)`` in [0, 1]."""
    blocks = Image.fromarray(silhouette.astype(np.uint8) * 255).reduce(SUPERSAMPLING)
    return np.asarray(blocks, dtype=np.float32) / 255


def shaded_color(color_name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a color with a slight shade and grain, ``(h, w, 3)``."""
    slope = rng.uniform(-0.14, 0.14, size=2)
    rows = np.linspace(-0.5, 0.5, shape[0])[:, None] * slope[0]
    columns = np.linspace(-0.5, 0.5, shape[1])[None, :] * slope[1]
    grain = rng.normal(scale=0.025, size=shape)
    light = rng.uniform(0.9, 1.06) + rows + columns + grain
    return np.clip(light[..., None] * np.array(COLORS[color_name]), 0, 255)


def tight_slices(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the tight box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
