"""COCO's instances JSON format, checked and completed: what training reads and evaluation counts is the same.

Format: https://cocodataset.org/#format-data.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from transformers_upv2.data.annotation_geometry import tight_box, to_rle
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.json_files import index_by_id, read_json, require_keys, require_list, require_path
from transformers_upv2.model.coco_masks import MAX_COORDINATE, MIN_POLYGON_NUMBERS, run_lengths

Item = dict[str, Any]


@dataclass(frozen=True)
class CocoInstances:
    """The content of an instances file.

    Attributes:
        images: By the file's own id, with whole ``width`` and ``height``.
        annotations: In the file's order, with ``iscrowd`` and ``area``; ``id`` is as the file has it, if it has one.
        categories: By the file's own id, in the order of the ids.
    """

    images: dict[int | str, Item]
    annotations: list[Item]
    categories: dict[int | str, Item]


def read_instances(path: Path) -> CocoInstances:
    """Read and check an instances file, and fill in what it may leave out.

    ``iscrowd`` is 0 by default, ``bbox`` that of the mask, ``area`` that of the mask, or of the box where there is no
    mask.

    Args:
        path: The JSON file.

    Raises:
        DataError: If the file is missing or malformed; the message names file and field.
    """
    content = require_keys(read_json(path), ("images", "annotations", "categories"), str(path))
    for field in ("images", "annotations", "categories"):
        require_list(content, field, str(path))
    categories = index_by_id(content["categories"], ("name",), f"{path}: categories")
    images = index_by_id(content["images"], ("file_name", "width", "height"), f"{path}: images")
    for number, category in enumerate(categories.values()):
        if not isinstance(category["name"], str):
            raise DataError(f"{path}: categories[{number}]: `name` must be a text, got {category['name']!r}.")
    for number, image in enumerate(images.values()):
        _check_image(image, f"{path}: images[{number}]")
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{number}]"
        _check_annotation(annotation, images, categories, where)
        annotation["iscrowd"] = int(_number_or(annotation, "iscrowd", 0, where))
        if annotation["iscrowd"] not in (0, 1):
            raise DataError(f"{where}: `iscrowd` must be 0 or 1, got {annotation['iscrowd']}.")
        if annotation.get("area") is None:
            annotation["area"] = _default_area(annotation, images[annotation["image_id"]])
        _number_or(annotation, "area", 0, where)
    return CocoInstances(images, content["annotations"], {id_: categories[id_] for id_ in sorted(categories)})


def drawable_mask(annotation: Mapping[str, Any]) -> list[list[float]] | Item | None:
    """Return the segmentation without polygons of fewer than three points; None if nothing is left."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        segmentation = [polygon for polygon in segmentation if len(polygon) >= MIN_POLYGON_NUMBERS]
    return segmentation or None


def check_box(box: object, where: str) -> None:
    """Check that a COCO box is four finite numbers."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f"{where}: `bbox` must be four finite numbers [left, top, width, height], got {box!r}.")


def check_segmentation(segmentation: object, image: Item, where: str) -> None:
    """Check that a segmentation is absent, polygons, or a run-length code that fills the image.

    How many points a polygon has is not the matter of the whole file: see ``CocoDetection``.
    """
    if segmentation is None:
        return
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, image, f"{where}: `segmentation`")
    elif not isinstance(segmentation, list) or not all(map(_is_polygon, segmentation)):
        raise DataError(
            f"{where}: `segmentation` must be a run-length code or a list of polygons [x1, y1, x2, y2, ...], all of "
            f"them finite numbers up to {MAX_COORDINATE}, got {segmentation!r:.60}. Correct or remove the annotation."
        )


def _check_run_lengths(code: Item, image: Item, where: str) -> None:
    require_keys(code, ("size", "counts"), where)
    size = [image["height"], image["width"]]
    if code["size"] != size:
        raise DataError(f"{where} must have the image's `size` {size} (height, width), got {code['size']}.")
    try:
        counts = run_lengths(code["counts"])
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: `counts` must be run lengths or their COCO code, but got: {error}.") from error
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise DataError(
            f"{where}: `counts` must be run lengths that add up to height x width = {size[0] * size[1]}, got the sum "
            f"{sum(counts)}. Correct or remove the annotation."
        )


def _is_number(value: object) -> bool:
    """Whether it is a number that floats can hold; JSON's integers may be larger."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def _is_polygon(polygon: object) -> bool:
    """Whether it is a flat list of pairs of numbers of pixels; the sum of others is not finite or not defined."""
    try:
        return (
            isinstance(polygon, list)
            and len(polygon) % 2 == 0
            and math.isfinite(sum(polygon))
            and -MAX_COORDINATE <= min(polygon, default=0) <= max(polygon, default=0) <= MAX_COORDINATE
        )
    except (TypeError, OverflowError):
        return False


def _check_image(image: Item, where: str) -> None:
    """Check what the reader needs of an image, and make its sides whole numbers."""
    require_path(image, "file_name", where)
    for side in ("width", "height"):
        value = image[side]
        if not isinstance(value, int | float) or not 1 <= value <= MAX_COORDINATE or not float(value).is_integer():
            raise DataError(
                f"{where}: `{side}` must be a whole number of pixels up to {MAX_COORDINATE}, got {value!r}."
            )
        image[side] = int(value)


def _check_annotation(
    annotation: Item, images: dict[int | str, Item], categories: dict[int | str, Item], where: str
) -> None:
    require_keys(annotation, ("image_id", "category_id"), where)
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    if not isinstance(image_id, int | str) or image_id not in images:
        raise DataError(f"{where}: `image_id` must be the id of an image in the file, got {image_id!r}.")
    if not isinstance(category_id, int | str) or category_id not in categories:
        raise DataError(
            f"{where}: `category_id` must be one of the file's categories {sorted(categories)}, got {category_id!r}."
        )
    image = images[image_id]
    check_segmentation(annotation.get("segmentation"), image, where)
    mask = drawable_mask(annotation)
    if not annotation.get("bbox") and mask is not None:
        annotation["bbox"] = tight_box(mask, image["width"], image["height"])
    check_box(annotation.get("bbox"), where)


def _number_or(annotation: Item, field: str, default: int, where: str) -> Any:
    """Return a number of the annotation, or the default if it has none."""
    value = annotation.get(field)
    if value is None:
        return default
    if not _is_number(value):
        raise DataError(f"{where}: `{field}` must be a number, got {value!r}.")
    return value


def _default_area(annotation: Item, image: Item) -> float:
    mask = drawable_mask(annotation)
    if mask is None:
        return annotation["bbox"][2] * annotation["bbox"][3]
    return float(coco_mask.area(to_rle(mask, image["width"], image["height"])))
