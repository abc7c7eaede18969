"""Fused projections of timm's attention, taken apart for a while so that q and v can be adapted without k."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.models import davit, mvitv2, swin_transformer, vision_transformer
from torch import Tensor, nn

FUSED_ATTENTION = (
    vision_transformer.Attention,
    swin_transformer.WindowAttention,
    davit.WindowAttention,
    davit.ChannelAttention,
    mvitv2.MultiScaleAttention,
)
"""Attention whose ``qkv`` is called as a module, and gives all of q, then all of k, then all of v."""


class SplitProjection(nn.Module):
    """Three Linears in place of a fused one.

    Args:
        fused: Gives q, k and v one behind the other.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(fused.weight.chunk(3), biases))

    def forward(self, states: Tensor) -> Tensor:
        """Project ``(..., D)`` to ``(..., 3 D)``."""
        return torch.cat([self.q(states), self.k(states), self.v(states)], dim=-1)

    def fuse(self) -> nn.Linear:
        """Return the fused Linear, its rows bit for bit those of the three."""
        parts = (self.q, self.k, self.v)
        bias = None if self.q.bias is None else torch.cat([part.bias for part in parts])
        return _linear(torch.cat([part.weight for part in parts]), bias)


def split_projections(encoder: nn.Module) -> None:
    """Replace every fused projection of an encoder by a `SplitProjection`, in place.

    Raises:
        ValueError: If a fused projection is laid out in a way that is not known; nothing is replaced then.
    """
    owners = list(_owners(encoder, nn.Linear))
    unknown = sorted({_full_name(type(owner)) for owner in owners if type(owner) not in FUSED_ATTENTION})
    if unknown:
        raise ValueError(
            f"A fused projection `qkv` must belong to one of {[_full_name(kind) for kind in FUSED_ATTENTION]}, of "
            f"which it is known where q, k and v lie, got {unknown}. Choose another backbone, or add the class to "
            "`FUSED_ATTENTION` if its rows are all of q, then k, then v and its forward calls `self.qkv`."
        )
    for owner in owners:
        owner.qkv = SplitProjection(owner.qkv)


def fuse_projections(encoder: nn.Module) -> None:
    """Undo `split_projections`, in place."""
    for owner in list(_owners(encoder, SplitProjection)):
        owner.qkv = owner.qkv.fuse()


def _owners(encoder: nn.Module, kind: type[nn.Module]) -> Iterator[Any]:
    return (module for module in encoder.modules() if isinstance(getattr(module, "qkv", None), kind))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
