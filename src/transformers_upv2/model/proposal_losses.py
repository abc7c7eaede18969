"""Losses of the proposal network: foreground, boxes and masks of all predictions at once.

Reference: Mask DINO, section 3.3 (https://arxiv.org/abs/2206.02777); masks are compared at points,
three quarters of them uncertain, as in PointRend (https://arxiv.org/abs/1912.08193).

Inputs: a :class:`ProposalOutput` that was computed with targets, and the same targets.
Relations: :func:`match_queries` gives the pairs of the matching part, the pairs of the denoising
part are fixed. Every term is a sum over pairs (``loss_ce``: over queries) divided by the number of
targets, averaged over ranks.

P is the number of matched predictions, N of targets in the batch, D_p the hidden size. A *row* is
one pairing of all N targets with queries: one per matched prediction, and one per denoising
prediction and group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import cxcywh_to_xyxy, generalized_box_iou
from .distributed import mean_over_ranks
from .proposal_matcher import (
    ProposalLossSettings,
    ProposalTargets,
    match_queries,
    sample_points,
)
from .proposal_query_decoder import ProposalPredictions, TrainingPredictions

WEIGHT_FIELDS = {
    "loss_ce": "class_weight",
    "loss_bbox": "bbox_weight",
    "loss_giou": "giou_weight",
    "loss_mask": "mask_weight",
    "loss_dice": "dice_weight",
}
"""The field of :class:`ProposalLossSettings` that weights each base term."""
CANDIDATE_CHUNK_ELEMENTS = 2**26
"""Candidate points that exist at one time."""


@dataclass
class SampledPoints:
    """Random points (x, y) in [0, 1] of the canvas; injectable for tests."""

    matching: Tensor
    """Points for the matching costs, ``(batch, num_points, 2)``."""
    candidates: Tensor
    """Points among which the uncertain ones are chosen, ``(rows, N, num_points * 3, 2)``."""
    uniform: Tensor
    """The points that are used anyway, ``(rows, N, num_points / 4, 2)``."""


@dataclass
class _Pairs:
    """Targets with their queries, gathered."""

    boxes: Tensor  # (rows, N, 4)
    mask_embeddings: Tensor  # (rows, N, D_p)
    is_matched: Tensor  # (rows, N), 0 where a target found no query


def proposal_losses(
    training: TrainingPredictions,
    mask_features: Tensor,
    targets: Sequence[Mapping[str, Tensor]],
    settings: ProposalLossSettings,
    *,
    points: SampledPoints | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Compute all losses.

    Args:
        training: All predictions of the query decoder.
        mask_features: ``(batch, D_p, H/4, W/4)``.
        targets: Per image ``"class_labels"`` ``(n,)``, ``"boxes"`` ``(n, 4)`` cxcywh in [0, 1] of
            the canvas and ``"masks"`` ``(n, H, W)``; without masks there are no mask terms. ``"has_mask"`` ``(n,)``
            leaves single targets out of them.
        settings: Weights (of the matching costs) and sampling.
        points: Sample points; drawn if None.
        generator: Where they are drawn from.

    Returns:
        - Terms without weights, named as in official code: ``loss_ce``, ``loss_bbox``,
          ``loss_giou``, ``loss_mask``, ``loss_dice`` of the last layer; with ``_0`` for the
          input queries and ``_1``, ``_2``, ... for the earlier layers; ``_interm`` for the encoder;
          ``_dn``, ``_dn_0``, ... for the denoising part (0 without denoising queries).
        - Last layer's matched (query, target) indices of each image, ``(matched,)`` each, sorted
          by target.
    """
    with torch.autocast(mask_features.device.type, enabled=False):
        joined = ProposalTargets.from_list(targets, mask_features.device)
        mask_features = mask_features.float()
        matching_points = None
        if points is not None:
            matching_points = points.matching
        elif joined.masks is not None:
            shape = (len(targets), settings.num_points, 2)
            matching_points = _draw(shape, mask_features.device, generator)
        queries = match_queries(training.matching, joined, mask_features, matching_points, settings)
        pairs = _gather_pairs(training, joined, queries)
        rows = _box_rows(pairs, joined)
        if joined.masks is not None:
            logits, labels = _sample_masks(pairs, joined, mask_features, settings, points, generator)
            rows |= _mask_rows(logits, labels, pairs.is_matched * joined.has_mask)
        sums = {name: _split_rows(values, training) for name, values in rows.items()}
        sums["loss_ce"] = _class_sums(training, joined, queries, settings)
        num_boxes = mean_over_ranks(torch.tensor(len(joined.labels), device=mask_features.device))
        terms = _name_terms(sums, num_boxes, num_boxes * max(training.num_groups, 1))
    return terms, _indices_per_image(queries[-1], joined)


def weighted_sum(terms: Mapping[str, Tensor], settings: ProposalLossSettings) -> Tensor:
    """Weight and add up terms; a term's weight is that of its first two words.

    Args:
        terms: Scalars as :func:`proposal_losses` returns them.
        settings: The weights.

    Returns:
        A scalar.
    """
    values = torch.stack(list(terms.values()))
    weights = [getattr(settings, WEIGHT_FIELDS["_".join(name.split("_")[:2])]) for name in terms]
    return values @ values.new_tensor(weights)


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """Compute the focal loss (https://arxiv.org/abs/1708.02002) of each logit.

    Args:
        logits: ``(...)``.
        labels: 0 or 1, ``(...)``.
        alpha: Weight of the positive ones; the negative ones have 1 - alpha.
        gamma: How much well-classified ones count less.

    Returns:
        ``(...)``.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    wrong_probs = (labels - logits.sigmoid()).abs()
    return (alpha * labels + (1 - alpha) * (1 - labels)) * wrong_probs**gamma * cross_entropy


def select_uncertain_points(mask_logits: Tensor, candidates: Tensor, uniform: Tensor, num_uncertain: int) -> Tensor:
    """Choose the candidates where a mask is least decided and add the uniform points.

    Args:
        mask_logits: ``(masks, h, w)``.
        candidates: (x, y) in [0, 1], ``(masks, candidates, 2)``.
        uniform: (x, y) in [0, 1], ``(masks, others, 2)``.
        num_uncertain: Candidates to choose.

    Returns:
        ``(masks, num_uncertain + others, 2)``.
    """
    logits = sample_points(mask_logits[:, None], candidates)[:, 0]
    chosen = logits.abs().topk(num_uncertain, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat((chosen, uniform), dim=1)


def _gather_pairs(training: TrainingPredictions, targets: ProposalTargets, queries: Tensor) -> _Pairs:
    """Look up every target's query in every row; matched rows first, then denoising rows."""

    def gather(predictions: ProposalPredictions, index: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return predictions.boxes[index].float(), predictions.mask_embeddings[index].float()

    num_predictions, device = len(queries), queries.device
    prediction = torch.arange(num_predictions, device=device)[:, None]
    boxes, embeddings = gather(training.matching, (prediction, targets.images, queries.clamp(min=0)))
    is_matched = (queries >= 0).float()
    if training.denoising is None:
        return _Pairs(boxes, embeddings, is_matched)
    num_predictions, _, num_queries, _ = training.denoising.boxes.shape
    dn_queries = _denoising_queries(training.num_groups, num_queries, targets)  # (G, N)
    prediction = torch.arange(num_predictions, device=device)[:, None, None]
    dn_boxes, dn_embeddings = gather(training.denoising, (prediction, targets.images, dn_queries))  # (P, G, N, ...)
    return _Pairs(
        torch.cat((boxes, dn_boxes.flatten(0, 1))),
        torch.cat((embeddings, dn_embeddings.flatten(0, 1))),
        torch.cat((is_matched, is_matched.new_ones(dn_boxes.shape[:3]).flatten(0, 1))),
    )


def _denoising_queries(num_groups: int, num_queries: int, targets: ProposalTargets) -> Tensor:
    """Return the denoising query of every target in every group, ``(G, N)``."""
    starts = torch.arange(num_groups, device=targets.slots.device) * (num_queries // num_groups)
    return starts[:, None] + targets.slots


def _box_rows(pairs: _Pairs, targets: ProposalTargets) -> dict[str, Tensor]:
    """Sum the box losses of each row, ``(rows,)`` each."""
    target_boxes = targets.boxes.expand_as(pairs.boxes)
    l1 = F.l1_loss(pairs.boxes, target_boxes, reduction="none").sum(-1)
    giou = generalized_box_iou(cxcywh_to_xyxy(pairs.boxes), cxcywh_to_xyxy(target_boxes))
    return {
        "loss_bbox": (l1 * pairs.is_matched).sum(-1),
        "loss_giou": ((1 - giou) * pairs.is_matched).sum(-1),
    }


def _sample_masks(
    pairs: _Pairs,
    targets: ProposalTargets,
    mask_features: Tensor,
    settings: ProposalLossSettings,
    points: SampledPoints | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Read predicted and true masks at S points; only matched queries' masks are made.

    Returns:
        Logits and labels in [0, 1], ``(rows, N, S)`` each.
    """
    masks_of_images = [
        torch.einsum("rnd,dhw->rnhw", embeddings, features)
        for embeddings, features in zip(
            pairs.mask_embeddings.split(targets.counts, dim=1), mask_features.unbind(0), strict=True
        )
    ]
    masks = torch.cat(masks_of_images, dim=1)  # (rows, N, H/4, W/4)
    rows, num_targets = masks.shape[:2]
    masks = masks.flatten(0, 1)
    assert targets.masks is not None  # the caller asks for mask losses only with masks
    with torch.no_grad():
        chosen = _choose_points(masks, settings, points, generator)  # (rows * N, S, 2)
        by_target = chosen.unflatten(0, (rows, num_targets)).transpose(0, 1).flatten(1, 2)
        labels = sample_points(targets.masks[:, None].float(), by_target)  # (N, 1, rows * S)
        labels = labels.view(num_targets, rows, settings.num_points).transpose(0, 1)
    return sample_points(masks[:, None], chosen).view(labels.shape), labels


def _mask_rows(logits: Tensor, labels: Tensor, takes_part: Tensor) -> dict[str, Tensor]:
    """Sum the mask losses of each row, ``(rows,)`` each, over the targets that take part, ``(rows, N)``."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    probs = logits.sigmoid()
    overlap, total = 2 * (probs * labels).sum(-1), probs.sum(-1) + labels.sum(-1)
    dice = 1 - (overlap + 1) / (total + 1)
    return {
        "loss_mask": (cross_entropy * takes_part).sum(-1),
        "loss_dice": (dice * takes_part).sum(-1),
    }


def _choose_points(
    mask_logits: Tensor,
    settings: ProposalLossSettings,
    points: SampledPoints | None,
    generator: torch.Generator | None,
) -> Tensor:
    """Choose points for each mask in chunks, ``(masks, num_points, 2)``."""
    num_candidates = int(settings.num_points * settings.oversample_ratio)
    num_uncertain = int(settings.num_points * settings.importance_ratio)
    num_uniform = settings.num_points - num_uncertain
    device = mask_logits.device
    chunks = mask_logits.split(max(1, CANDIDATE_CHUNK_ELEMENTS // num_candidates))
    sizes = [len(chunk) for chunk in chunks]
    if points is None:
        candidates = (_draw((size, num_candidates, 2), device, generator) for size in sizes)
        uniform = (_draw((size, num_uniform, 2), device, generator) for size in sizes)
    else:
        candidates = points.candidates.flatten(0, 1).split(sizes)
        uniform = points.uniform.flatten(0, 1).split(sizes)
    return torch.cat(
        [select_uncertain_points(*inputs, num_uncertain) for inputs in zip(chunks, candidates, uniform, strict=True)]
    )


def _class_sums(
    training: TrainingPredictions,
    targets: ProposalTargets,
    queries: Tensor,
    settings: ProposalLossSettings,
) -> tuple[Tensor, Tensor]:
    """Sum the focal losses of each prediction, ``(P,)`` and ``(P - 1,)``."""
    matching = _focal_sums(training.matching, targets, queries[:, None], settings)
    if training.denoising is None:
        return matching, matching.new_zeros(len(matching) - 1)
    num_predictions, _, num_queries, _ = training.denoising.boxes.shape
    dn_queries = _denoising_queries(training.num_groups, num_queries, targets)
    dn_queries = dn_queries.expand(num_predictions, -1, -1)
    return matching, _focal_sums(training.denoising, targets, dn_queries, settings)


def _focal_sums(
    predictions: ProposalPredictions,
    targets: ProposalTargets,
    queries: Tensor,
    settings: ProposalLossSettings,
) -> Tensor:
    """Sum the focal losses of all queries and classes.

    Args:
        predictions: P predictions.
        targets: What is in the images.
        queries: Positive query of each target in each group, or -1, ``(P, groups, N)``.
        settings: Alpha and gamma.

    Returns:
        ``(P,)``.
    """
    logits = predictions.class_logits.float()
    prediction = torch.arange(len(logits), device=logits.device)[:, None, None]
    index = torch.broadcast_tensors(prediction, targets.images, queries.clamp(min=0), targets.labels)
    labels = torch.zeros_like(logits)
    labels.index_put_(index, (queries >= 0).to(labels.dtype), accumulate=True)
    losses = sigmoid_focal_loss(logits, labels, settings.focal_alpha, settings.focal_gamma)
    return losses.flatten(1).sum(-1)


def _split_rows(rows: Tensor, training: TrainingPredictions) -> tuple[Tensor, Tensor]:
    """Split sums per row into sums per prediction, ``(P,)`` and ``(P - 1,)``."""
    num_predictions = len(training.matching.boxes)
    matching, denoising = rows[:num_predictions], rows[num_predictions:]
    if training.denoising is None:
        return matching, matching.new_zeros(num_predictions - 1)
    return matching, denoising.view(num_predictions - 1, training.num_groups).sum(-1)


def _name_terms(
    sums: Mapping[str, tuple[Tensor, Tensor]], num_boxes: Tensor, num_dn_boxes: Tensor
) -> dict[str, Tensor]:
    """Normalize the sums of each base term and give each prediction its name."""
    terms: dict[str, Tensor] = {}
    for name, (matching, denoising) in sums.items():
        layers = [f"_{index}" for index in range(len(denoising) - 1)]
        suffixes = ["_interm", *layers, "", *[f"_dn{layer}" for layer in layers], "_dn"]
        values = torch.cat((matching / num_boxes, denoising / num_dn_boxes))
        terms |= {name + suffix: value for suffix, value in zip(suffixes, values.unbind(0))}
    return terms


def _indices_per_image(queries: Tensor, targets: ProposalTargets) -> list[tuple[Tensor, Tensor]]:
    """Turn the query of each target, ``(N,)``, into matched (query, target) indices per image."""
    pairs = zip(queries.split(targets.counts), targets.slots.split(targets.counts), strict=True)
    return [(query[query >= 0], slot[query >= 0]) for query, slot in pairs]


def _draw(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw uniform numbers in [0, 1) on the generator's device."""
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source).to(device)
