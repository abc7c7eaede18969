"""Dense cross-attention of queries to the coarse maps, and SiA between the attention maps of its levels.

Each level i has attention maps of its own: logits Z_i = Q K_i^T / sqrt(D_p / heads) and a softmax over its cells. The
output is the mean over the levels of softmax(Z_i) V_i. Logits and softmax are float32 and exist in whole, queries *
heads * cells numbers an image, so only maps of stride 16 and more are attended. With four levels these have a quarter
of all cells: 20 MB a layer for an image of 640 x 640, 300 queries and 8 heads, in place of 82 MB.

SiA (https://arxiv.org/abs/2108.09691) lets the attention of a coarse map guide that of the next finer one. Only the
abstract was at hand, so this is our reading of it::

    Z'_1 = Z_1,  Z'_i = Z_i + α_i * upsample(Z'_{i-1})        levels from low to high resolution

before the softmax, with one learned α_i for all heads. It starts at zero, so that a new SiA changes nothing. The
abstract fuses feature maps as well; here the pixel decoder's encoder has mixed the levels already.

D_p is the hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from .attention import split_heads
from .position_encoding import encode_grid
from .proposal_attention import init_xavier_


class DenseAttention(nn.Module):
    """Attention of each query to all cells of the coarsest feature maps."""

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, *, similar_attention: bool = False) -> None:
        """Create the projections.

        Args:
            hidden_size: D_p, a multiple of ``num_heads``.
            num_heads: Heads.
            num_levels: Attended maps, counted from the coarsest.
            similar_attention: Let coarse attention maps guide finer ones (SiA).

        Raises:
            ValueError: If ``hidden_size`` is not a multiple of ``num_heads``.
        """
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"`hidden_size` must be a multiple of `num_heads`, got {hidden_size} and {num_heads}.")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.query_proj = nn.Linear(hidden_size, hidden_size)
        self.key_proj = nn.Linear(hidden_size, hidden_size)
        self.value_proj = nn.Linear(hidden_size, hidden_size)
        self.output_proj = nn.Linear(hidden_size, hidden_size)
        self.level_embedding = nn.Parameter(torch.empty(num_levels, hidden_size))
        self.similar_attention = SimilarAttention(num_levels) if similar_attention else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the projections and the level embedding."""
        for projection in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            init_xavier_(projection)
        init.normal_(self.level_embedding)

    def forward(
        self,
        hidden_states: Tensor,
        _references: Tensor,
        source_states: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        image_extents: Tensor | None = None,
    ) -> Tensor:
        """Gather what the queries look at.

        Args:
            hidden_states: Queries with their positions added, ``(batch, queries, D_p)``.
            _references: Boxes of the queries. Not used: their position codes say where they are.
            source_states: The feature maps, coarse to fine, flattened row by row, ``(batch, cells, D_p)``.
            spatial_shapes: (H_l, W_l) of each map. Maps beyond ``num_levels`` are not attended.
            image_extents: Height and width of each image as a part of its canvas, in (0, 1], ``(batch, 2)``; no cell
                beyond them is attended. None: each image fills its canvas.

        Returns:
            ``(batch, queries, D_p)``.

        Raises:
            ValueError: If there are fewer maps than ``num_levels``, or they do not have as many cells as
                ``source_states``.
        """
        weights = self.attention_weights(hidden_states, source_states, spatial_shapes, image_extents)
        cells = [level.shape[-1] for level in weights]
        values = split_heads(self.value_proj(source_states[:, : sum(cells)]), self.num_heads)
        gathered = [
            level.to(part.dtype) @ part for level, part in zip(weights, values.split(cells, dim=2), strict=True)
        ]
        output = torch.stack(gathered).mean(dim=0)  # (batch, heads, queries, D_p / heads)
        return self.output_proj(output.transpose(1, 2).flatten(2))

    def attention_weights(
        self,
        hidden_states: Tensor,
        source_states: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        image_extents: Tensor | None = None,
    ) -> list[Tensor]:
        """Compute the attention maps; the arguments are those of :meth:`forward`.

        Returns:
            Of each level, coarse to fine, float32, ``(batch, heads, queries, H_l * W_l)``; a row sums to 1.
        """
        if len(spatial_shapes) < self.num_levels:
            raise ValueError(
                f"`spatial_shapes` must name at least {self.num_levels} maps, got {list(spatial_shapes)}."
            )
        total = sum(height * width for height, width in spatial_shapes)
        if total != source_states.shape[1]:
            raise ValueError(
                f"`spatial_shapes` {list(spatial_shapes)} make {total} cells, but "
                f"`source_states` has {source_states.shape[1]}."
            )
        shapes = list(spatial_shapes)[: self.num_levels]
        cells = [height * width for height, width in shapes]
        positions = self._key_positions(shapes, source_states)
        keys = split_heads(self.key_proj(source_states[:, : sum(cells)] + positions), self.num_heads)
        queries = split_heads(self.query_proj(hidden_states), self.num_heads)
        queries = queries / (queries.shape[-1] ** 0.5)
        logits = [
            (queries @ part.transpose(-1, -2)).float().unflatten(-1, shape)
            for part, shape in zip(keys.split(cells, dim=2), shapes, strict=True)
        ]
        if image_extents is None:
            image_extents = logits[0].new_ones(hidden_states.shape[0], 2)
        is_real = [real_cells(image_extents, shape) for shape in shapes]
        if self.similar_attention is not None:
            logits = self.similar_attention(logits, is_real)
        return [masked_softmax(level, real) for level, real in zip(logits, is_real, strict=True)]

    def _key_positions(self, spatial_shapes: Sequence[tuple[int, int]], source_states: Tensor) -> Tensor:
        """Codes of the cells, those of the pixel decoder, and of their levels, ``(1, cells, D_p)``."""
        size, device = source_states.shape[-1], source_states.device
        codes = [
            encode_grid(shape, size, device=device).flatten(1, 2).to(source_states.dtype) + embedding
            for shape, embedding in zip(spatial_shapes, self.level_embedding, strict=True)
        ]
        return torch.cat(codes, dim=1)


class SimilarAttention(nn.Module):
    """SiA: add to the logits of a level those of the next coarser one, upsampled and weighted."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(num_levels - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with levels that do not know of each other."""
        init.zeros_(self.weights)

    def forward(self, logits: Sequence[Tensor], is_real: Sequence[Tensor]) -> list[Tensor]:
        """Fuse the levels.

        Args:
            logits: Of each level, coarse to fine, ``(batch, heads, queries, H_l, W_l)``.
            is_real: False for padded cells, ``(batch, H_l, W_l)`` each. They give nothing to other levels.

        Returns:
            Fused logits of the same shapes.
        """
        fused = [logits[0]]
        for weight, level, coarse_is_real in zip(self.weights, logits[1:], is_real):
            size = (level.shape[-2], level.shape[-1])
            fused.append(level + weight * upsample_real(fused[-1], coarse_is_real, size))
        return fused


def real_cells(image_extents: Tensor, size: tuple[int, int]) -> Tensor:
    """Mark the cells of a map that show a part of the image.

    Args:
        image_extents: Height and width of each image as a part of its canvas, ``(batch, 2)``.
        size: (H, W) of the map.

    Returns:
        Boolean, ``(batch, H, W)``.
    """
    tops, lefts = (torch.arange(length, device=image_extents.device) / length for length in size)
    return (tops < image_extents[:, :1])[:, :, None] & (lefts < image_extents[:, 1:])[:, None, :]


def upsample_real(maps: Tensor, is_real: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample maps bilinearly, where padded cells have no say: real neighbours share the weight of padded ones.

    Args:
        maps: ``(batch, heads, queries, H, W)``.
        is_real: False for padded cells, ``(batch, H, W)``.
        size: (H', W') to reach.

    Returns:
        ``(batch, heads, queries, H', W')``, 0 where no neighbour is real.
    """
    real = is_real[:, None]
    filled = maps.masked_fill(~real[:, None], 0).flatten(0, 1)
    sums = F.interpolate(filled, size=size, mode="bilinear", align_corners=False).unflatten(0, maps.shape[:2])
    shares = F.interpolate(real.to(maps.dtype), size=size, mode="bilinear", align_corners=False)[:, None]
    return sums / shares.masked_fill(shares == 0, 1)


def masked_softmax(logits: Tensor, is_real: Tensor) -> Tensor:
    """Turn the logits of a level into weights that sum to 1; padded cells get 0.

    Args:
        logits: ``(batch, heads, queries, H, W)``.
        is_real: False for padded cells, ``(batch, H, W)``, at least one True an image.

    Returns:
        ``(batch, heads, queries, H * W)``.
    """
    logits = logits.masked_fill(~is_real[:, None, None], -torch.inf)
    return logits.flatten(-2).softmax(dim=-1)
