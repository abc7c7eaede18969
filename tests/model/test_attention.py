"""Attention: fused equals written out, masks forbid, a cache keeps what it is told to keep."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.cache_utils import DynamicCache

from transformers_upv2.model.attention import additive_mask, attend, extend_cache, split_heads


def owner(implementation: str) -> nn.Module:
    module = nn.Module()
    module.config = SimpleNamespace(_attn_implementation=implementation)
    module.scaling = 0.5
    module.is_causal = False
    return module.eval()


@pytest.mark.parametrize("with_mask", [True, False])
def test_implementations_agree_with_a_loop(with_mask):
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind(0)  # (batch, heads, tokens, head_dim) each
    allowed = torch.rand(2, 5, 5) < 0.5
    allowed |= torch.eye(5, dtype=torch.bool)
    mask = additive_mask(allowed, torch.float32) if with_mask else None
    expected = torch.empty(2, 5, 4, 8)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        seen = allowed[b, i] if with_mask else torch.ones(5, dtype=torch.bool)
        weights = (key[b, h, seen] @ query[b, h, i] * 0.5).softmax(0)
        expected[b, i, h] = weights @ value[b, h, seen]
    for implementation in ("eager", "sdpa"):
        output, _ = attend(owner(implementation), query, key, value, mask, dropout=0.5)  # eval: none dropped
        torch.testing.assert_close(output, expected.flatten(2))


def test_split_heads_keeps_a_heads_channels_together():
    states = torch.arange(12.0).view(1, 2, 6)
    assert split_heads(states, 3)[0, 1].tolist() == [[2, 3], [8, 9]]


def test_cache_keeps_words_and_never_slots():
    cache = DynamicCache()
    first, second = torch.randn(2, 1, 2, 3, 4).unbind(0)
    key, value = extend_cache(cache, 0, first, first + 1, num_kept=2)
    torch.testing.assert_close(key, first)
    torch.testing.assert_close(value, first + 1)
    assert cache.get_seq_length() == 2
    key, value = extend_cache(cache, 0, second, second + 1, num_kept=1)
    torch.testing.assert_close(key, torch.cat([first[:, :, :2], second], dim=2))
    torch.testing.assert_close(value, torch.cat([first[:, :, :2], second], dim=2) + 1)
    assert cache.get_seq_length() == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additive_mask_is_finite(dtype):
    mask = additive_mask(torch.tensor([[[True, False]]]), dtype)
    assert mask.shape == (1, 1, 1, 2)
    assert mask.dtype == dtype
    assert mask.flatten().tolist() == [0.0, torch.finfo(dtype).min]
