"""From logits, boxes and masks to detections and instances in pixels of the user's image.

The choice of detections is Mask DINO's: the best (query, class) pairs by the sigmoid of the logits,
so one query may answer with several classes. Only the queries that are chosen get a mask of full
size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .boxes import cxcywh_to_xyxy
from .coco_masks import encode_mask

MASK_STRIDE = 4
MAX_CHUNK_PIXELS = 2**24  # floating point pixels of the masks in work at a time: 64 MB

TargetSizes = Tensor | list[tuple[int, int]] | None


class Detections(NamedTuple):
    """The best pairs of one image, by descending score."""

    scores: Tensor  # (n,)
    labels: Tensor  # (n,)
    queries: Tensor  # (n,) which proposal
    boxes: Tensor  # (n, 4) xyxy, in pixels of the target or in [0, 1] without one


def select_detections(
    outputs: Any, threshold: float, target_sizes: TargetSizes, top_k: int | None
) -> list[Detections]:
    """Choose the best (query, class) pairs of each image.

    Args:
        outputs: With ``logits`` ``(batch, queries, classes)`` and ``pred_boxes`` ``(batch, queries,
            4)`` cxcywh in [0, 1] of the real image.
        threshold: A score must be greater.
        target_sizes: (height, width) of each image that the boxes are for, or None for [0, 1].
        top_k: How many pairs at most; None for all.

    Returns:
        One `Detections` an image, its boxes clipped to the image.

    Raises:
        ValueError: If there are not as many target sizes as images.
    """
    sizes = list_target_sizes(target_sizes, len(outputs.logits))
    detections = []
    for i, logits in enumerate(outputs.logits):
        probabilities = logits.float().sigmoid().flatten()  # (queries * classes,)
        pairs = (probabilities > threshold).nonzero().flatten()  # before sorting: a thousand labels make many pairs
        pairs = pairs[probabilities[pairs].argsort(descending=True, stable=True)[:top_k]]
        scores = probabilities[pairs]
        num_classes = max(logits.shape[-1], 1)
        queries = pairs // num_classes
        boxes = cxcywh_to_xyxy(outputs.pred_boxes[i].float()[queries]).clamp(0, 1)
        if sizes is not None:
            height, width = sizes[i]
            boxes = boxes * boxes.new_tensor([width, height, width, height])
        detections.append(Detections(scores, pairs % num_classes, queries, boxes))
    return detections


def select_instances(
    outputs: Any,
    threshold: float,
    mask_threshold: float,
    target_sizes: TargetSizes,
    top_k: int | None,
) -> list[dict[str, Tensor]]:
    """Choose detections and draw their masks.

    The score of an instance is its class score times the mean mask probability inside its mask, as
    in
    Mask2Former: a mask that is unsure of itself counts less.

    Args:
        outputs: As for `select_detections`, with ``pred_masks`` ``(batch, queries, H/4, W/4)``
            logits over the padded tensor and ``image_sizes`` ``(batch, 2)``, the real (height,
            width) in it.
        threshold: A score must be greater.
        mask_threshold: A pixel belongs to a mask if its probability is greater.
        target_sizes: (height, width) of each image that boxes and masks are for; None for the sizes
            that the images have in the tensor.
        top_k: How many detections at most; None for all.

    Returns:
        One dict an image: ``scores`` ``(n,)`` descending, ``labels`` ``(n,)``, ``boxes`` ``(n, 4)``
        xyxy in pixels, ``masks`` ``(n, height, width)`` bool, which may overlap.

    Raises:
        ValueError: If there are no masks in the outputs or not as many target sizes as images.
    """
    if getattr(outputs, "pred_masks", None) is None:
        raise ValueError(
            "`outputs` must hold `pred_masks`, got none. Masks come from `UniPerceiverV2ForInstanceSegmentation`."
        )
    sizes = list_target_sizes(target_sizes, len(outputs.logits)) or outputs.image_sizes.tolist()
    instances = []
    for i, found in enumerate(select_detections(outputs, threshold, sizes, top_k)):
        queries, position = found.queries.unique(return_inverse=True)
        masks, quality = draw_masks(
            outputs.pred_masks[i][queries],
            outputs.image_sizes[i].tolist(),
            sizes[i],
            mask_threshold,
        )
        scores = found.scores * quality[position]
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] > threshold]
        instances.append(
            {
                "scores": scores[order],
                "labels": found.labels[order],
                "boxes": found.boxes[order],
                "masks": masks[position[order]],
            }
        )
    return instances


def draw_masks(
    mask_logits: Tensor,
    image_size: tuple[int, int],
    target_size: tuple[int, int],
    mask_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Bring masks of stride 4 over the padded tensor to the size of the user's image.

    Args:
        mask_logits: ``(n, H/4, W/4)`` over the padded tensor ``(H, W)``.
        image_size: Real (height, width) in the padded tensor.
        target_size: (height, width) to draw at.
        mask_threshold: A pixel belongs to a mask if its probability is greater.

    Returns:
        The masks, ``(n, *target_size)`` bool, and the mean probability inside each, ``(n,)``; 0 for
        an empty mask.
    """
    height, width = image_size
    masks = torch.empty(len(mask_logits), *target_size, dtype=torch.bool, device=mask_logits.device)
    quality = torch.zeros(len(mask_logits), device=mask_logits.device)
    padded_pixels = mask_logits[0].numel() * MASK_STRIDE**2 if len(mask_logits) else 1
    step = max(1, MAX_CHUNK_PIXELS // max(padded_pixels, target_size[0] * target_size[1]))
    for start in range(0, len(mask_logits), step):
        chunk = slice(start, start + step)
        logits = mask_logits[chunk, None].float()  # (step, 1, H/4, W/4)
        logits = F.interpolate(logits, scale_factor=MASK_STRIDE, mode="bilinear")
        logits = F.interpolate(logits[..., :height, :width], size=target_size, mode="bilinear")
        probabilities = logits[:, 0].sigmoid()
        masks[chunk] = probabilities > mask_threshold
        inside = masks[chunk].flatten(1).sum(1)
        quality[chunk] = (probabilities * masks[chunk]).flatten(1).sum(1) / inside.clamp(min=1)
    return masks, quality


def instances_to_map(instances: dict[str, Tensor], overlap_mask_area_threshold: float) -> dict[str, Any]:
    """Lay instances onto one map in which a pixel belongs to one instance at most.

    The most certain instance is laid first. One that keeps less than
    ``overlap_mask_area_threshold`` of its area is left out.

    Args:
        instances: One image of `select_instances`.
        overlap_mask_area_threshold: Smallest visible share of an instance.

    Returns:
        ``segmentation`` ``(height, width)`` int32, 0 = no instance, and ``segments_info``, a list
        of ``{"id", "label_id", "was_fused", "score"}`` whose ids start at 1.
    """
    masks = instances["masks"]
    segmentation = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    segments: list[dict[str, Any]] = []
    for mask, label, score in zip(masks, instances["labels"].tolist(), instances["scores"].tolist()):
        visible = mask & (segmentation == 0)
        area = int(visible.sum())
        if area == 0 or area < overlap_mask_area_threshold * int(mask.sum()):
            continue
        segments.append(_segment(len(segments) + 1, label, score))
        segmentation[visible] = len(segments)
    return {"segmentation": segmentation, "segments_info": segments}


def instances_to_list(instances: dict[str, Tensor], as_coco: bool) -> dict[str, Any]:
    """List instances with their whole masks, which may overlap.

    Args:
        instances: One image of `select_instances`.
        as_coco: Compressed COCO run lengths instead of tensors.

    Returns:
        ``segmentation``, masks ``(n, height, width)`` bool or n run lengths, and ``segments_info``,
        whose id i stands for entry i.
    """
    masks = instances["masks"]
    info = zip(instances["labels"].tolist(), instances["scores"].tolist())
    return {
        "segmentation": [encode_mask(mask.cpu().numpy()) for mask in masks] if as_coco else masks,
        "segments_info": [_segment(i, label, score) for i, (label, score) in enumerate(info)],
    }


def _segment(segment_id: int, label: int, score: float) -> dict[str, Any]:
    """Describe an instance by the keys of DETR's read-out; ours are never fused."""
    return {"id": segment_id, "label_id": label, "was_fused": False, "score": score}


def list_target_sizes(target_sizes: TargetSizes, batch_size: int) -> list[tuple[int, int]] | None:
    """Read target sizes as pairs of integers, one for each image.

    Args:
        target_sizes: ``(batch, 2)`` tensor or pairs, (height, width).
        batch_size: How many there must be.

    Returns:
        The pairs, or None for None.

    Raises:
        ValueError: If there are not as many as images.
    """
    if target_sizes is None:
        return None
    if len(target_sizes) != batch_size:
        raise ValueError(
            "`target_sizes` must hold one (height, width) for each image, got "
            f"{len(target_sizes)} for a batch of {batch_size}."
        )
    return [(int(height), int(width)) for height, width in target_sizes]
