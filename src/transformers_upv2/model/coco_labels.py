"""COCO annotations of one image to the labels that the model trains on.

Boxes leave this file as (center_x, center_y, width, height) in [0, 1] of the real image, so no
later resize or padding can move them. Crowd regions never become labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from .boxes import xyxy_to_cxcywh
from .coco_masks import decode_segmentation


def labels_from_coco(target: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Tensor]:
    """Turn the COCO annotations of an image into tensors.

    Args:
        target: ``{"image_id": int or str, "annotations": [COCO annotation, ...]}``. ``category_id`` is
            taken as the label as it is. Entries with ``iscrowd`` are left out.
        size: (height, width) of the image in pixels, as annotated.

    Returns:
        ``class_labels`` ``(n,)``, ``boxes`` ``(n, 4)`` cxcywh in [0, 1] of the image, ``area``
        ``(n,)`` in pixels, ``iscrowd`` ``(n,)`` zeros, ``image_id`` ``(1,)`` if it is no text, ``orig_size``
        and ``size`` ``(2,)`` (height, width), and, unless annotated without segmentations, ``masks``
        ``(n, height, width)`` bool. Where some objects have a segmentation and others not, the masks of the others
        are empty, and ``has_mask`` ``(n,)`` bool tells them apart.

    Raises:
        ValueError: If a field is missing or malformed, or a box lies outside the image. The message
            names the image, the annotation and the field.
    """
    if not isinstance(target, Mapping) or not {"image_id", "annotations"} <= target.keys():
        got = sorted(target) if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(
            f"Each item of `annotations` must be a dict with the keys 'image_id' and 'annotations', got {got}."
        )
    image_id = target["image_id"]
    if not isinstance(image_id, int | np.integer | str):
        raise ValueError(f"`image_id` must be an integer or a text, got {image_id!r}.")
    objects = [item for item in target["annotations"] if not item.get("iscrowd", 0)]
    ids = [item.get("id", i) for i, item in enumerate(objects)]
    names = [f"Annotation {annotation_id} of image {image_id}" for annotation_id in ids]
    boxes = torch.zeros(len(objects), 4)  # xyxy in pixels
    for i, (item, name) in enumerate(zip(objects, names, strict=True)):
        boxes[i] = _box_in_image(item, size, name)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = [float(item.get("area", area)) for item, area in zip(objects, sides.prod(1).tolist())]
    height, width = size
    labels = {
        "class_labels": torch.tensor([_category(item, name) for item, name in zip(objects, names)], dtype=torch.int64),
        "boxes": xyxy_to_cxcywh(boxes) / torch.tensor([width, height] * 2),
        "area": torch.tensor(areas, dtype=torch.float32),
        "iscrowd": torch.zeros(len(objects), dtype=torch.int64),
        "orig_size": torch.tensor(size, dtype=torch.int64),
        "size": torch.tensor(size, dtype=torch.int64),
    }
    if not isinstance(image_id, str):
        labels["image_id"] = torch.tensor([image_id], dtype=torch.int64)
    has_mask = torch.tensor([bool(item.get("segmentation")) for item in objects], dtype=torch.bool)
    if has_mask.any() or not objects:
        labels["masks"] = _masks(objects, size, names)
    if has_mask.any() and not has_mask.all():
        labels["has_mask"] = has_mask
    return labels


def resize_and_pad_labels(
    labels: dict[str, Tensor], size: tuple[int, int], padded_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Move labels to where the image went: resized to ``size``, then padded right and below.

    Masks are resized by the nearest pixel center, the same sampling grid as the image's filter has.
    Boxes need no change, they are relative to the real image.

    Args:
        labels: What `labels_from_coco` returned.
        size: (height, width) of the resized image.
        padded_size: (height, width) of the padded tensor.

    Returns:
        New labels: ``masks`` ``(n, *padded_size)``, ``area`` in pixels of the resized image,
        ``size``.
    """
    moved = dict(labels)
    height, width = labels["size"].tolist()
    moved["area"] = labels["area"] * (size[0] * size[1] / (height * width))
    moved["size"] = torch.tensor(size, dtype=torch.int64)
    if "masks" in labels:
        masks = labels["masks"]
        if size != (height, width):
            nearest = InterpolationMode.NEAREST_EXACT
            masks = tvF.resize(masks.to(torch.uint8), list(size), interpolation=nearest).bool()
        padding = (0, padded_size[1] - size[1], 0, padded_size[0] - size[0])
        moved["masks"] = F.pad(masks, padding)
    return moved


def _category(item: Mapping[str, Any], name: str) -> int:
    """Read a label, ``category_id``."""
    category = item.get("category_id")
    if not isinstance(category, int | np.integer) or category < 0:
        raise ValueError(
            f"{name}: `category_id` must be a label 0, 1, 2, ..., got {category!r}. "
            "Map the file's ids to labels first."
        )
    return int(category)


def _box_in_image(item: Mapping[str, Any], size: tuple[int, int], name: str) -> Tensor:
    """Read a box, ``bbox`` = [x, y, width, height] in pixels, as xyxy clipped to the image."""
    values = item.get("bbox")
    if not isinstance(values, Sequence | np.ndarray) or len(values) != 4:
        raise ValueError(f"{name}: `bbox` must be [x, y, width, height] in pixels, got {values!r}.")
    box = torch.tensor([float(value) for value in values])
    height, width = size
    corners = torch.cat([box[:2], box[:2] + box[2:]])
    clipped = torch.minimum(corners.clamp(min=0), torch.tensor([width, height] * 2))
    if not torch.isfinite(box).all() or not (clipped[2:] > clipped[:2]).all():
        raise ValueError(
            f"{name}: `bbox` must cover a part of the image of width {width} and height {height}, "
            f"got [x, y, width, height] = {[float(value) for value in values]}. "
            "Mend or remove the annotation."
        )
    return clipped


def _masks(objects: list[Mapping[str, Any]], size: tuple[int, int], names: list[str]) -> Tensor:
    """Draw all masks, empty ones where there is no segmentation."""
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for i, item in enumerate(objects):
        if not item.get("segmentation"):
            continue
        try:
            masks[i] = torch.from_numpy(decode_segmentation(item["segmentation"], size))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{names[i]}: `segmentation` cannot be read. {error}") from error
    return masks
