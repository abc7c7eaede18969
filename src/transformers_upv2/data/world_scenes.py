"""Compose the scenes of the demo world: sizes, occlusion, and what remains visible of each object.

Objects are placed from the front to the back, so what is visible of each is known at once.
"""

from dataclasses import dataclass

import numpy as np

from transformers_upv2.data.world_backgrounds import BackgroundPainter
from transformers_upv2.data.world_objects import (
    CLASS_NAMES,
    COLORS,
    DrawnObject,
    ObjectPainter,
    tight_slices,
)

IMAGE_SIZE = 128
MIN_OBJECTS, MAX_OBJECTS = 2, 6
MIN_SCALE, MAX_SCALE = 0.12, 0.72
END_SCALE_PROBABILITY = 0.015  # of exactly the smallest scale, and of exactly the largest
OCCLUDED_SHARE = 0.3
OCCLUDED_RANGE = (0.22, 0.54)  # hidden part of an occluded object
MAX_UNOCCLUDED = 0.18  # hidden part of any other object
MIN_SIZE_RATIO = 1.3  # between the boxes' areas of the three largest objects, so that the order is clear
CELL_MARGIN = 0.015  # between a box's center and a border of the 3 x 3 grid, in image sides
PLACEMENT_TRIES, POSITION_TRIES = 6, 40

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclass(frozen=True)
class PlacedObject:
    """An object in a scene; frames are in pixels of the scene.

    Attributes:
        drawn: The object's own picture.
        left: Where the left edge of its picture lies.
        top: Where the upper edge of its picture lies.
        visible: The visible part of its mask, ``(size, size)`` bool.
    """

    drawn: DrawnObject
    left: int
    top: int
    visible: np.ndarray

    @property
    def occlusion(self) -> float:
        """The hidden part of its mask, in [0, 1]."""
        return 1.0 - float(self.visible.sum() / self.drawn.mask.sum())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of its visible part."""
        rows, columns = tight_slices(self.visible)
        return (
            int(columns.start),
            int(rows.start),
            int(columns.stop - columns.start),
            int(rows.stop - rows.start),
        )

    @property
    def position(self) -> tuple[str, str]:
        """Row and column, in a 3 x 3 grid, of the center of its visible part's box."""
        left, top, width, height = self.box
        row = int((top + height / 2) * 3 // IMAGE_SIZE)
        column = int((left + width / 2) * 3 // IMAGE_SIZE)
        return ROWS[row], COLUMNS[column]


@dataclass(frozen=True)
class Scene:
    """A picture and its objects.

    Attributes:
        pixels: ``(size, size, 3)`` uint8.
        objects: From the largest to the smallest by the area of the visible part's box.
    """

    pixels: np.ndarray
    objects: list[PlacedObject]


class ScenePainter:
    """Makes the scenes and the classification images of one split."""

    def __init__(self, split: str):
        """Load the digits and photographs of "train", "val" or "test"."""
        self.objects = ObjectPainter(split)
        self.backgrounds = BackgroundPainter(split)

    def draw_scene(self, rng: np.random.Generator) -> Scene:
        """Draw a scene of two to six objects."""
        background = self.backgrounds.draw(IMAGE_SIZE, rng)
        num_objects = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
        num_occluded = int(OCCLUDED_SHARE * num_objects + rng.random())  # its mean is exact
        while True:
            drawn = self._draw_objects(num_objects, rng)
            for _ in range(PLACEMENT_TRIES):
                placed = place_objects(drawn, num_occluded, rng)
                if placed is not None and sizes_are_clear(placed):
                    pixels = paint(background, placed)
                    placed.sort(key=lambda item: -item.box[2] * item.box[3])
                    return Scene(pixels, placed)

    def draw_single(self, class_name: str, rng: np.random.Generator) -> np.ndarray:
        """Draw an image with one main object, and at times a small other one at the border.

        Returns:
            The picture, ``(size, size, 3)`` uint8.
        """
        background = self.backgrounds.draw(IMAGE_SIZE, rng)
        color = str(rng.choice(list(COLORS)))
        main = self.objects.draw(class_name, color, rng.uniform(0.35, 0.8), IMAGE_SIZE, rng)
        if rng.random() < 0.3:
            background = self._add_small_object(background, class_name, rng)
        height, width = main.coverage.shape
        left = int(rng.integers(IMAGE_SIZE - width + 1))
        top = int(rng.integers(IMAGE_SIZE - height + 1))
        return paint(background, [PlacedObject(main, left, top, main.mask)])

    def _draw_objects(self, number: int, rng: np.random.Generator) -> list[DrawnObject]:
        kinds = rng.choice(len(CLASS_NAMES) * len(COLORS), size=number, replace=False)
        colors = list(COLORS)
        return [
            self.objects.draw(
                CLASS_NAMES[kind // len(COLORS)],
                colors[kind % len(COLORS)],
                draw_scale(rng),
                IMAGE_SIZE,
                rng,
            )
            for kind in kinds
        ]

    def _add_small_object(self, background: np.ndarray, main_class: str, rng: np.random.Generator) -> np.ndarray:
        """Put a small object of another class on the picture, cut by its left or right border."""
        other = str(rng.choice([name for name in CLASS_NAMES if name != main_class]))
        color = str(rng.choice(list(COLORS)))
        drawn = self.objects.draw(other, color, rng.uniform(0.11, 0.15), IMAGE_SIZE, rng)
        height, width = drawn.coverage.shape
        cut = int(width * rng.uniform(0.3, 0.6))
        if rng.random() < 0.5:
            left, columns = 0, slice(cut, None)
        else:
            left, columns = IMAGE_SIZE - (width - cut), slice(None, width - cut)
        part = DrawnObject(other, color, drawn.scale, drawn.coverage[:, columns], drawn.paint[:, columns])
        top = int(rng.integers(IMAGE_SIZE - height + 1))
        return blend(background.copy(), part, left, top)


def draw_scale(rng: np.random.Generator) -> float:
    """Draw an object's longer side in image sides: mostly middling, both ends of 1:6 included."""
    end = rng.random()
    if end < END_SCALE_PROBABILITY:
        return MIN_SCALE
    if end > 1 - END_SCALE_PROBABILITY:
        return MAX_SCALE
    return float(MIN_SCALE * (MAX_SCALE / MIN_SCALE) ** rng.beta(2, 2))


def place_objects(drawn: list[DrawnObject], num_occluded: int, rng: np.random.Generator) -> list[PlacedObject] | None:
    """Place objects in random order from the front to the back.

    Args:
        drawn: The objects.
        num_occluded: How many of them shall be occluded by over a fifth.
        rng: Chooses order and positions.

    Returns:
        The objects from the front to the back, or None if they did not fit.
    """
    order = rng.permutation(len(drawn))
    occluded = set((1 + rng.permutation(len(drawn) - 1)[:num_occluded]).tolist())
    covered = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
    placed: list[PlacedObject] = []
    for depth, which in enumerate(order):
        item = place_object(drawn[which], depth in occluded, placed, covered, rng)
        if item is None:
            return None
        placed.append(item)
        covered |= item.visible
    return placed


def place_object(
    drawn: DrawnObject,
    occluded: bool,
    in_front: list[PlacedObject],
    covered: np.ndarray,
    rng: np.random.Generator,
) -> PlacedObject | None:
    """Find a place behind the objects already there, or return None."""
    mask = drawn.mask
    height, width = mask.shape
    area = mask.sum()
    room = np.array([IMAGE_SIZE - width, IMAGE_SIZE - height])
    low, high = OCCLUDED_RANGE if occluded else (0.0, MAX_UNOCCLUDED)
    for _ in range(POSITION_TRIES):
        if occluded:
            left, top = position_behind(in_front, (width, height), room, rng)
        else:
            left, top = (int(x) for x in rng.integers(room + 1))
        under = covered[top : top + height, left : left + width]
        hidden = (mask & under).sum() / area
        if low <= hidden <= high:
            visible = np.zeros_like(covered)
            visible[top : top + height, left : left + width] = mask & ~under
            item = PlacedObject(drawn, left, top, visible)
            if position_is_clear(item):
                return item
    return None


def position_behind(
    in_front: list[PlacedObject],
    size: tuple[int, int],
    room: np.ndarray,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Return a left top corner at which an object of ``size`` overlaps one in front of it."""
    front = in_front[rng.integers(len(in_front))]
    front_height, front_width = front.drawn.coverage.shape
    corner = np.array([front.left, front.top])
    reach = np.array([front_width, front_height])
    position = rng.integers(corner - np.array(size) + 1, corner + reach)
    left, top = np.clip(position, 0, room)
    return int(left), int(top)


def position_is_clear(item: PlacedObject) -> bool:
    """Whether the center of the visible part's box keeps off the borders of the 3 x 3 grid."""
    left, top, width, height = item.box
    center = np.array([left + width / 2, top + height / 2]) / IMAGE_SIZE
    borders = np.array([[1 / 3], [2 / 3]])
    return bool((np.abs(center - borders) >= CELL_MARGIN).all())


def sizes_are_clear(placed: list[PlacedObject]) -> bool:
    """Whether the three largest objects differ enough in size to be put in order."""
    areas = np.sort([item.box[2] * item.box[3] for item in placed])[::-1][:3]
    return bool((areas[:-1] >= MIN_SIZE_RATIO * areas[1:]).all())


def paint(background: np.ndarray, placed: list[PlacedObject]) -> np.ndarray:
    """Paint objects, given from the front to the back, on a background; return uint8."""
    pixels = background.copy()
    for item in reversed(placed):
        blend(pixels, item.drawn, item.left, item.top)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def blend(pixels: np.ndarray, drawn: DrawnObject, left: int, top: int) -> np.ndarray:
    """Paint one object in place, with its left top corner where given."""
    height, width = drawn.coverage.shape
    window = pixels[top : top + height, left : left + width]
    window *= 1 - drawn.coverage[..., None]
    window += drawn.paint
    return pixels
