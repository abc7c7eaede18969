"""Assign queries to targets at the least cost (the Hungarian matcher of DETR with mask costs).

Reference: Mask DINO, section 3.3 (https://arxiv.org/abs/2206.02777). The costs of all predictions
of all images are computed together and reach the CPU in one transfer.

Not stated in the paper, chosen here: the predictions of one image share their sample points
(official code draws new ones for each), so mask features are sampled once.

P is the number of predictions, Q of queries, N of targets in the batch, T the largest number of
targets in an image, S the number of sample points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from .boxes import cxcywh_to_xyxy, pairwise_generalized_box_iou
from .proposal_query_decoder import ProposalPredictions

WORST_COST = 1e6
"""Stands in for a cost that is not finite, so that a broken prediction is matched last."""
COST_CHUNK_ELEMENTS = 2**26
"""Sampled mask logits that exist at one time (256 MB in float32)."""


@dataclass(frozen=True)
class ProposalLossSettings:
    """Weights and sampling of the proposal losses; the weights are the matching costs as well."""

    class_weight: float = 4.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544
    """Points at which a mask is compared."""
    oversample_ratio: float = 3.0
    """Candidates per point among which the uncertain ones are chosen."""
    importance_ratio: float = 0.75
    """Share of the points that are uncertain; the rest is uniform."""
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


@dataclass
class ProposalTargets:
    """The targets of a batch, one image after the other."""

    labels: Tensor
    """Class of each target, ``(N,)``."""
    boxes: Tensor
    """cxcywh in [0, 1] of the canvas, float32, ``(N, 4)``."""
    masks: Tensor | None
    """On the canvas, bool, ``(N, H, W)``; None if there are no masks in the batch."""
    has_mask: Tensor
    """Whether a target takes part in the mask costs and losses, bool, ``(N,)``."""
    counts: list[int]
    """Targets of each image."""
    images: Tensor
    """Index of each target's image, ``(N,)``."""
    slots: Tensor
    """Index of each target in its image, ``(N,)``."""

    @classmethod
    def from_list(cls, targets: Sequence[Mapping[str, Tensor]], device: torch.device) -> "ProposalTargets":
        """Join the targets of the images.

        Args:
            targets: Per image ``"class_labels"`` ``(n,)``, ``"boxes"`` ``(n, 4)`` cxcywh in [0, 1]
                of the canvas, and ``"masks"`` ``(n, H, W)`` unless no target of the image has one;
                where only some have one, ``"has_mask"`` ``(n,)`` tells which.
            device: Where the targets shall live.

        Raises:
            ValueError: If labels, boxes and masks differ in number.
        """
        counts = [len(target["class_labels"]) for target in targets]
        for index, (target, count) in enumerate(zip(targets, counts)):
            for name in ("boxes", "masks", "has_mask"):
                if name in target and len(target[name]) != count:
                    raise ValueError(
                        f"`targets[{index}]` must have one of `{name}` per class label, got "
                        f"{len(target[name])} for {count} labels."
                    )
        # a batch without any target keeps its (empty) masks, so that the mask terms stay
        with_targets = [target for target, count in zip(targets, counts) if count] or targets
        with_masks = [target["masks"] for target in with_targets if "masks" in target]
        canvas = with_masks[0].shape[1:] if with_masks else ()
        masks = [t.get("masks", torch.zeros(len(t["boxes"]), *canvas, dtype=torch.bool)) for t in with_targets]
        has_mask = [t.get("has_mask", torch.full((count,), "masks" in t)) for t, count in zip(targets, counts)]
        slots = [torch.arange(count, device=device) for count in counts]
        images = torch.arange(len(counts), device=device)
        counts_on_device = torch.tensor(counts, device=device)
        return cls(
            labels=torch.cat([target["class_labels"] for target in targets]).to(device),
            boxes=torch.cat([target["boxes"] for target in targets]).to(device, torch.float32),
            masks=torch.cat([mask.to(device) for mask in masks]) if with_masks else None,
            has_mask=torch.cat([each.to(device) for each in has_mask]),
            counts=counts,
            images=images.repeat_interleave(counts_on_device, output_size=sum(counts)),
            slots=torch.cat(slots),
        )

    def pad(self, values: Tensor) -> Tensor:
        """Arrange values by image, ``(N, ...)`` to ``(batch, T, ...)``, with zeros behind."""
        return pad_sequence(values.split(self.counts), batch_first=True)

    def padding_mask(self) -> Tensor:
        """Return where ``pad`` put targets, ``(batch, T)``."""
        return self.pad(torch.ones_like(self.slots, dtype=torch.bool))


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Read maps bilinearly at points.

    Args:
        maps: ``(batch, channels, H, W)``.
        points: (x, y) in [0, 1], ``(batch, S, 2)``.

    Returns:
        ``(batch, channels, S)``.
    """
    return F.grid_sample(maps, 2 * points[:, None] - 1, align_corners=False).squeeze(2)


def match_queries(
    predictions: ProposalPredictions,
    targets: ProposalTargets,
    mask_features: Tensor,
    points: Tensor | None,
    settings: ProposalLossSettings,
) -> Tensor:
    """Assign to every target its query, for each prediction on its own.

    Args:
        predictions: P predictions for the same queries.
        targets: What is in the images.
        mask_features: ``(batch, D_p, H/4, W/4)``, float32.
        points: Where masks are compared, (x, y) in [0, 1] of the canvas, ``(batch, S, 2)``; None
            leaves the mask costs out. A target without a mask has none.
        settings: Weights of the costs.

    Returns:
        Query of each target, -1 if there are more targets than queries and it got none, ``(P, N)``.
    """
    costs = matching_costs(predictions, targets, mask_features, points, settings).cpu()
    num_predictions = costs.shape[0]
    assigned = torch.full((num_predictions, sum(targets.counts)), -1, dtype=torch.int64)
    rows, start = assigned.numpy(), 0
    for image, count in enumerate(targets.counts):
        image_costs = costs[:, image, :, :count].numpy()
        for prediction in range(num_predictions if count else 0):
            queries, slots = linear_sum_assignment(image_costs[prediction])
            rows[prediction, start + slots] = queries
        start += count
    return assigned.to(targets.labels.device)


@torch.no_grad()
def matching_costs(
    predictions: ProposalPredictions,
    targets: ProposalTargets,
    mask_features: Tensor,
    points: Tensor | None,
    settings: ProposalLossSettings,
) -> Tensor:
    """Compute the cost of every query for every target of its image.

    Args:
        predictions: P predictions for the same queries.
        targets: What is in the images.
        mask_features: ``(batch, D_p, H/4, W/4)``, float32.
        points: As in :func:`match_queries`.
        settings: Weights of the costs.

    Returns:
        Finite costs, ``(P, batch, Q, T)``; those of padded targets mean nothing.
    """
    boxes = predictions.boxes.float()
    target_boxes = targets.pad(targets.boxes)[None].expand(len(boxes), -1, -1, -1)
    costs = settings.class_weight * _class_costs(
        predictions.class_logits.float(), targets.pad(targets.labels), settings
    )
    costs = costs + settings.bbox_weight * torch.cdist(boxes, target_boxes, p=1)
    costs = costs - settings.giou_weight * pairwise_generalized_box_iou(
        cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)
    )
    if targets.masks is not None and points is not None:
        masks = targets.masks[:, None].float()
        target_labels = targets.pad(sample_points(masks, points[targets.images])[:, 0])
        features = sample_points(mask_features, points)  # (batch, D_p, S)
        embeddings = predictions.mask_embeddings
        elements = embeddings[0, ..., 0].numel() * points.shape[1]
        chunk_size = max(1, COST_CHUNK_ELEMENTS // elements)
        mask_costs = [
            _mask_costs(torch.einsum("pbqd,bds->pbqs", chunk.float(), features), target_labels, settings)
            for chunk in embeddings.split(chunk_size)
        ]
        has_mask = targets.pad(targets.has_mask)[None, :, None]  # (1, batch, 1, T)
        costs = costs + torch.cat(mask_costs).where(has_mask, 0)
    return costs.nan_to_num(nan=WORST_COST, posinf=WORST_COST, neginf=WORST_COST)


def _class_costs(class_logits: Tensor, labels: Tensor, settings: ProposalLossSettings) -> Tensor:
    """Compute focal costs of each target's class, ``(P, batch, Q, T)``."""
    log_probs, log_complements = F.logsigmoid(class_logits), F.logsigmoid(-class_logits)
    probs = class_logits.sigmoid()
    alpha, gamma = settings.focal_alpha, settings.focal_gamma
    positive = -alpha * (1 - probs) ** gamma * log_probs
    negative = -(1 - alpha) * probs**gamma * log_complements
    index = labels[None, :, None, :].expand(*class_logits.shape[:3], -1)  # (P, batch, Q, T)
    return (positive - negative).gather(-1, index)


def _mask_costs(logits: Tensor, labels: Tensor, settings: ProposalLossSettings) -> Tensor:
    """Compute cross-entropy and dice costs at the sample points.

    Args:
        logits: Sampled predictions, ``(P, batch, Q, S)``.
        labels: Sampled targets in [0, 1], ``(batch, T, S)``.
        settings: Weights of the costs.

    Returns:
        ``(P, batch, Q, T)``.
    """
    # -y log p - (1 - y) log(1 - p) = softplus(x) - x y, so one product serves all targets
    crossed = torch.einsum("pbqs,bts->pbqt", logits, labels)
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - crossed) / logits.shape[-1]
    probs = logits.sigmoid()
    overlap = 2 * torch.einsum("pbqs,bts->pbqt", probs, labels)
    total = probs.sum(-1, keepdim=True) + labels.sum(-1)[None, :, None, :]
    dice = 1 - (overlap + 1) / (total + 1)
    return settings.mask_weight * cross_entropy + settings.dice_weight * dice
