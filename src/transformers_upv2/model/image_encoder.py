"""The image encoder f_image (Eq. 1): backbone, region proposals, and the tokens made of both.

Not stated in the paper, chosen here: the canvas rule. The proposal network has no padding mask, as in Mask DINO, so
each image is computed on its own canvas (its size rounded up to the divisor); then neither padding nor the other
images of a batch change anything. The N proposals with the highest foreground score enter g, in training the
matched ones first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone
from transformers import initialization as init

from .boxes import image_to_canvas_boxes
from .configuration_upv2 import UniPerceiverV2Config, UniPerceiverV2ProposalConfig
from .image_encoding import ImageEncoding
from .image_tokens import GlobalTokens, ProposalTokens
from .proposal_matcher import ProposalLossSettings
from .proposal_network import ProposalNetwork, ProposalOutput, ProposalSettings

BACKBONE_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class ProposalTraining:
    """What a batch with boxes adds to its encoding.

    Args:
        terms: Unweighted losses of the proposal network by name.
        loss: Their weighted sum, scalar.
        region_labels: True label of each of the N proposals, -1 for background, ``(batch, N)``.
    """

    terms: dict[str, Tensor]
    loss: Tensor
    region_labels: Tensor


class ImageEncoder(nn.Module):
    """Perceives images as general region proposals.

    Args:
        config: The whole model's config.
    """

    def __init__(self, config: UniPerceiverV2Config) -> None:
        super().__init__()
        self.size_divisor = config.size_divisor
        self.num_proposals = config.num_proposals
        self.representation = config.image_representation
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        channels = list(self.backbone.channels)
        if len(channels) != len(BACKBONE_STRIDES):
            raise ValueError(
                f"`backbone_config` must give {len(BACKBONE_STRIDES)} maps at strides {BACKBONE_STRIDES}, got "
                f"{len(channels)} with {channels} channels. Set its `out_indices` or `out_features`."
            )
        self.proposal_network = _proposal_network(channels, config.proposal_config)
        self.global_tokens = GlobalTokens(channels[-1], config.hidden_size, config.num_attention_pools)
        self.proposal_tokens = ProposalTokens(
            config.proposal_config.hidden_size, config.hidden_size, config.pooled_mask_size
        )
        self.pooled_type = nn.Parameter(torch.empty(config.hidden_size))
        self.grid_type = nn.Parameter(torch.empty(config.hidden_size))
        self.proposal_type = nn.Parameter(torch.empty(config.hidden_size))

    def reset_parameters(self, std: float) -> None:
        """Fill the embeddings of the kinds of tokens."""
        for parameter in (self.pooled_type, self.grid_type, self.proposal_type):
            init.normal_(parameter, std=std)

    def canvas_size(self, height: int, width: int) -> tuple[int, int]:
        """Round a size up to the divisor."""
        divisor = self.size_divisor
        return -(-height // divisor) * divisor, -(-width // divisor) * divisor

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, *, keep_mask_features: bool = False
    ) -> ImageEncoding:
        """Perceive each image on its own canvas.

        Args:
            pixel_values: Images in the top left corner, ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``. With None the whole tensor is the image, nothing depends
                on the values of a tensor, and the method can be compiled and exported.
            keep_mask_features: Keep what full masks are made of.

        Returns:
            The encoding, padded to the largest canvas.
        """
        sizes = image_sizes(pixel_values, pixel_mask)
        if pixel_mask is None:
            canvas = self.canvas_size(*pixel_values.shape[-2:])
            return self._perceive(pixel_values, sizes, canvas, keep_mask_features)
        canvases = [self.canvas_size(*size) for size in sizes.tolist()]
        groups: dict[tuple[int, int], list[int]] = {canvas: [] for canvas in canvases}
        for index, canvas in enumerate(canvases):
            groups[canvas].append(index)
        parts = []
        for canvas, members in groups.items():
            rows = torch.tensor(members, device=pixel_values.device)
            parts.append(self._perceive(pixel_values[rows], sizes[rows], canvas, keep_mask_features))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for members in groups.values() for i in members]).argsort()
        return _join(parts)[order.to(pixel_values.device)]

    def _perceive(
        self, pixel_values: Tensor, image_sizes: Tensor, canvas: tuple[int, int], keep_mask_features: bool
    ) -> ImageEncoding:
        """Perceive images of one canvas."""
        output, last_map = self._propose(pixel_values, image_sizes, canvas)
        encoding = self._encode(output, last_map, image_sizes, canvas)
        if not keep_mask_features:
            encoding.mask_features = None
        return encoding

    def forward_training(
        self, pixel_values: Tensor, image_sizes: Tensor, labels: Sequence[dict[str, Any]] | None
    ) -> tuple[ImageEncoding, ProposalTraining | None]:
        """Perceive a batch on one canvas, its padded size, as Mask DINO trains.

        Args:
            pixel_values: ``(batch, 3, H, W)``.
            image_sizes: Real height and width, ``(batch, 2)``.
            labels: Of each image ``class_labels`` ``(n,)``, ``boxes`` ``(n, 4)`` cxcywh of the real image and
                optionally ``masks`` ``(n, H, W)``; None for batches without boxes.

        Returns:
            The encoding, and what the boxes add.
        """
        canvas = self.canvas_size(*pixel_values.shape[-2:])
        targets = None if labels is None else self._targets(labels, image_sizes, canvas)
        output, maps = self._propose(pixel_values, image_sizes, canvas, targets)
        if labels is None or targets is None:
            return self._encode(output, maps, image_sizes, canvas), None
        terms, matched = self.proposal_network.losses(output, targets)
        query_labels = torch.full(output.class_logits.shape[:2], -1, device=pixel_values.device)
        for row, (queries, target), label in zip(query_labels, matched, labels):
            row[queries] = label["class_labels"].to(row.device)[target]
        encoding = self._encode(output, maps, image_sizes, canvas, query_labels)
        chosen = self._chosen(output, query_labels)
        training = ProposalTraining(
            terms=terms,
            loss=self.proposal_network.weighted_sum(terms),
            region_labels=query_labels.gather(1, chosen),
        )
        return encoding, training

    def _targets(
        self, labels: Sequence[dict[str, Any]], image_sizes: Tensor, canvas: tuple[int, int]
    ) -> list[dict[str, Tensor]]:
        targets = []
        for label, size in zip(labels, image_sizes):
            classes = label["class_labels"].to(size.device)
            target = {
                # a foreground network has one class; Mask DINO's 80 keep theirs
                "class_labels": classes.clamp(max=self.proposal_network.settings.num_classes - 1),
                "boxes": image_to_canvas_boxes(label["boxes"].to(size.device).float(), size, canvas),
            }
            if "masks" in label:
                masks = label["masks"].to(size.device)
                height, width = masks.shape[-2:]
                target["masks"] = F.pad(masks, (0, canvas[1] - width, 0, canvas[0] - height))
            if "has_mask" in label:
                target["has_mask"] = label["has_mask"].to(size.device)
            targets.append(target)
        return targets

    def _propose(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        canvas: tuple[int, int],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[ProposalOutput, Tensor]:
        pixels = _place(pixel_values, image_sizes, canvas)
        # some backbones cannot return the states that a config may ask of all parts
        maps = self.backbone(pixels, output_hidden_states=False, output_attentions=False, return_dict=True)
        feature_maps = list(maps.feature_maps)
        extents = torch.stack([image_sizes[:, axis] / canvas[axis] for axis in (0, 1)], dim=1)
        return self.proposal_network(feature_maps, targets, image_extents=extents), feature_maps[-1]

    def _chosen(self, output: ProposalOutput, query_labels: Tensor | None = None) -> Tensor:
        """Indices of the proposals that enter g, best first, ``(batch, N)``."""
        scores = output.class_logits.amax(dim=-1).float()
        if query_labels is not None:
            scores = torch.where(query_labels >= 0, scores + 1e4, scores)
        return scores.topk(self.num_proposals, dim=1).indices

    def _encode(
        self,
        output: ProposalOutput,
        last_map: Tensor,
        image_sizes: Tensor,
        canvas: tuple[int, int],
        query_labels: Tensor | None = None,
    ) -> ImageEncoding:
        chosen = self._chosen(output, query_labels)
        semantic, boxes, masks, logits = (
            values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))
            for values in (
                output.semantic,
                output.boxes,
                output.mask_embeddings,
                output.class_logits.amax(dim=-1, keepdim=True),
            )
        )
        pooled_masks = self.proposal_tokens.pool_masks(masks.detach(), output.mask_features.detach())
        grid_mask = real_cells(image_sizes, canvas, last_map)
        pooled, grid = self.global_tokens(last_map, grid_mask)
        proposals = self.proposal_tokens(semantic, boxes, pooled_masks)
        tokens = torch.cat(
            [pooled + self.pooled_type, grid + self.grid_type, proposals + self.proposal_type],
            dim=1,
        )
        shows = {
            "global": torch.cat([grid_mask.new_ones(pooled.shape[:2]), grid_mask.flatten(1)], dim=1),
            "regional": grid_mask.new_ones(proposals.shape[:2]),
        }
        token_mask = torch.cat(
            [mask & (self.representation in ("both", kind)) for kind, mask in shows.items()],
            dim=1,
        )
        return ImageEncoding(
            tokens=tokens,
            token_mask=token_mask,
            semantic=semantic,
            boxes=boxes,
            objectness_logits=logits.squeeze(-1),
            mask_embeddings=masks,
            pooled_masks=pooled_masks,
            image_sizes=image_sizes,
            canvas_sizes=torch.tensor(canvas, device=tokens.device).expand_as(image_sizes),
            mask_features=output.mask_features,
        )


def image_sizes(pixel_values: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Read the real height and width of each image, ``(batch, 2)``, from its mask.

    Raises:
        ValueError: If these are no RGB images, the mask does not fit them, or marks no rectangle in the top left
            corner of one.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
        raise ValueError(
            f"`pixel_values` must have the shape (batch, 3, height, width), got {tuple(pixel_values.shape)}. Give a "
            "single image a batch of its own, `pixel_values[None]`."
        )
    height, width = pixel_values.shape[-2:]
    if pixel_mask is None:
        return torch.tensor([[height, width]], device=pixel_values.device).repeat(pixel_values.shape[0], 1)
    if pixel_mask.shape != (len(pixel_values), height, width):
        raise ValueError(
            f"`pixel_mask` must have the shape {(len(pixel_values), height, width)} of `pixel_values`, got "
            f"{tuple(pixel_mask.shape)}."
        )
    real = pixel_mask.bool()
    sizes = torch.stack([real.any(dim=2).sum(dim=1), real.any(dim=1).sum(dim=1)], dim=1)
    rows = torch.arange(height, device=real.device) < sizes[:, :1]
    columns = torch.arange(width, device=real.device) < sizes[:, 1:]
    if not bool((sizes > 0).all()) or not torch.equal(real, rows[:, :, None] & columns[:, None, :]):
        raise ValueError(
            "`pixel_mask` must mark at least one pixel in every image, and only a rectangle in the top left corner. "
            "Pad images on the right and below."
        )
    return sizes


def _proposal_network(channels: Sequence[int], config: UniPerceiverV2ProposalConfig) -> ProposalNetwork:
    """Translate the config; the network itself knows none."""
    settings = ProposalSettings(
        hidden_size=config.hidden_size,
        num_feature_levels=config.num_feature_levels,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        num_heads=config.num_attention_heads,
        num_points=config.num_points,
        encoder_ffn_size=config.encoder_ffn_size,
        decoder_ffn_size=config.decoder_ffn_size,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        initial_box=config.initial_box,
        dn_number=config.dn_number,
        dn_noise_scale=config.dn_noise_scale,
        query_position=config.query_position,
        cross_attention=config.cross_attention,
        similar_attention=config.similar_attention,
    )
    loss = ProposalLossSettings(
        class_weight=config.class_weight,
        bbox_weight=config.bbox_weight,
        giou_weight=config.giou_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        num_points=config.num_loss_points,
    )
    return ProposalNetwork(channels, settings, loss)


def _place(pixel_values: Tensor, image_sizes: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Cut or pad a batch to its canvas, with zeros wherever there is no image."""
    height, width = pixel_values.shape[-2:]
    pixels = pixel_values[..., : canvas[0], : canvas[1]]
    pixels = F.pad(pixels, (0, max(0, canvas[1] - width), 0, max(0, canvas[0] - height)))
    rows = torch.arange(canvas[0], device=pixels.device) < image_sizes[:, :1]
    columns = torch.arange(canvas[1], device=pixels.device) < image_sizes[:, 1:]
    real = rows[:, None, :, None] & columns[:, None, None, :]  # (batch, 1, H, W)
    return pixels.masked_fill(~real, 0.0).contiguous(memory_format=torch.channels_last)


def real_cells(image_sizes: Tensor, canvas: tuple[int, int], feature_map: Tensor) -> Tensor:
    """True for cells of a map ``(batch, C, H', W')`` that show at least one real pixel, ``(batch, H', W')``."""
    height, width = feature_map.shape[-2:]
    tops = torch.arange(height, device=feature_map.device) * canvas[0] / height
    lefts = torch.arange(width, device=feature_map.device) * canvas[1] / width
    return (tops < image_sizes[:, :1])[:, :, None] & (lefts < image_sizes[:, 1:])[:, None, :]


def _join(parts: Sequence[ImageEncoding]) -> ImageEncoding:
    """Pad encodings of different canvases to the most grid tokens and the largest map, and stack them."""
    num_proposals = parts[0].boxes.shape[1]
    most = max(part.tokens.shape[1] for part in parts)
    maps = [part.mask_features for part in parts if part.mask_features is not None]
    largest = [max((features.shape[axis] for features in maps), default=0) for axis in (-2, -1)]
    for part in parts:
        missing = most - part.tokens.shape[1]
        # behind the grid: pooled tokens, grid, padding, proposals
        split = part.tokens.shape[1] - num_proposals
        part.tokens = torch.cat(
            [
                F.pad(part.tokens[:, :split], (0, 0, 0, missing)),
                part.tokens[:, split:],
            ],
            dim=1,
        )
        part.token_mask = torch.cat(
            [F.pad(part.token_mask[:, :split], (0, missing)), part.token_mask[:, split:]], dim=1
        )
        if part.mask_features is not None:
            height, width = part.mask_features.shape[-2:]
            part.mask_features = F.pad(part.mask_features, (0, largest[1] - width, 0, largest[0] - height))
    return ImageEncoding.cat(parts)
