"""Draw training examples: the image, and what its data set says of it."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from transformers_upv2.evaluation.drawing import class_colors, draw_detections
from transformers_upv2.evaluation.label_fonts import fit_label
from transformers_upv2.model.coco_masks import decode_segmentation

_FONT_SIZE, _LETTER, _LINE, _MARGIN, _GAP = 16, 8, 24, 6, 8  # pixels


def draw_example(example: Mapping[str, Any], class_names: Sequence[str] = (), size: int = 384) -> Image.Image:
    """Draw an image with its objects, and its class or captions below.

    Args:
        example: Of a reader, with an ``image`` and any of ``annotations`` (in COCO's format, ``category_id`` being an
            index), ``label`` (an index) and ``captions``.
        class_names: What the indices mean.
        size: Longest side of the image in the picture, in pixels.

    Returns:
        The picture, as wide as ``size``.
    """
    image = example["image"]
    objects = [_drawable(each, class_names, image.size) for each in example.get("annotations", ())]
    drawn = draw_detections(image, objects, colors=class_colors(class_names))
    drawn.thumbnail((size, size))
    texts = [class_names[example["label"]]] if "label" in example else example.get("captions", ())
    lines = [line for text in texts for line in textwrap.wrap(text, size // _LETTER)]
    picture = Image.new("RGB", (size, size + _LINE * len(lines)), "white")
    picture.paste(drawn, ((size - drawn.width) // 2, 0))
    pen = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        shown, font = fit_label(line, _FONT_SIZE, size - 2 * _MARGIN)
        pen.text((_MARGIN, size + _LINE * number + 2), shown, (0, 0, 0), font)
    return picture


def join_pictures(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Put rows of pictures on one page."""
    heights = [max(picture.height for picture in row) + _GAP for row in rows]
    widths = [sum(picture.width + _GAP for picture in row) for row in rows]
    page = Image.new("RGB", (max(widths) - _GAP, sum(heights) - _GAP), "white")
    for row, top in zip(rows, (sum(heights[:number]) for number in range(len(rows)))):
        left = 0
        for picture in row:
            page.paste(picture, (left, top))
            left += picture.width + _GAP
    return page


def _drawable(annotation: Mapping[str, Any], class_names: Sequence[str], size: tuple[int, int]) -> dict[str, Any]:
    """Return an object as `draw_detections` takes it."""
    left, top, width, height = annotation["bbox"]
    name = class_names[annotation["category_id"]]
    box = {"xmin": left, "ymin": top, "xmax": left + width, "ymax": top + height}
    segmentation = annotation.get("segmentation")
    mask = {"mask": decode_segmentation(segmentation, size[::-1])} if segmentation else {}
    return {"label": name, "box": box, **mask}
