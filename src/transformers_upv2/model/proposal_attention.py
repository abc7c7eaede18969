"""Layers that the two transformers of the proposal network share.

The main one is multi-scale deformable attention (Deformable DETR,
https://arxiv.org/abs/2010.04159, Eq. 3) in plain torch: no compiled operator, any device. Values
are sampled in float32 whatever the dtype of the weights, because a bfloat16 location is off by up
to a pixel.

D_p is the hidden size of the proposal network.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .multi_scale_sampling import sample_levels


def init_xavier_(linear: nn.Linear) -> None:
    """Fill a linear layer with Xavier-uniform weights and a zero bias."""
    init.xavier_uniform_(linear.weight)
    init.zeros_(linear.bias)


def init_uniform_(linear: nn.Linear) -> None:
    """Fill a linear layer uniformly within 1 / sqrt(inputs), the default of torch."""
    bound = 1 / math.sqrt(linear.in_features)
    init.uniform_(linear.weight, -bound, bound)
    init.uniform_(linear.bias, -bound, bound)


class MultiScaleDeformableAttention(nn.Module):
    """Attention of each query to a few points around its reference in every feature map."""

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int) -> None:
        """Create the four projections.

        Args:
            hidden_size: D_p, a multiple of ``num_heads``.
            num_heads: Heads, each with its own points.
            num_levels: Feature maps.
            num_points: Sampled points per head and map.

        Raises:
            ValueError: If ``hidden_size`` is not a multiple of ``num_heads``.
        """
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"`hidden_size` must be a multiple of `num_heads`, got {hidden_size} and {num_heads}.")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_size, points * 2)
        self.attention_weights = nn.Linear(hidden_size, points)
        self.value_proj = nn.Linear(hidden_size, hidden_size)
        self.output_proj = nn.Linear(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with equal weights on points along one direction per head, 1, 2, ... cells away."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (heads, 2)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        ring = directions[:, None, None, :] * distances[None, None, :, None]
        ring = ring.expand(-1, self.num_levels, -1, -1).flatten()  # (heads * levels * points * 2)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, ring)
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        init_xavier_(self.value_proj)
        init_xavier_(self.output_proj)

    def forward(
        self,
        hidden_states: Tensor,
        references: Tensor,
        source_states: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Gather what the queries look at.

        Args:
            hidden_states: Queries with their positions added, ``(batch, queries, D_p)``.
            references: Float32 points (x, y), ``(batch | 1, queries, 2)``, or boxes cxcywh,
                ``(batch | 1, queries, 4)``, in [0, 1]. Offsets count in cells of a map from
                a point and in half sizes of the box from a box.
            source_states: The feature maps, flattened row by row, one after the other,
                ``(batch, cells, D_p)``.
            spatial_shapes: (H, W) of each map, in the order of ``source_states``.

        Returns:
            ``(batch, queries, D_p)``.

        Raises:
            ValueError: If the maps do not have as many cells as ``source_states``, or
                ``references`` are neither points nor boxes.
        """
        cells = sum(height * width for height, width in spatial_shapes)
        if cells != source_states.shape[1]:
            raise ValueError(
                f"`spatial_shapes` {list(spatial_shapes)} make {cells} cells, but "
                f"`source_states` has {source_states.shape[1]}."
            )
        batch, queries, _ = hidden_states.shape
        points_shape = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(hidden_states).float().view(*points_shape, 2)
        weights = self.attention_weights(hidden_states).float().view(*points_shape[:3], -1)
        weights = weights.softmax(dim=-1).view(points_shape)
        locations = self._locations(offsets, references, spatial_shapes)
        values = self.value_proj(source_states).float()
        output = sample_levels(values, spatial_shapes, locations, weights)
        return self.output_proj(output.to(hidden_states.dtype))

    def _locations(self, offsets: Tensor, references: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Add offsets to references, ``(batch, queries, heads, levels, points, 2)`` in [0, 1]."""
        references = references[:, :, None, None, None, :]
        if references.shape[-1] == 2:
            level_sizes = [(width, height) for height, width in spatial_shapes]
            return references + offsets / offsets.new_tensor(level_sizes)[:, None, :]
        if references.shape[-1] == 4:
            centers, sizes = references[..., :2], references[..., 2:]
            return centers + offsets * sizes * (0.5 / self.num_points)
        raise ValueError(
            f"`references` must be points (..., 2) or boxes (..., 4), got a last dimension of {references.shape[-1]}."
        )


class FeedForward(nn.Module):
    """Two linear layers with a residual and a norm after it (post-norm)."""

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(hidden_size, ffn_size)
        self.linear2 = nn.Linear(ffn_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill both linear layers with Xavier weights."""
        init_xavier_(self.linear1)
        init_xavier_(self.linear2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Transform each vector on its own, ``(..., D_p)`` to ``(..., D_p)``."""
        update = self.linear2(F.relu(self.linear1(hidden_states)))
        return self.norm(hidden_states + update)


class PredictionHead(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, input_size: int, hidden_size: int, output_size: int, num_layers: int) -> None:
        super().__init__()
        sizes = [input_size, *[hidden_size] * (num_layers - 1), output_size]
        layers = nn.ModuleList(nn.Linear(size, next_size) for size, next_size in pairwise(sizes))
        self.layers = cast("Sequence[nn.Linear]", layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill all layers uniformly."""
        for layer in self.layers:
            init_uniform_(layer)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map each vector on its own, ``(..., input_size)`` to ``(..., output_size)``."""
        for layer in self.layers[:-1]:
            hidden_states = F.relu(layer(hidden_states))
        return self.layers[-1](hidden_states)
