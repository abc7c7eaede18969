"""The region proposal network: a class-agnostic Mask DINO on the feature maps of any backbone.

Reference: Uni-Perceiver v2, section 4.1 (https://arxiv.org/abs/2211.09808), which uses Mask DINO
(https://arxiv.org/abs/2206.02777) to find the proposals of an image. With the same sizes, the
weights are those of official Mask DINO under other names.

D_p is the hidden size, Q the number of queries, H and W the size of the canvas in pixels. Nothing
here knows of padding, as each image is its own canvas, but dense cross-attention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .proposal_decoder_layer import DeformableCrossAttention, ProposalDecoderLayer
from .proposal_denoising import (
    DenoisingNoise,
    DenoisingQueries,
    build_denoising_queries,
    count_groups,
)
from .proposal_dense_attention import DenseAttention
from .proposal_losses import SampledPoints, proposal_losses, weighted_sum
from .proposal_matcher import ProposalLossSettings, ProposalTargets
from .proposal_pixel_decoder import ProposalEncoderLayer, ProposalPixelDecoder
from .proposal_query_decoder import ProposalQueryDecoder, TrainingPredictions


@dataclass(frozen=True)
class ProposalSettings:
    """Sizes of the network. The defaults are those of Mask DINO with a ResNet-50 (hid1024)."""

    hidden_size: int = 256
    """D_p, a multiple of 8 and of ``num_heads``."""
    num_feature_levels: int = 4
    """Encoded maps: with four feature maps, 4 = strides 8 to 64, 5 = strides 4 to 64."""
    encoder_layers: int = 6
    decoder_layers: int = 9
    num_heads: int = 8
    num_points: int = 4
    """Sampled points per head and map."""
    encoder_ffn_size: int = 1024
    decoder_ffn_size: int = 2048
    num_queries: int = 300
    num_classes: int = 1
    """1 = foreground."""
    initial_box: Literal["mask2box", "bitmask"] = "mask2box"
    """Box around a query's first mask: ``"mask2box"`` or ``"bitmask"``."""
    dn_number: int = 100
    """Largest number of denoising queries; 0 = none."""
    dn_noise_scale: float = 0.4
    query_position: Literal["anchor", "guided", "static"] = "anchor"
    """What a decoder layer knows of a query's place, see :mod:`proposal_query_position`."""
    cross_attention: Literal["deformable", "dense"] = "deformable"
    """How queries look at the maps, see :class:`DenseAttention`."""
    similar_attention: bool = False
    """Let coarse attention maps guide finer ones (SiA); only of dense cross-attention."""

    def __post_init__(self) -> None:
        if self.cross_attention not in ("deformable", "dense"):
            raise ValueError(f"`cross_attention` must be 'deformable' or 'dense', got {self.cross_attention!r}.")
        if self.similar_attention and self.cross_attention != "dense":
            raise ValueError(
                "`similar_attention` fuses attention maps, which only `cross_attention='dense'` has, got "
                f"{self.cross_attention!r}. Use dense cross-attention, or leave SiA off."
            )


@dataclass
class ProposalOutput:
    """Region proposals of a batch of images."""

    semantic: Tensor
    """Queries after the last layer and its norm, ``(batch, Q, D_p)``."""
    boxes: Tensor
    """cxcywh in [0, 1] of the canvas, float32, ``(batch, Q, 4)``."""
    class_logits: Tensor
    """``(batch, Q, num_classes)``."""
    mask_embeddings: Tensor
    """``(batch, Q, D_p)``."""
    mask_features: Tensor
    """``(batch, D_p, H/4, W/4)``; :func:`predict_masks` combines both into masks."""
    training: TrainingPredictions | None = None
    """What the losses need; only with targets."""


class ProposalNetwork(nn.Module):
    """Find the regions of an image: what they show, their boxes and their masks."""

    def __init__(
        self,
        feature_channels: Sequence[int],
        settings: ProposalSettings | None = None,
        loss: ProposalLossSettings | None = None,
    ) -> None:
        """Create the network.

        Args:
            feature_channels: Channels of the backbone's maps of strides 4, 8, 16, 32.
            settings: Sizes.
            loss: Weights and sampling of the losses.
        """
        super().__init__()
        self.feature_channels = tuple(feature_channels)
        self.settings = settings or ProposalSettings()
        self.loss_settings = loss or ProposalLossSettings()
        sizes = self.settings
        attention = {
            "num_heads": sizes.num_heads,
            "num_levels": sizes.num_feature_levels,
            "num_points": sizes.num_points,
        }
        self.pixel_decoder = ProposalPixelDecoder(
            feature_channels,
            sizes.hidden_size,
            sizes.num_feature_levels,
            layers=[
                ProposalEncoderLayer(sizes.hidden_size, ffn_size=sizes.encoder_ffn_size, **attention)
                for _ in range(sizes.encoder_layers)
            ],
        )
        self.query_decoder = ProposalQueryDecoder(
            sizes.hidden_size,
            layers=[
                ProposalDecoderLayer(
                    sizes.hidden_size,
                    self._cross_attention,
                    num_heads=sizes.num_heads,
                    ffn_size=sizes.decoder_ffn_size,
                )
                for _ in range(sizes.decoder_layers)
            ],
            num_queries=sizes.num_queries,
            num_classes=sizes.num_classes,
            initial_box=sizes.initial_box,
            query_position=sizes.query_position,
        )

    def forward(
        self,
        feature_maps: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        dn_noise: DenoisingNoise | None = None,
        generator: torch.Generator | None = None,
        image_extents: Tensor | None = None,
    ) -> ProposalOutput:
        """Propose regions.

        Args:
            feature_maps: Fine to coarse, strides 4, 8, 16, 32, ``(batch, C_l, H_l, W_l)`` each.
            targets: Per image ``"class_labels"`` ``(n,)`` and ``"boxes"`` ``(n, 4)``, cxcywh in
                [0, 1] of the canvas. They add denoising queries and ``training`` to the output
                and do not change the proposals.
            dn_noise: Noise of the denoising queries; drawn if None.
            generator: Where it is drawn from.
            image_extents: Height and width of each image as a part of its canvas, in (0, 1],
                ``(batch, 2)``: dense cross-attention looks at no cell beyond. None: all of it.

        Returns:
            The Q proposals of each image, in no order.
        """
        levels, spatial_shapes, mask_features = self.pixel_decoder(feature_maps)
        denoising = None
        if targets is not None:
            denoising = self._denoising(targets, mask_features.device, dn_noise, generator)
        semantic, last, training = self.query_decoder(
            levels,
            spatial_shapes,
            mask_features,
            denoising,
            all_predictions=targets is not None,
            image_extents=image_extents,
        )
        return ProposalOutput(
            semantic=semantic,
            boxes=last.boxes[0],
            class_logits=last.class_logits[0],
            mask_embeddings=last.mask_embeddings[0],
            mask_features=mask_features,
            training=training,
        )

    def losses(
        self,
        output: ProposalOutput,
        targets: Sequence[Mapping[str, Tensor]],
        points: SampledPoints | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
        """Compute the losses, see :func:`proposal_losses`.

        Args:
            output: Proposals that were computed with ``targets``.
            targets: As in :meth:`forward`, with ``"masks"`` ``(n, H, W)`` if there are any.
            points: Sample points; drawn if None.
            generator: Where they are drawn from.

        Returns:
            Named terms without weights, and the matched (query, target) indices of each image.

        Raises:
            ValueError: If ``output`` was computed without targets.
        """
        if output.training is None:
            raise ValueError("`output` must come from a forward call with `targets`.")
        return proposal_losses(
            output.training,
            output.mask_features,
            targets,
            self.loss_settings,
            points=points,
            generator=generator,
        )

    def weighted_sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Add up the terms of :meth:`losses` with the weights of the loss settings."""
        return weighted_sum(terms, self.loss_settings)

    def _cross_attention(self) -> nn.Module:
        """Make the cross-attention of a decoder layer; the dense one is for maps of stride 16 and more."""
        sizes = self.settings
        if sizes.cross_attention == "deformable":
            return DeformableCrossAttention(
                sizes.hidden_size, sizes.num_heads, sizes.num_feature_levels, sizes.num_points
            )
        num_fine_levels = 2 - self.pixel_decoder.first_encoded  # of strides 4 and 8
        num_levels = sizes.num_feature_levels - num_fine_levels
        return DenseAttention(
            sizes.hidden_size, sizes.num_heads, num_levels, similar_attention=sizes.similar_attention
        )

    def _denoising(
        self,
        targets: Sequence[Mapping[str, Tensor]],
        device: torch.device,
        noise: DenoisingNoise | None,
        generator: torch.Generator | None,
    ) -> DenoisingQueries | None:
        """Make denoising queries, or None if there is no target or no whole group fits."""
        joined = ProposalTargets.from_list(targets, device)
        max_targets = max(joined.counts)
        num_groups = count_groups(self.settings.dn_number, max_targets)
        if num_groups == 0:
            return None
        if noise is None:
            shape = (len(targets), num_groups, max_targets)
            noise = DenoisingNoise.draw(shape, device, generator)
        return build_denoising_queries(
            joined.pad(joined.labels),
            joined.pad(joined.boxes),
            joined.padding_mask(),
            noise,
            num_classes=self.settings.num_classes,
            noise_scale=self.settings.dn_noise_scale,
        )
