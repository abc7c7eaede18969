"""Sine encodings of grid positions and of boxes, always computed in float32.

Each coordinate becomes ``num_features`` numbers, sine and cosine in turn at falling frequencies,
as in DETR (https://arxiv.org/abs/2005.12872, appendix A.4).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TEMPERATURE = 10000.0
GRID_EPS = 1e-6


def encode_positions(positions: Tensor, num_features: int) -> Tensor:
    """Encode each number by sines and cosines.

    Args:
        positions: Numbers in [0, 1], ``(...)``; 1 is a full turn of the fastest frequency.
        num_features: Length of the code, even.

    Returns:
        Codes in [-1, 1], float32, ``(..., num_features)``.

    Raises:
        ValueError: If ``num_features`` is odd.
    """
    if num_features % 2:
        raise ValueError(f"`num_features` must be even (sine and cosine), got {num_features}.")
    exponents = torch.arange(0, num_features, 2, dtype=torch.float32, device=positions.device)
    angles = positions.float()[..., None] * (2 * math.pi) / TEMPERATURE ** (exponents / num_features)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def encode_grid(
    size: tuple[int, int],
    hidden_size: int,
    *,
    device: torch.device | str | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Encode the rows and columns of a feature map.

    Cell k of n counts as k / n with k starting at 1 (no half-cell offset).

    Args:
        size: (H, W) of the map.
        hidden_size: Length of a code: the first half encodes the row, the second the column.
        device: Where to compute; ignored if there is a ``mask``.
        mask: 1 or True = real cell, ``(batch, H, W)``: only real cells are counted.

    Returns:
        Codes, float32, ``(batch, H, W, hidden_size)``, where batch is 1 without a ``mask``.
    """
    height, width = size
    num_features = hidden_size // 2
    if mask is None:
        rows = torch.arange(1, height + 1, dtype=torch.float32, device=device) / (height + GRID_EPS)
        columns = torch.arange(1, width + 1, dtype=torch.float32, device=device) / (width + GRID_EPS)
        row_codes = encode_positions(rows, num_features)[None, :, None, :]
        column_codes = encode_positions(columns, num_features)[None, None, :, :]
        return torch.cat(
            (
                row_codes.expand(1, height, width, num_features),
                column_codes.expand(1, height, width, num_features),
            ),
            dim=-1,
        )
    rows, columns = mask.float().cumsum(1), mask.float().cumsum(2)
    rows = rows / (rows[:, -1:, :] + GRID_EPS)
    columns = columns / (columns[:, :, -1:] + GRID_EPS)
    return torch.cat((encode_positions(rows, num_features), encode_positions(columns, num_features)), dim=-1)


def encode_boxes(boxes: Tensor, num_features: int, order: Sequence[int] = (0, 1, 2, 3)) -> Tensor:
    """Encode the coordinates of boxes one after the other.

    Args:
        boxes: cxcywh in [0, 1], ``(..., 4)``.
        num_features: Length of the code of one coordinate, even.
        order: Which coordinate comes first, second, ...; Mask DINO encodes (y, x, w, h), which
            is ``(1, 0, 2, 3)``.

    Returns:
        Codes, float32, ``(..., len(order) * num_features)``.
    """
    return encode_positions(boxes[..., list(order)], num_features).flatten(-2)


def grid_centers(spatial_shapes: Sequence[tuple[int, int]], device: torch.device | None = None) -> Tensor:
    """List the centers of the cells of several maps, one map after the other, row by row.

    Args:
        spatial_shapes: (H, W) of each map.
        device: Where to compute.

    Returns:
        (x, y) in (0, 1), float32, ``(cells of all maps, 2)``.
    """
    centers = []
    for height, width in spatial_shapes:
        rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centers.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    return torch.cat(centers)
