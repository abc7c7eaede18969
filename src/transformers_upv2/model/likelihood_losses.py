"""The tasks' losses: each is -log P(x, y) / Σ P(x, z) over the task's candidates (Eq. 7).

Not stated in the paper, chosen here: label smoothing of classification and retrieval (inherited from Uni-Perceiver);
a focal loss per label for the classes of proposals, so that a label's score does not depend on the other labels.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .distributed import gather_with_gradient, mean_over_ranks, rank, world_size

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


def label_loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy over class names.

    Args:
        logits: ``(batch, labels)``.
        labels: Index of the true label, ``(batch,)``.
        label_smoothing: Share of the target that is spread over all labels.

    Returns:
        Scalar.

    Raises:
        ValueError: If a label is not one of the candidates.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
        raise ValueError(
            f"`labels` must be in [0, {logits.shape[-1]}), got values from {int(labels.min())} to "
            f"{int(labels.max())}. Check that the data set and the label set have the same classes."
        )
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def sigmoid_focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of every entry, ``alpha = 0.25``, ``gamma = 2``; both arguments of one shape."""
    probs = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    true_probs = probs * targets + (1 - probs) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    return alpha * cross_entropy * (1 - true_probs) ** FOCAL_GAMMA


def region_focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Focal loss of every label for every proposal, per matched proposal.

    Args:
        logits: ``(batch, N, labels)``.
        labels: Index of each proposal's true label, -1 for background, ``(batch, N)``.

    Returns:
        Scalar.
    """
    targets = F.one_hot(labels.clamp(min=0), logits.shape[-1]).float() * (labels >= 0)[..., None]
    return sigmoid_focal(logits.float(), targets).sum() / mean_over_ranks((labels >= 0).sum())


def region_softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 7 to the letter: cross-entropy over class names on the matched proposals.

    Args:
        logits: ``(batch, N, labels)``.
        labels: Index of each proposal's true label, -1 for background, ``(batch, N)``.

    Returns:
        Scalar.
    """
    matched = labels >= 0
    total = F.cross_entropy(logits[matched].float(), labels[matched], reduction="sum")
    return total / mean_over_ranks(matched.sum())


def region_losses(detection_score: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Losses of the classes of proposals.

    Eq. 7 teaches what tells the labels apart; in focal mode a second term makes each label's score independent of the
    other labels. With the focal term alone all labels were pulled into one direction, that of the foreground: seen in
    one run on the demo world, 500 updates without any class learned. The softmax term was tried together with a
    class-aware first stage, so their shares in the remedy are not known.

    Args:
        detection_score: ``config.detection_score``.
        logits: ``(batch, N, labels)``.
        labels: Index of each proposal's true label, -1 for background, ``(batch, N)``.

    Returns:
        Terms by name, scalars.
    """
    terms = {"loss_region": region_softmax_loss(logits, labels)}
    if detection_score == "focal":
        terms["loss_region_focal"] = region_focal_loss(logits, labels)
    return terms


def pair_loss(
    image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, label_smoothing: float, *, gather: bool = True
) -> Tensor:
    """Symmetric contrastive loss.

    Args:
        image_embeds: Unit vectors, ``(batch, D)``.
        text_embeds: Unit vectors of the images' captions, ``(batch, D)``.
        logit_scale: 1/τ, scalar.
        label_smoothing: Share of the target that is spread over all pairs.
        gather: Compare the pairs of all processes, else those of this one.

    Returns:
        Scalar, with ``gather`` the same on every process.
    """
    if gather:
        image_embeds, text_embeds = gather_with_gradient(image_embeds), gather_with_gradient(text_embeds)
    logits = logit_scale * image_embeds.float() @ text_embeds.float().T  # (pairs, pairs)
    labels = torch.arange(len(logits), device=logits.device)
    return 0.5 * (
        F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        + F.cross_entropy(logits.T, labels, label_smoothing=label_smoothing)
    )


def encode_sharded(candidate_ids: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode a share of the candidates on each process and gather them with their gradient.

    Args:
        candidate_ids: Token ids, the same on every process, ``(candidates,)``.
        encode: Maps token ids ``(n,)`` to unit vectors ``(n, D)``.

    Returns:
        ``(candidates, D)``.
    """
    ranks = world_size()
    if ranks == 1:
        return encode(candidate_ids)
    share = -(-len(candidate_ids) // ranks)
    padded = F.pad(candidate_ids, (0, share * ranks - len(candidate_ids)), value=int(candidate_ids[0]))
    own = padded[rank() * share : (rank() + 1) * share]
    return gather_with_gradient(encode(own))[: len(candidate_ids)]


def vocabulary_loss(logits: Tensor, candidate_ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the words of the vocabulary.

    Args:
        logits: ``(asked, candidates)``.
        candidate_ids: Token id of each candidate, ascending, ``(candidates,)``.
        labels: Token id of each answer, ``(asked,)``; each is one of the candidates.

    Returns:
        Scalar; 0 if nothing was asked.

    Raises:
        ValueError: If an answer is not one of the candidates.
    """
    targets = torch.searchsorted(candidate_ids, labels).clamp(max=len(candidate_ids) - 1)
    unknown = labels[candidate_ids[targets] != labels]
    if len(unknown):
        raise ValueError(
            f"Words to predict must be candidates, got the token ids {sorted(set(unknown.tolist()))}. "
            "`<s>`, `<pad>`, `<unk>` and `<mask>` cannot be predicted; set their `labels` to -100."
        )
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / mean_over_ranks(torch.tensor(len(labels), device=logits.device))
