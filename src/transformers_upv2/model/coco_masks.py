"""COCO segmentations to binary masks and back: polygons, run lengths, compressed run lengths.

Format: https://cocodataset.org/#format-data. The work is done by pycocotools, which is imported
inside the functions because ``import transformers_upv2`` must not pay for it.
"""

from typing import Any

import numpy as np

MIN_POLYGON_NUMBERS = 6  # three points; pycocotools would read four numbers as a box
MAX_COORDINATE = 100_000
"""No side of an image is longer; pycocotools walks along every edge of a polygon and fails past 2^31 / 5 pixels."""
MAX_SHIFT = 35  # eight characters hold any run length


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


def run_lengths(counts: list[int] | str | bytes) -> list[int]:
    """Return COCO's run lengths as numbers.

    The compressed code has six bits a character: five of the number, and whether more follow; from the fourth number
    on it holds differences to the last but one.

    Args:
        counts: Run lengths as they are, or the compressed code.

    Raises:
        ValueError: If it is not such a code.
    """
    if isinstance(counts, list):
        return counts
    code = counts if isinstance(counts, bytes) else counts.encode("ascii")
    bits = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - ord("0")
    is_last = bits < 32  # of its number
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or not is_last[-1]:
        raise ValueError(f"{counts!r} is no compressed run-length code")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifts = 5 * (np.arange(len(bits)) - np.repeat(starts, ends - starts + 1))
    if shifts.max() > MAX_SHIFT:
        raise ValueError(f"{counts!r} is no compressed run-length code")
    numbers = np.add.reduceat((bits & 31) << shifts, starts)
    numbers -= (bits[ends] >> 4 & 1) << (shifts[ends] + 5)  # the sign
    for first in (1, 2):
        numbers[first::2] = numbers[first::2].cumsum()
    return numbers.tolist()


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
    counts = run_lengths(segmentation["counts"])
    if min(counts, default=0) < 0 or sum(counts) != size[0] * size[1]:
        raise ValueError(
            f"Run lengths must not be negative and add up to height x width = {size[0] * size[1]}, got the smallest "
            f"{min(counts, default=0)} and the sum {sum(counts)}."
        )


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
        if not (np.abs(numbers) <= MAX_COORDINATE).all():
            raise ValueError(f"A polygon must hold finite numbers up to {MAX_COORDINATE}, got {polygon!r}.")
