"""COCO segmentations to binary masks and back: polygons, run lengths, compressed run lengths.

Format: https://cocodataset.org/#format-data. The work is done by pycocotools, which is imported
inside the functions because ``import transformers_upv2`` must not pay for it.
"""

from typing import Any

import numpy as np

MIN_POLYGON_NUMBERS = 6  # three points; pycocotools would read four numbers as a box


def decode_segmentation(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Draw one COCO segmentation as a binary mask.

    Args:
        segmentation: Polygons ``[[x1, y1, x2, y2, ...], ...]`` in pixels, whose union is the
            object, or a run-length encoding ``{"size": [height, width], "counts": ...}``, where
            ``counts`` is a list of run lengths or a compressed string.
        size: (height, width) of the image that the segmentation belongs to.

    Returns:
        The mask, ``(height, width)`` bool.

    Raises:
        ValueError: If the segmentation is malformed or was made for an image of another size.
    """
    from pycocotools import mask as coco  # see the module docstring

    height, width = size
    if isinstance(segmentation, dict):
        _check_run_lengths(segmentation, size)
        if isinstance(segmentation["counts"], list):
            segmentation = coco.frPyObjects(segmentation, height, width)
        return coco.decode(segmentation).astype(bool)
    _check_polygons(segmentation)
    return coco.decode(coco.merge(coco.frPyObjects(segmentation, height, width))).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a binary mask as compressed COCO run lengths that ``json.dump`` accepts.

    Args:
        mask: The mask, ``(height, width)``; nonzero is the object.

    Returns:
        ``{"size": [height, width], "counts": str}``, which `decode_segmentation` reads.
    """
    from pycocotools import mask as coco  # see the module docstring

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _check_run_lengths(segmentation: dict[str, Any], size: tuple[int, int]) -> None:
    """Refuse run lengths that do not fill exactly the image."""
    if not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            "Run lengths must have the keys 'size' and 'counts', got "
            f"{sorted(segmentation)}. Pass COCO run lengths or polygons."
        )
    if tuple(segmentation["size"]) != tuple(size):
        raise ValueError(
            f"Run lengths of size {list(segmentation['size'])} cannot belong to an image of "
            f"(height, width) {list(size)}. Annotate the image as it is stored upright."
        )
    counts = segmentation["counts"]
    if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
        raise ValueError(f"Run lengths must add up to height x width = {size[0] * size[1]}, got {sum(counts)}.")


def _check_polygons(polygons: list[list[float]]) -> None:
    """Refuse polygons that pycocotools would misread or crash on."""
    if not isinstance(polygons, list | tuple) or not polygons:
        raise ValueError(
            f"A segmentation must be a non-empty list of polygons or a dict of run lengths, got {polygons!r}."
        )
    for polygon in polygons:
        numbers = np.asarray(polygon, dtype=np.float64)
        if numbers.ndim != 1 or numbers.size < MIN_POLYGON_NUMBERS or numbers.size % 2:
            raise ValueError(
                f"A polygon must be a flat list of at least three points [x1, y1, x2, y2, x3, y3], got {polygon!r}."
            )
        if not np.isfinite(numbers).all():
            raise ValueError(f"A polygon must hold finite numbers, got {polygon!r}.")
