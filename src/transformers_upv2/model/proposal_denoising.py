"""Denoising queries: ground-truth boxes with noise that the decoder learns to repair.

Reference: DN-DETR (https://arxiv.org/abs/2203.01305) as used by Mask DINO, section 3.2. It is not
the contrastive variant of DINO: each group holds every box of the image once.

G is the number of groups, T the largest number of targets in an image of the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import inverse_sigmoid


@dataclass
class DenoisingNoise:
    """Uniform random numbers in [0, 1), one set per denoising query; injectable for tests."""

    label_flips: Tensor
    """Below half of the noise scale, the label is replaced, ``(batch, G, T)``."""
    new_labels: Tensor
    """Times the number of classes, the replacement, ``(batch, G, T)``."""
    boxes: Tensor
    """Shifts of center and size: 0 is the most negative, ``(batch, G, T, 4)``."""

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int, int],
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> "DenoisingNoise":
        """Draw noise for (batch, G, T) queries, on the device of ``generator`` if there is one."""
        source = generator.device if generator is not None else device
        numbers = torch.rand((*shape, 6), generator=generator, device=source).to(device)
        return cls(numbers[..., 0], numbers[..., 1], numbers[..., 2:])


@dataclass
class DenoisingQueries:
    """The noised ground truth of a batch; query g * T + t is target t in group g."""

    labels: Tensor
    """Possibly wrong labels, ``(batch, G * T)``."""
    box_logits: Tensor
    """Noised boxes before the sigmoid, 0 where there is no target, ``(batch, G * T, 4)``."""
    is_target: Tensor
    """False where an image has fewer targets than T, ``(batch, G * T)``."""
    num_groups: int

    @property
    def num_queries(self) -> int:
        """G * T."""
        return self.labels.shape[1]


def count_groups(dn_number: int, max_targets: int) -> int:
    """Return how many whole groups of ``max_targets`` fit into ``dn_number``; 0 switches off."""
    return dn_number // max_targets if max_targets else 0


def build_denoising_queries(
    labels: Tensor,
    boxes: Tensor,
    is_target: Tensor,
    noise: DenoisingNoise,
    *,
    num_classes: int,
    noise_scale: float,
) -> DenoisingQueries:
    """Repeat the targets in every group and add noise.

    Args:
        labels: Class of each target, ``(batch, T)``; any valid label where there is none.
        boxes: cxcywh in [0, 1] of the canvas, ``(batch, T, 4)``.
        is_target: False where an image has fewer targets than T, ``(batch, T)``.
        noise: Random numbers for (batch, G, T).
        num_classes: Classes that a flipped label is drawn from.
        noise_scale: Largest shift of a center in half sizes and of a size in sizes; a label
            flips with half of this probability.

    Returns:
        The queries, G groups of T.

    Raises:
        ValueError: If ``noise`` was drawn for another batch.
    """
    batch, num_groups, max_targets = noise.label_flips.shape
    if (batch, max_targets) != tuple(labels.shape):
        raise ValueError(
            f"`dn_noise` must be drawn for {labels.shape[0]} images and {labels.shape[1]} targets, "
            f"got noise for {batch} images and {max_targets} targets."
        )
    random_labels = (noise.new_labels * num_classes).long().clamp(max=num_classes - 1)
    flips = noise.label_flips < 0.5 * noise_scale
    noised_labels = torch.where(flips, random_labels, labels[:, None])  # (batch, G, T)
    reach = torch.cat((boxes[..., 2:] / 2, boxes[..., 2:]), dim=-1)[:, None]
    noised_boxes = boxes[:, None] + (2 * noise.boxes - 1) * reach * noise_scale
    box_logits = inverse_sigmoid(noised_boxes.float())  # (batch, G, T, 4)
    box_logits = box_logits.masked_fill(~is_target[:, None, :, None], 0)
    return DenoisingQueries(
        labels=noised_labels.flatten(1),  # (batch, G * T)
        box_logits=box_logits.flatten(1, 2),  # (batch, G * T, 4)
        is_target=is_target.repeat(1, num_groups),
        num_groups=num_groups,
    )


def denoising_attention_mask(
    num_groups: int, group_size: int, num_matching: int, device: torch.device | None = None
) -> Tensor:
    """Hide the ground truth from the matching queries and the groups from each other.

    Args:
        num_groups: G.
        group_size: T.
        num_matching: Matching queries, which come after the denoising queries.
        device: Where to make the mask.

    Returns:
        True = must not be attended, ``(G * T + num_matching, G * T + num_matching)``, rows attend
        to columns. Denoising queries do see the matching queries.
    """
    group = torch.arange(num_groups, device=device).repeat_interleave(group_size)
    matching = torch.full((num_matching,), num_groups, device=device)
    group = torch.cat((group, matching))
    is_denoising = group < num_groups
    return (group[:, None] != group[None, :]) & is_denoising[None, :]
