"""Clip and move COCO boxes and segmentations, in the pixel frame of their image.

A COCO box is [left, top, width, height]. A COCO segmentation is a list of polygons
``[x1, y1, x2, y2, ...]`` or a run-length code ``{"size": [height, width], "counts": ...}``.
"""

from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from transformers_upv2.model.coco_masks import decode_segmentation, encode_mask

Segmentation = list[list[float]] | dict[str, Any]


def clip_box(box: list[float], width: float, height: float) -> list[float]:
    """Return the part of a box inside an image; its width or height is 0 if there is none."""
    left, top, box_width, box_height = box
    right, bottom = min(left + box_width, width), min(top + box_height, height)
    left, top = max(left, 0.0), max(top, 0.0)
    return [left, top, max(right - left, 0.0), max(bottom - top, 0.0)]


def clip_polygon(points: np.ndarray, width: float, height: float) -> np.ndarray:
    """Cut a polygon with an image's frame (Sutherland and Hodgman's algorithm).

    Args:
        points: The corners, ``(points, 2)`` as (x, y).
        width: The frame's right edge.
        height: The frame's lower edge.

    Returns:
        The corners of the part inside, ``(points, 2)``; no rows if nothing is.
    """
    edges = ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0))
    for axis, limit, sign in edges:
        if len(points) == 0:
            break
        inside = sign * (points[:, axis] - limit) >= 0
        if inside.all():
            continue
        kept: list[np.ndarray] = []
        for i, point in enumerate(points):
            previous = points[i - 1]
            if inside[i] != inside[i - 1]:
                fraction = (limit - previous[axis]) / (point[axis] - previous[axis])
                kept.append(previous + fraction * (point - previous))
            if inside[i]:
                kept.append(point)
        points = np.array(kept).reshape(-1, 2)
    return points


def to_rle(segmentation: Segmentation, width: int, height: int) -> dict[str, Any]:
    """Return a segmentation of any kind as one compressed run-length code."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))


def tight_box(segmentation: Segmentation, width: int, height: int) -> list[float]:
    """Return the least box around a segmentation of any kind; of polygons, that of their points."""
    if isinstance(segmentation, dict):
        return coco_mask.toBbox(to_rle(segmentation, width, height)).tolist()
    points = np.concatenate([np.array(polygon).reshape(-1, 2) for polygon in segmentation])
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return [left, top, right - left, bottom - top]


class Placement:
    """A move of an image's content: mirror, then scale, then shift, then cut with a new frame."""

    def __init__(
        self,
        old_size: tuple[int, int],
        new_size: tuple[int, int],
        scale: tuple[float, float] = (1.0, 1.0),
        shift: tuple[int, int] = (0, 0),
        mirrored: bool = False,
    ):
        """Describe the move.

        Args:
            old_size: (width, height) of the image before.
            new_size: (width, height) of the frame after.
            scale: New pixels per old pixel, in x and y.
            shift: Where the content's left top corner comes to lie, in new pixels.
            mirrored: Whether left and right are exchanged.
        """
        self.old_size, self.new_size = old_size, new_size
        self.scale, self.shift, self.mirrored = np.array(scale), np.array(shift), mirrored

    def move_points(self, points: np.ndarray) -> np.ndarray:
        """Move points, ``(points, 2)`` as (x, y), without cutting."""
        if self.mirrored:
            points = np.stack([self.old_size[0] - points[:, 0], points[:, 1]], axis=1)
        return points * self.scale + self.shift

    def move_box(self, box: list[float]) -> list[float]:
        """Move a box and cut it with the new frame."""
        left, top, width, height = box
        corners = self.move_points(np.array([[left, top], [left + width, top + height]]))
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        moved = [float(left), float(top), float(right - left), float(bottom - top)]
        return clip_box(moved, *self.new_size)

    def move_mask(self, mask: np.ndarray) -> np.ndarray:
        """Move a mask, ``(old height, old width)`` bool, by nearest neighbour."""
        new_width, new_height = self.new_size
        corners = (np.array([[0, 0], [new_width, new_height]]) - self.shift) / self.scale
        source = np.fliplr(mask) if self.mirrored else mask
        moved = Image.fromarray(source.astype(np.uint8)).transform(
            (new_width, new_height),
            Image.Transform.EXTENT,
            tuple(corners.ravel()),
            Image.Resampling.NEAREST,
        )
        return np.asarray(moved).astype(bool)

    def move_annotation(self, annotation: dict[str, Any]) -> dict[str, Any] | None:
        """Move an annotation: box, segmentation and area fit each other afterwards.

        Returns:
            A new annotation dict, or None if nothing of it lies in the new frame. Where a cut
            changed the box of an annotation with a mask, the new box is tight around the mask.
        """
        box = self.move_box(annotation["bbox"])
        if min(box[2:]) <= 0:
            return None
        old_box_area = annotation["bbox"][2] * annotation["bbox"][3] * float(self.scale.prod())
        is_cut = box[2] * box[3] < old_box_area * (1 - 1e-6)
        segmentation = annotation.get("segmentation")
        if not segmentation:
            return {**annotation, "bbox": box, "area": box[2] * box[3]}
        moved: Segmentation = (
            self._move_rle(segmentation)
            if isinstance(segmentation, dict)
            else self._move_polygons(segmentation, is_cut)
        )
        if not moved:
            return None
        rle = to_rle(moved, *self.new_size)
        area = float(coco_mask.area(rle))
        if area == 0:
            return None
        if is_cut:
            box = tight_box(moved, *self.new_size)
        return {**annotation, "segmentation": moved, "bbox": box, "area": area}

    def _move_rle(self, segmentation: dict[str, Any]) -> dict[str, Any]:
        width, height = self.old_size
        return encode_mask(self.move_mask(decode_segmentation(segmentation, (height, width))))

    def _move_polygons(self, polygons: list[list[float]], is_cut: bool) -> list[list[float]]:
        moved = [self.move_points(np.array(polygon).reshape(-1, 2)) for polygon in polygons]
        if is_cut:
            moved = [clip_polygon(points, *self.new_size) for points in moved]
        return [points.ravel().tolist() for points in moved if len(points) >= 3]
