"""The length of a whole gradient, however large or small its numbers are and wherever their shards lie."""

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
SQUARABLE = 1e15
"""Larger numbers than this, and smaller ones than its inverse, are not squared in float32, nor are their inverses."""


def total_norm(gradients: list[Tensor]) -> float:
    """Return the L2 norm of all gradients as one vector, over all shards and in fp32 at least."""
    gradients = [g.float() if g.dtype in (torch.float16, torch.bfloat16) else g for g in gradients]
    norm = _norm(gradients)
    if 1 / SQUARABLE < norm < SQUARABLE or math.isnan(norm):
        return norm
    largest = _largest(gradients)
    if not SMALLEST_NORMAL <= largest < math.inf:
        return largest
    scale = 2.0 ** -min(math.frexp(largest)[1], 126)
    return math.hypot(*(_norm([gradient * scale]) for gradient in gradients)) / scale


def _norm(gradients: list[Tensor]) -> float:
    norm = torch.nn.utils.get_total_norm(gradients)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def _largest(gradients: list[Tensor]) -> float:
    """Return the largest absolute value, over all shards; a parameter or its shard may be empty."""
    shards = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    values = [shard.abs().max().double().cpu() for shard in shards if shard.numel()]
    largest = torch.stack([torch.zeros((), dtype=torch.float64), *values]).max()
    sharded = next((gradient for gradient in gradients if isinstance(gradient, DTensor)), None)
    if sharded is not None:
        mesh = sharded.device_mesh
        part = DTensor.from_local(largest.to(sharded.device), mesh, [Partial("max")] * mesh.ndim)
        largest = part.full_tensor()
    return largest.item()
