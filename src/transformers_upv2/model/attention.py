"""Attention shared by text encoder and unified decoder: masks, and keys and values that are kept or dropped."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attention written out; the reference of the fused kernels."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attend with the implementation that ``module.config`` names.

    Args:
        module: Owner of the projections; has ``config`` and ``scaling``.
        query: ``(batch, heads, queries, head_dim)``.
        key: ``(batch, heads, keys, head_dim)``.
        value: ``(batch, heads, keys, head_dim)``.
        mask: Additive mask that broadcasts to ``(batch, heads, queries, keys)``, or None.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(batch, queries, heads * head_dim)``, and the weights ``(batch, heads, queries, keys)`` if the
        implementation makes them.
    """
    config: Any = module.config
    interface = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    output, weights = interface(
        module,
        query,
        key,
        value,
        mask,
        scaling=module.scaling,
        dropout=dropout if module.training else 0.0,
        is_causal=False,
    )
    return output.flatten(2), weights


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """``(batch, tokens, D)`` to ``(batch, heads, tokens, D / heads)``."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def extend_cache(
    cache: Cache | None, layer_idx: int, key: Tensor, value: Tensor, num_kept: int
) -> tuple[Tensor, Tensor]:
    """Put the first keys and values into the cache and attend to the rest without keeping it.

    A caption's slots are of the second kind: each is asked once and seen by nobody later.

    Args:
        cache: Earlier keys and values, changed in place, or None.
        layer_idx: The layer's place in the cache.
        key: ``(batch, heads, tokens, head_dim)``.
        value: Of the same shape.
        num_kept: Leading tokens to keep.

    Returns:
        Keys and values of everything cached, followed by the tokens that are not kept.
    """
    if cache is None:
        return key, value
    kept_key, kept_value = cache.update(key[:, :, :num_kept], value[:, :, :num_kept], layer_idx)
    return (
        torch.cat([kept_key, key[:, :, num_kept:]], dim=2),
        torch.cat([kept_value, value[:, :, num_kept:]], dim=2),
    )


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn "may attend" into what is added to the attention scores.

    Args:
        allowed: Boolean, ``(batch, queries, keys)``.
        dtype: Of the attention scores.

    Returns:
        ``(batch, 1, queries, keys)``, 0 where allowed and the lowest finite number elsewhere.
    """
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min).unsqueeze(1)
