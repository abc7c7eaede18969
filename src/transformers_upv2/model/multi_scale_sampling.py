"""Weighted bilinear samples of several feature maps: the inner loop of deformable attention.

Two ways to the same numbers. ``grid_sample`` runs everywhere and has gradients, but not in bfloat16: there it returns
garbage on a CPU. On a CPU without gradients each output is one bag of an ``embedding_bag`` over the maps' cells, with
the product of attention and bilinear weight as the weight of a cell, which is four times as fast on large maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_levels(
    values: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Sum bilinear samples of several maps; a point outside of a map counts as zero.

    Args:
        values: Flattened maps, ``(batch, cells, D_p)``, float32.
        spatial_shapes: (H, W) of each map.
        locations: (x, y) in [0, 1] of a map, ``(batch, queries, heads, levels, points, 2)``.
        weights: Weight of each sample, ``(batch, queries, heads, levels, points)``.

    Returns:
        ``(batch, queries, D_p)``.
    """
    learns = values.requires_grad or locations.requires_grad or weights.requires_grad
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    sample = sample_bags if values.device.type == "cpu" and not learns and not traced else sample_grids
    return sample(values, spatial_shapes, locations, weights)


def sample_grids(
    values: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Do what `sample_levels` says with ``grid_sample``."""
    batch, queries, heads, _, points, _ = locations.shape
    # points before queries: sums over the long last dimension are twice as fast on a CPU
    grids = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5)
    grids = grids.reshape(-1, batch * heads, points, queries, 2)  # (levels, batch * heads, points, queries, 2)
    weights = weights.permute(3, 0, 2, 4, 1).reshape(-1, batch * heads, 1, points, queries)
    maps = values.transpose(1, 2).reshape(batch * heads, -1, values.shape[1])
    maps = maps.split([height * width for height, width in spatial_shapes], dim=-1)
    output = values.new_zeros(())
    for shape, cells, grid, weight in zip(spatial_shapes, maps, grids, weights, strict=True):
        samples = F.grid_sample(cells.unflatten(-1, shape), grid, align_corners=False)
        output = output + (samples * weight).sum(dim=2)  # (batch * heads, D_p / heads, queries)
    return output.reshape(batch, -1, queries).transpose(1, 2)  # (batch, queries, D_p)


def sample_bags(
    values: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Do what `sample_levels` says with ``embedding_bag``; without gradients of the locations."""
    batch, queries, heads, _, points, _ = locations.shape
    table = _pad_maps(values, spatial_shapes)  # zeros around each map: no corner needs to be looked at
    cells = table.shape[1]
    table = table.view(batch, cells, heads, -1).transpose(1, 2).reshape(batch * heads * cells, -1)

    # one number for every (level, point), in one row, so that everything below runs over long rows
    heights, widths = values.new_tensor(spatial_shapes).repeat_interleave(points, dim=0).unbind(dim=1)
    padded_sizes = torch.tensor([(height + 3) * (width + 3) for height, width in spatial_shapes])
    starts = (padded_sizes.cumsum(0) - padded_sizes).repeat_interleave(points)
    first_rows = torch.arange(batch * heads).view(batch, 1, heads, 1) * cells
    left, right_part = _corner(locations[..., 0].reshape(batch, queries, heads, -1), widths)
    top, lower_part = _corner(locations[..., 1].reshape(batch, queries, heads, -1), heights)
    row_length = widths.long() + 3
    row = left.long() + top.long() * row_length + (starts + first_rows)

    weights = weights.reshape(batch, queries, heads, -1)
    lower = weights * lower_part
    upper = weights - lower
    upper_right, lower_right = upper * right_part, lower * right_part
    corners = (
        (0, upper - upper_right),
        (1, upper_right),
        (row_length, lower - lower_right),
        (row_length + 1, lower_right),
    )
    output = values.new_zeros(())
    for step, share in corners:
        rows = (row + step).flatten(0, 2)  # (batch * queries * heads, levels * points)
        output = output + F.embedding_bag(rows, table, mode="sum", per_sample_weights=share.flatten(0, 2))
    return output.view(batch, queries, -1)


def _pad_maps(values: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Put one cell of zeros before and two behind each map, on both axes, ``(batch, padded cells, D_p)``."""
    maps = values.split([height * width for height, width in spatial_shapes], dim=1)
    padded = [
        F.pad(cells.unflatten(1, shape), (0, 0, 1, 2, 1, 2)).flatten(1, 2)
        for cells, shape in zip(maps, spatial_shapes, strict=True)
    ]
    return torch.cat(padded, dim=1)


def _corner(coordinates: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Find the padded cell at or before each coordinate in [0, 1], and how far behind its centre the point is.

    What lies further outside than the padding is moved onto it, and so is nan.
    """
    positions = torch.fmin(torch.fmax(coordinates * sizes - 0.5, coordinates.new_tensor(-1.0)), sizes)
    before = positions.floor()
    return before + 1, positions - before
