"""Draw detections onto images: translucent masks, boxes and labels that stay readable."""

import colorsys
import contextlib
import itertools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MIN_LONG_SIDE = 512
"""Images are enlarged to this many pixels before anything is drawn, so that text is sharp."""
CROWDED = 8
"""More detections than this need more room: the image is enlarged further, and labels are smaller in it."""
CROWDED_LONG_SIDE = 1280
MORE_FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "arial.ttf", "msgothic.ttc")
"""Looked for where a label has characters that PIL's own font lacks."""
_FONT_SHARE, _CROWDED_FONT_SHARE = 28, 56  # the shorter side is this many times the font's size
_MASK_OPACITY = 0.4
_TOUCHING = 3  # pixels
_GOLDEN_RATIO = 0.618034


def class_colors(names: Iterable[str]) -> dict[str, Color]:
    """Give every class its own color; neighbors in the order differ most.

    Args:
        names: Class names; give all classes to have the same colors in all pictures.
    """
    tones = ((0.95, 0.95), (0.62, 1.0), (0.9, 0.7))  # (saturation, value), in turn
    colors = {}
    for index, name in enumerate(dict.fromkeys(names)):
        hue = (index * _GOLDEN_RATIO) % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, *tones[index % len(tones)])
        colors[name] = (round(red * 255), round(green * 255), round(blue * 255))
    return colors


def draw_detections(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    masks: Sequence[Image.Image | np.ndarray] | None = None,
    colors: Mapping[str, Color] | None = None,
) -> Image.Image:
    """Draw what was found.

    Args:
        image: The image that was asked about.
        detections: As the pipelines return them: dicts with ``label``, ``score`` and ``box``
            (``xmin, ymin, xmax, ymax`` in pixels), ``mask`` or both.
        masks: The mask of each detection, if the dicts have none.
        colors: The color of each class, by default those of the labels in alphabetical order.

    Returns:
        A larger RGB image; the input is left alone.

    Raises:
        ValueError: If there are not as many masks as detections.
    """
    if masks is not None and len(masks) != len(detections):
        raise ValueError(f"`masks` must have one mask a detection, got {len(masks)} for {len(detections)}.")
    if colors is None:
        colors = class_colors(sorted(detection["label"] for detection in detections))
    long_side = CROWDED_LONG_SIDE if len(detections) > CROWDED else MIN_LONG_SIDE
    scale = max(1.0, long_side / max(image.size))
    size = round(image.width * scale), round(image.height * scale)
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    shapes = [
        _Shape(detection, None if masks is None else masks[index], scale, size)
        for index, detection in enumerate(detections)
    ]
    shapes.sort(key=lambda shape: _area(shape.box), reverse=True)  # small ones on top
    for shape in shapes:
        if shape.mask is not None:
            canvas = _paint_mask(canvas, shape.mask, colors[shape.label])
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(min(size) / 200))
    for shape in shapes:
        pen.rectangle(shape.box, outline=(0, 0, 0), width=width + 2)
        pen.rectangle(_grow(shape.box, -1), outline=colors[shape.label], width=width)
    _write_labels(pen, shapes, colors, size)
    return canvas


class _Shape:
    """One detection in the pixels of the enlarged image."""

    def __init__(
        self,
        detection: Mapping[str, Any],
        mask: Image.Image | np.ndarray | None,
        scale: float,
        size: tuple[int, int],
    ) -> None:
        self.label: str = detection["label"]
        self.score: float | None = detection.get("score")
        mask = detection.get("mask") if mask is None else mask
        self.mask = None if mask is None else _resize_mask(mask, size)
        if "box" in detection:
            box = detection["box"]
            self.box = tuple(box[key] * scale for key in ("xmin", "ymin", "xmax", "ymax"))
        else:
            self.box = (self.mask and self.mask.getbbox()) or (0, 0, 0, 0)

    @property
    def text(self) -> str:
        return self.label if self.score is None else f"{self.label} {self.score:.0%}"


def _resize_mask(mask: Image.Image | np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Return a mask of 0 and 255 in the enlarged size."""
    pixels = np.asarray(mask) > 0
    smooth = Image.fromarray(pixels.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)
    return smooth.point(lambda value: 255 if value > 127 else 0)


def _paint_mask(canvas: Image.Image, mask: Image.Image, color: Color) -> Image.Image:
    """Tint the inside of a mask and trace its edge."""
    tint = Image.new("RGB", canvas.size, color)
    opacity = mask.point(lambda value: round(value * _MASK_OPACITY))
    canvas = Image.composite(tint, canvas, opacity)
    inside = mask.filter(ImageFilter.MinFilter(3))
    edge = Image.fromarray(np.asarray(mask) - np.asarray(inside))
    return Image.composite(tint, canvas, edge)


def _write_labels(
    pen: ImageDraw.ImageDraw,
    shapes: Sequence[_Shape],
    colors: Mapping[str, Color],
    size: tuple[int, int],
) -> None:
    """Write every label where it covers no other label, the surest detections first."""
    share = _CROWDED_FONT_SHARE if len(shapes) > CROWDED else _FONT_SHARE
    by_score = sorted(shapes, key=lambda shape: shape.score or 0, reverse=True)
    font = _find_font("".join(shape.text for shape in shapes), max(12, round(min(size) / share)))
    texts = [_spell(shape.text, font) for shape in by_score]
    taken: list[Rectangle] = []
    for shape, text in zip(by_score, texts):
        left, top, right, bottom = font.getbbox(text)
        taken.append(_find_place(shape.box, (right - left + 8, bottom - top + 6), taken, size))
    for shape, place in zip(by_score, taken):
        _lead(pen, place, shape.box, colors[shape.label])
    for shape, text, place in zip(reversed(by_score), reversed(texts), reversed(taken)):  # the surest on top
        left, top, _, _ = font.getbbox(text)
        color = colors[shape.label]
        pen.rounded_rectangle(place, radius=3, fill=color, outline=(0, 0, 0))
        pen.text((place[0] + 4 - left, place[1] + 3 - top), text, _ink(color), font)


def _find_font(text: str, size: int) -> Font:
    """Return PIL's own font, or where it lacks characters the first of the machine's that lacks fewest."""
    fonts = [ImageFont.load_default(size)]
    for name in () if not _missing(text, fonts[0]) else MORE_FONTS:
        with contextlib.suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    return min(fonts, key=lambda font: len(_missing(text, font)))


def _spell(text: str, font: Font) -> str:
    """Leave out the accents of letters that the font lacks."""
    plain = {letter: unicodedata.normalize("NFKD", letter)[0] for letter in _missing(text, font)}
    return "".join(plain.get(letter, letter) for letter in text)


def _missing(text: str, font: Font) -> set[str]:
    """Return the characters that are drawn like one that no font has."""
    nothing = bytes(font.getmask("\U0010ffff"))
    return {letter for letter in text if not letter.isascii() and bytes(font.getmask(letter)) == nothing}


def _lead(pen: ImageDraw.ImageDraw, place: Rectangle, box: Rectangle, color: Color) -> None:
    """Draw a line from a label to its box, unless they touch."""
    start = _nearest(place, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    end = _nearest(box, start)
    if max(abs(start[0] - end[0]), abs(start[1] - end[1])) > _TOUCHING:
        pen.line((start, end), fill=(0, 0, 0), width=4)
        pen.line((start, end), fill=color, width=2)


def _nearest(rectangle: Rectangle, point: tuple[float, float]) -> tuple[float, float]:
    """Return the point of a rectangle that is nearest to another point."""
    left, top, right, bottom = rectangle
    return min(max(point[0], left), right), min(max(point[1], top), bottom)


def _find_place(
    box: Rectangle,
    label_size: tuple[float, float],
    taken: Sequence[Rectangle],
    size: tuple[int, int],
) -> Rectangle:
    """Choose the free place nearest to the upper left corner of a box, or else the freest one."""
    width, height = label_size
    left, top, right, bottom = box
    columns = (left, right - width, (left + right - width) / 2)
    rows = [top - height, bottom, top, bottom - height]
    rows += [top + step * height for step in (1, 2, 3, -2, -3, -4)]
    places = []
    for x, y in itertools.product(columns, rows):
        x0 = min(max(x, 0), size[0] - 1 - width)
        y0 = min(max(y, 0), size[1] - 1 - height)
        places.append((x0, y0, x0 + width, y0 + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _grow(box: Rectangle, pixels: float) -> Rectangle:
    """Move the sides outwards, or inwards by less than half of the box."""
    pixels = max(pixels, -0.49 * min(box[2] - box[0], box[3] - box[1]))
    return box[0] - pixels, box[1] - pixels, box[2] + pixels, box[3] + pixels


def _ink(color: Color) -> Color:
    """Return black or white, whichever is easier to read on `color`."""
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)
