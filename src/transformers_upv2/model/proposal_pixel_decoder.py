"""Pixel decoder of the proposal network: a deformable encoder over feature maps and mask features.

Reference: Mask DINO, section 3.3 (https://arxiv.org/abs/2206.02777), which takes the encoder of
Deformable DETR. Two things differ from Deformable DETR and the weights depend on them: grid
positions have no half-cell offset, and there is no padding mask, a padded pixel is an ordinary one.

D_p is the hidden size, C_l the channels of feature map l, H and W the size of the canvas.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .position_encoding import encode_grid, grid_centers
from .proposal_attention import FeedForward, MultiScaleDeformableAttention

CHANNELS_PER_GROUP = 8
"""Width of a group of GroupNorm; gives the official 32 groups at D_p = 256."""


class ProposalEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention of all cells of all maps, then a feed-forward layer."""

    def __init__(self, hidden_size: int, *, num_heads: int, num_levels: int, num_points: int, ffn_size: int) -> None:
        super().__init__()
        self.self_attention = MultiScaleDeformableAttention(hidden_size, num_heads, num_levels, num_points)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, ffn_size)

    def forward(
        self,
        hidden_states: Tensor,
        position_codes: Tensor,
        references: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Update the cells.

        Args:
            hidden_states: Cells of all maps, ``(batch, cells, D_p)``.
            position_codes: Added to the queries only, ``(1, cells, D_p)``.
            references: Center of each cell, ``(1, cells, 2)``, float32.
            spatial_shapes: (H_l, W_l) of each map.

        Returns:
            ``(batch, cells, D_p)``.
        """
        attended = self.self_attention(hidden_states + position_codes, references, hidden_states, spatial_shapes)
        return self.feed_forward(self.self_attention_norm(hidden_states + attended))


class ProposalPixelDecoder(nn.Module):
    """Project, encode and fuse the feature maps of the backbone."""

    def __init__(
        self,
        feature_channels: Sequence[int],
        hidden_size: int,
        num_levels: int,
        layers: Sequence[ProposalEncoderLayer],
    ) -> None:
        """Create the pixel decoder.

        Args:
            feature_channels: C_l of the feature maps, fine to coarse, the first of stride 4.
            hidden_size: D_p, a multiple of 8.
            num_levels: Maps in the encoder. Up to as many as there are feature maps, the finest
                map only enters the mask features; with more, it is encoded as well. What is
                missing is made from the coarsest map by convolutions of stride 2. So with four
                maps, 4 levels have strides 8 to 64 and 5 levels strides 4 to 64.
            layers: The encoder.

        Raises:
            ValueError: If ``hidden_size`` is not a multiple of 8, or there are fewer levels than
                feature maps without the finest one.
        """
        super().__init__()
        if hidden_size % CHANNELS_PER_GROUP:
            raise ValueError(f"`hidden_size` must be a multiple of {CHANNELS_PER_GROUP}, got {hidden_size}.")
        if num_levels < len(feature_channels) - 1:
            raise ValueError(
                f"`num_feature_levels` must be at least {len(feature_channels) - 1}, since all "
                f"feature maps but the finest are encoded, got {num_levels}."
            )
        self.first_encoded = 0 if num_levels > len(feature_channels) else 1
        encoded_channels = feature_channels[self.first_encoded :]
        projections = [_projection(channels, hidden_size) for channels in encoded_channels]
        channels = feature_channels[-1]
        for _ in range(num_levels - len(encoded_channels)):
            projections.append(_projection(channels, hidden_size, kernel_size=3, stride=2))
            channels = hidden_size
        self.input_projections = nn.ModuleList(projections)
        self.level_embedding = nn.Parameter(torch.empty(num_levels, hidden_size))
        self.layers = nn.ModuleList(layers)
        self.lateral_projection = nn.Sequential(
            nn.Conv2d(feature_channels[0], hidden_size, 1, bias=False), _group_norm(hidden_size)
        )
        self.fusion = nn.Sequential(
            nn.Conv2d(hidden_size, hidden_size, 3, padding=1, bias=False),
            _group_norm(hidden_size),
            nn.ReLU(),
        )
        self.mask_projection = nn.Conv2d(hidden_size, hidden_size, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the convolutions and the level embedding; the layers fill themselves."""
        projections = _convolutions(self.input_projections)
        convolutions = _convolutions(self.lateral_projection, self.fusion, self.mask_projection)
        for projection in projections:
            init.xavier_uniform_(projection.weight)
        for convolution in convolutions:
            init.kaiming_uniform_(convolution.weight, a=1)
        for convolution in (*projections, *convolutions):
            if convolution.bias is not None:
                init.zeros_(convolution.bias)
        init.normal_(self.level_embedding)

    def forward(self, feature_maps: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[int, int]], Tensor]:
        """Encode the feature maps.

        Args:
            feature_maps: Maps of strides 4, 8, 16, ..., ``(batch, C_l, H_l, W_l)`` each.

        Returns:
            - Encoded maps, fine to coarse, flattened row by row, ``(batch, H_l * W_l, D_p)`` each.
            - (H_l, W_l) of each of them.
            - Mask features, ``(batch, D_p, H/4, W/4)``.
        """
        # whichever layout the backbone has: convolutions of this one are the fastest on a CPU, in bfloat16 by far
        feature_maps = [features.contiguous(memory_format=torch.channels_last) for features in feature_maps]
        maps = self._project(feature_maps)
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        cells_per_level = [height * width for height, width in spatial_shapes]
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        hidden_size, device = hidden_states.shape[-1], hidden_states.device
        codes = [encode_grid(size, hidden_size, device=device).flatten(1, 2) for size in spatial_shapes]
        codes = [
            code.to(hidden_states.dtype) + embedding
            for code, embedding in zip(codes, self.level_embedding, strict=True)
        ]
        position_codes = torch.cat(codes, dim=1)  # (1, cells, D_p)
        references = grid_centers(spatial_shapes, device)[None]
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_codes, references, spatial_shapes)
        levels = list(hidden_states.split(cells_per_level, dim=1))
        finest = levels[0].transpose(1, 2).unflatten(-1, spatial_shapes[0])
        return levels, spatial_shapes, self._mask_features(feature_maps[0], finest)

    def _project(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Bring the encoded maps to D_p channels and add coarser ones."""
        encoded = feature_maps[self.first_encoded :]
        maps: list[Tensor] = []
        for index, projection in enumerate(self.input_projections):
            if index < len(encoded):
                source = encoded[index]
            elif index == len(encoded):
                source = feature_maps[-1]  # the raw map, not its projection
            else:
                source = maps[-1]
            maps.append(projection(source))
        return maps

    def _mask_features(self, stride_4_map: Tensor, finest: Tensor) -> Tensor:
        """Add the finest encoded map to the map of stride 4."""
        lateral = self.lateral_projection(stride_4_map)
        upsampled = F.interpolate(finest, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_projection(self.fusion(lateral + upsampled))


def _convolutions(*modules: nn.Module) -> list[nn.Conv2d]:
    """List the convolutions in modules, in order."""
    return [part for module in modules for part in module.modules() if isinstance(part, nn.Conv2d)]


def _group_norm(hidden_size: int) -> nn.GroupNorm:
    return nn.GroupNorm(hidden_size // CHANNELS_PER_GROUP, hidden_size)


def _projection(channels: int, hidden_size: int, *, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, hidden_size, kernel_size, stride=stride, padding=kernel_size // 2)
    return nn.Sequential(convolution, _group_norm(hidden_size))
