"""Box arithmetic as pure functions; the format of every box is in the name of the function.

``cxcywh`` is (center x, center y, width, height), ``xyxy`` is (left, top, right, bottom). All
functions keep the leading dimensions; H and W are the height and width of a mask.
"""

import torch
from torch import Tensor

EMPTY_MASK_MINIMUM = 1e8
"""The "smallest coordinate" of a mask without pixels in the ``mask2box`` variant."""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert centers and sizes into corners, ``(..., 4)`` to ``(..., 4)``."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centers - 0.5 * sizes, centers + 0.5 * sizes), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert corners into centers and sizes, ``(..., 4)`` to ``(..., 4)``."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def generalized_box_iou(boxes: Tensor, other_boxes: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute the generalized IoU of boxes at the same place of two tensors.

    Args:
        boxes: Corners in xyxy, ``(..., 4)``.
        other_boxes: Corners in xyxy, any shape that broadcasts with ``boxes``.
        eps: Added to both denominators, so a box without area is finite (Mask DINO's 1e-6).

    Returns:
        Values in (-1, 1], ``(...)``. Boxes with negative sizes give finite values, no error.
    """
    low, other_low = boxes[..., :2], other_boxes[..., :2]
    high, other_high = boxes[..., 2:], other_boxes[..., 2:]
    intersection = _area(torch.minimum(high, other_high) - torch.maximum(low, other_low), clamp=True)
    hull = _area(torch.maximum(high, other_high) - torch.minimum(low, other_low), clamp=True)
    union = _area(high - low) + _area(other_high - other_low) - intersection
    return intersection / (union + eps) - (hull - union) / (hull + eps)


def pairwise_generalized_box_iou(boxes: Tensor, other_boxes: Tensor, eps: float = 1e-6) -> Tensor:
    """Compute the generalized IoU of every box with every other box.

    Args:
        boxes: Corners in xyxy, ``(..., n, 4)``.
        other_boxes: Corners in xyxy, ``(..., m, 4)``.
        eps: Added to both denominators.

    Returns:
        Values in (-1, 1], ``(..., n, m)``.
    """
    return generalized_box_iou(boxes[..., :, None, :], other_boxes[..., None, :, :], eps)


def inverse_sigmoid(probs: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the logit of values that are first clamped to [0, 1].

    Numerator and denominator are clamped to ``eps`` one after the other, as in DETR's family;
    ``torch.special.logit`` differs near 1.
    """
    probs = probs.clamp(min=0, max=1)
    return torch.log(probs.clamp(min=eps) / (1 - probs).clamp(min=eps))


def masks_to_boxes(masks: Tensor, variant: str = "bitmask") -> Tensor:
    """Find the smallest box around each mask.

    Args:
        masks: Boolean masks, ``(..., H, W)``.
        variant: ``"bitmask"``: the right and lower border lie behind the last pixel and an empty
            mask gives (0, 0, 0, 0). ``"mask2box"``: they lie at the last pixel (no + 1) and an
            empty mask gives (1e8, 1e8, 0, 0). Official Mask DINO weights need the one that
            they were trained with.

    Returns:
        Corners in xyxy, in pixels, float32, ``(..., 4)``.

    Raises:
        ValueError: If ``variant`` is neither of the two.
    """
    if variant not in ("bitmask", "mask2box"):
        raise ValueError(f"`variant` must be 'bitmask' or 'mask2box', got {variant!r}.")
    left, right = _extent(masks.any(dim=-2))
    top, bottom = _extent(masks.any(dim=-1))
    boxes = torch.stack((left, top, right, bottom), dim=-1)
    if variant == "mask2box":
        return boxes
    is_empty = left == EMPTY_MASK_MINIMUM
    return (boxes + boxes.new_tensor([0, 0, 1, 1])).masked_fill(is_empty[..., None], 0)


def image_to_canvas_boxes(boxes: Tensor, image_sizes: Tensor, canvas_size: tuple[int, int] | Tensor) -> Tensor:
    """Express boxes that are relative to the real image relative to its canvas.

    The image lies in the top left corner of the canvas, so only a scale is needed.

    Args:
        boxes: cxcywh in [0, 1] of the real image, ``(..., n, 4)``.
        image_sizes: Real (height, width) in pixels, ``(..., 2)``.
        canvas_size: (height, width) of the canvas in pixels; one for all, or ``(..., 2)``.

    Returns:
        cxcywh in [0, 1] of the canvas, ``(..., n, 4)``.
    """
    return boxes * _canvas_scale(boxes, image_sizes, canvas_size)


def canvas_to_image_boxes(boxes: Tensor, image_sizes: Tensor, canvas_size: tuple[int, int] | Tensor) -> Tensor:
    """Express boxes that are relative to the canvas relative to the real image.

    The inverse of :func:`image_to_canvas_boxes`; a box that reaches into the padding ends up
    beyond 1 and is not clipped.

    Args:
        boxes: cxcywh in [0, 1] of the canvas, ``(..., n, 4)``.
        image_sizes: Real (height, width) in pixels, ``(..., 2)``.
        canvas_size: (height, width) of the canvas in pixels; one for all, or ``(..., 2)``.

    Returns:
        cxcywh of the real image, ``(..., n, 4)``.
    """
    return boxes / _canvas_scale(boxes, image_sizes, canvas_size)


def _canvas_scale(boxes: Tensor, image_sizes: Tensor, canvas_size: tuple[int, int] | Tensor) -> Tensor:
    """Return the share of the canvas that the image fills, as (w, h, w, h), ``(..., 1, 4)``."""
    canvas = torch.as_tensor(canvas_size, dtype=boxes.dtype, device=boxes.device)
    share = image_sizes.to(boxes) / canvas
    return share[..., None, [1, 0, 1, 0]]


def _area(sizes: Tensor, clamp: bool = False) -> Tensor:
    """Multiply width and height, ``(..., 2)`` to ``(...)``."""
    if clamp:
        sizes = sizes.clamp(min=0)
    return sizes[..., 0] * sizes[..., 1]


def _extent(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last occupied index, ``(..., length)`` to two ``(...)``."""
    index = torch.arange(occupied.shape[-1], dtype=torch.float32, device=occupied.device)
    first = torch.where(occupied, index, EMPTY_MASK_MINIMUM).amin(dim=-1)
    last = torch.where(occupied, index, 0.0).amax(dim=-1)
    return first, last
