"""Turn perception into decoder tokens: global tokens (Eq. 3) and proposal tokens (Eq. 2).

Reference: Uni-Perceiver v2, section 4.1 (https://arxiv.org/abs/2211.09808).

Not stated in the paper, chosen here: a box or a mask is detached (it has its own losses), so that tasks without
boxes train the proposal network through the semantic part only; mask logits are pooled before the sigmoid; an
attention pool has heads of 64 channels; the grid has a 2-D sine position. Pools, grid and each summand of a
proposal end in a LayerNorm: without it what a proposal shows soon outweighs where it is, 8 to 1 in the tiny model, and
captions cannot tell places.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .position_encoding import encode_boxes, encode_grid

POOL_HEAD_SIZE = 64


class AttentionPools(nn.Module):
    """M' attention pools on the raw last map, each with its own query, key, value and output.

    Args:
        in_channels: Channels C of the map.
        hidden_size: Width D of the decoder's tokens.
        num_pools: M'.
    """

    def __init__(self, in_channels: int, hidden_size: int, num_pools: int) -> None:
        super().__init__()
        self.num_pools = num_pools
        self.num_heads = max(1, in_channels // POOL_HEAD_SIZE)
        if in_channels % self.num_heads:
            self.num_heads = 1
        self.queries = nn.Parameter(torch.empty(num_pools, in_channels))
        self.key_projection = nn.Linear(in_channels, num_pools * in_channels)
        self.value_projection = nn.Linear(in_channels, num_pools * in_channels)
        self.output_weight = nn.Parameter(torch.empty(num_pools, in_channels, hidden_size))
        self.output_bias = nn.Parameter(torch.zeros(num_pools, hidden_size))

    def reset_parameters(self, std: float) -> None:
        """Initialise the learned queries and the outputs."""
        init.normal_(self.queries, std=std)
        init.normal_(self.output_weight, std=std)
        init.zeros_(self.output_bias)

    def forward(self, grid: Tensor, grid_mask: Tensor) -> Tensor:
        """Pool the map.

        Args:
            grid: Flattened last map, ``(batch, cells, C)``.
            grid_mask: True for cells that show the image, ``(batch, cells)``.

        Returns:
            Tokens, ``(batch, M', D)``.
        """
        heads = self.num_pools * self.num_heads
        key_weight, value_weight = (
            projection.weight.unflatten(0, (heads, -1)) for projection in (self.key_projection, self.value_projection)
        )  # (M' * heads, C / heads, C)
        key_bias, value_bias = (
            projection.bias.unflatten(0, (heads, -1)) for projection in (self.key_projection, self.value_projection)
        )
        # a learned query needs no keys, q · (W x + b) = (Wᵀ q) · x + q · b, nor does a sum of values need the values
        query = self.queries.reshape(heads, -1) * key_weight.shape[1] ** -0.5
        scores = F.linear(grid, torch.einsum("hd,hdc->hc", query, key_weight), (query * key_bias).sum(dim=-1))
        scores = scores.float().masked_fill(~grid_mask[..., None], -torch.inf)  # (batch, cells, M' * heads)
        mixed = scores.softmax(dim=1).to(grid.dtype).transpose(1, 2) @ grid  # (batch, M' * heads, C)
        pooled = torch.einsum("bhc,hdc->bhd", mixed, value_weight) + value_bias
        pooled = pooled.reshape(grid.shape[0], self.num_pools, -1)  # (batch, M', C)
        return torch.einsum("bmc,mcd->bmd", pooled, self.output_weight) + self.output_bias


class GlobalTokens(nn.Module):
    """q_global: the attention pools and the flattened grid of F_L."""

    def __init__(self, in_channels: int, hidden_size: int, num_pools: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.pools = AttentionPools(in_channels, hidden_size, num_pools)
        self.pool_norm = nn.LayerNorm(hidden_size)
        self.grid_projection = nn.Linear(in_channels, hidden_size)
        self.grid_norm = nn.LayerNorm(hidden_size)

    def forward(self, feature_map: Tensor, grid_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Make the global tokens.

        Args:
            feature_map: F_L, ``(batch, C, H/32, W/32)``.
            grid_mask: True for cells that show the image, ``(batch, H/32, W/32)``.

        Returns:
            Pooled tokens ``(batch, M', D)`` and grid tokens ``(batch, H/32 * W/32, D)``.
        """
        grid = feature_map.flatten(2).transpose(1, 2)  # (batch, cells, C)
        height, width = feature_map.shape[-2:]
        position = encode_grid((height, width), self.hidden_size, device=feature_map.device)
        position = position.flatten(1, 2)  # (1, cells, D)
        tokens = self.grid_norm(self.grid_projection(grid)) + position.to(grid.dtype)
        return self.pool_norm(self.pools(grid, grid_mask.flatten(1))), tokens


class ProposalTokens(nn.Module):
    """q_proposal = q_sem + B(q_box) + M(q_mask)  (Eq. 2).

    Args:
        proposal_size: Width D_p of the proposal network.
        hidden_size: Width D of the decoder's tokens.
        pooled_mask_size: Side of the pooled mask.
    """

    def __init__(self, proposal_size: int, hidden_size: int, pooled_mask_size: int) -> None:
        super().__init__()
        self.box_features = proposal_size // 2
        self.pooled_mask_size = pooled_mask_size
        self.semantic_projection = nn.Linear(proposal_size, hidden_size)
        self.box_projection = nn.Linear(4 * self.box_features, hidden_size)
        self.mask_projection = nn.Linear(pooled_mask_size**2, hidden_size)
        self.semantic_norm, self.box_norm, self.mask_norm = (nn.LayerNorm(hidden_size) for _ in range(3))

    def pool_masks(self, mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
        """Average-pool the mask logits without building the masks.

        A mask is a dot product of its embedding with the mask features, so its pooled logits are the dot product with
        the pooled features, exactly.

        Args:
            mask_embeddings: ``(batch, proposals, D_p)``.
            mask_features: ``(batch, D_p, H/4, W/4)``.

        Returns:
            ``(batch, proposals, side, side)``.
        """
        pooled = F.adaptive_avg_pool2d(mask_features, self.pooled_mask_size)
        return torch.einsum("bqd,bdhw->bqhw", mask_embeddings, pooled)

    def forward(self, semantic: Tensor, boxes: Tensor, pooled_masks: Tensor) -> Tensor:
        """Add up what a proposal shows, where it is and which shape it has.

        Args:
            semantic: Content of each proposal, ``(batch, proposals, D_p)``.
            boxes: (center_x, center_y, width, height) in [0, 1] of the canvas, ``(batch, proposals, 4)``.
            pooled_masks: Pooled mask logits, ``(batch, proposals, side, side)``.

        Returns:
            Tokens, ``(batch, proposals, D)``.
        """
        box_encoding = encode_boxes(boxes.detach(), self.box_features).to(semantic.dtype)
        masks = pooled_masks.detach().sigmoid().flatten(2)  # (batch, proposals, side * side)
        return (
            self.semantic_norm(self.semantic_projection(semantic))
            + self.box_norm(self.box_projection(box_encoding))
            + self.mask_norm(self.mask_projection(masks.to(semantic.dtype)))
        )
