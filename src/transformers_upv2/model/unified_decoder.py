"""The unified decoder g: one modality-agnostic Transformer for every input and every candidate.

Reference: Uni-Perceiver v2, sections 4.3 and 5.2 (https://arxiv.org/abs/2211.09808): BERT-base with six layers,
randomly initialised, a learned [SPE] token before every sequence.

Not stated in the paper, chosen here: pre-LN, GELU and drop path (inherited from Uni-Perceiver); a learned type
embedding for each kind of token.
"""

import zlib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import attend, extend_cache, split_heads
from .conditional_moe import ConditionalFeedForward, TokenGroup
from .configuration_upv2 import UniPerceiverV2DecoderConfig

ALL = slice(None)
"""All tokens of a sequence."""


def drop_path(states: Tensor, probability: float, training: bool) -> Tensor:
    """Drop a residual branch for whole samples, ``(batch, tokens, D)``, and scale up the others."""
    if not training or probability == 0.0:
        return states
    keep = torch.rand(states.shape[0], 1, 1, device=states.device) >= probability
    return states * keep / (1.0 - probability)


class UniPerceiverV2Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: UniPerceiverV2DecoderConfig, cache_index: int) -> None:
        super().__init__()
        self.config = config
        self.cache_index = cache_index
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False
        self.qkv_projection = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.output_projection = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, mask: Tensor | None, cache: Cache | None, num_kept: int, read: slice
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; the shapes are those of ``UnifiedDecoder.forward`` and `attend`, the tokens those of ``read``."""
        query, key, value = (
            split_heads(states, self.num_heads) for states in self.qkv_projection(hidden_states).chunk(3, dim=-1)
        )
        key, value = extend_cache(cache, self.cache_index, key, value, num_kept)
        mask = None if mask is None else mask[:, :, read]
        states, weights = attend(self, query[:, :, read], key, value, mask, dropout=0.0)
        return self.output_projection(states), weights


class UnifiedDecoderLayer(GradientCheckpointingLayer):
    """Self-attention and a Conditional MoE feed-forward network, each behind a LayerNorm."""

    def __init__(self, config: UniPerceiverV2DecoderConfig, cache_index: int) -> None:
        super().__init__()
        self.drop_path = float(config.drop_path)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = UniPerceiverV2Attention(config, cache_index)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = ConditionalFeedForward(
            config.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.num_experts_per_group,
            config.merged_routes,
        )

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        groups: Sequence[TokenGroup],
        gate_seeds: Sequence[int] | None = None,
        cache: Cache | None = None,
        num_kept: int = 0,
        read: slice = ALL,
    ) -> Tensor:
        """Run one layer; the shapes are those of ``UnifiedDecoder.forward``, the groups those of ``read``."""
        states, _ = self.attention(self.attention_norm(hidden_states), mask, cache, num_kept, read)
        hidden_states = hidden_states[:, read] + drop_path(states, self.drop_path, self.training)
        # made here from seeds, so that a checkpointed layer draws the same noise again
        generators = [torch.Generator().manual_seed(seed) for seed in gate_seeds or ()]
        states = self.feed_forward(self.feed_forward_norm(hidden_states), groups, generators)
        return hidden_states + drop_path(states, self.drop_path, self.training)


class UnifiedDecoder(nn.Module):
    """The layers of g; [SPE], type embeddings and the output head live beside it.

    Args:
        config: Numbers of the decoder.
        first_cache_index: Place of the first layer in a cache that the text encoder shares.
    """

    def __init__(self, config: UniPerceiverV2DecoderConfig, first_cache_index: int) -> None:
        super().__init__()
        layers = nn.ModuleList(
            UnifiedDecoderLayer(config, first_cache_index + index) for index in range(config.num_hidden_layers)
        )
        self.layers = cast("Sequence[UnifiedDecoderLayer]", layers)

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None,
        groups: Sequence[TokenGroup],
        step_seed: int | None = None,
        cache: Cache | None = None,
        num_kept: int = 0,
        read: slice = ALL,
    ) -> Tensor:
        """Run all layers.

        Args:
            hidden_states: ``(batch, tokens, D)``.
            mask: Additive attention mask, ``(batch, 1, tokens, cached + tokens)``.
            groups: Routes of neighbouring tokens, in order.
            step_seed: Seed of this training step, equal on all ranks: gate noise is drawn per (step, layer, route).
            cache: Keys and values of earlier tokens; the first ``num_kept`` of these tokens are added.
            num_kept: Tokens that later calls may attend to.
            read: Neighbouring tokens whose outputs are read; the last layer computes no others.

        Returns:
            ``(batch, tokens read, D)``, before the final LayerNorm.
        """
        for index, layer in enumerate(self.layers):
            layer_read = ALL
            if index + 1 == len(self.layers):
                groups, layer_read = _groups_of(groups, read), read
            seeds = None
            if self.training and step_seed is not None:
                seeds = [_gate_seed(step_seed, index, group.route) for group in groups]
            hidden_states = layer(hidden_states, mask, groups, seeds, cache, num_kept, layer_read)
        return hidden_states

    def merge_experts(self, routes: Sequence[str]) -> None:
        """Replace the experts of every layer by one dense network for each route, in place."""
        for layer in self.layers:
            layer.feed_forward = layer.feed_forward.merge(routes)


def _groups_of(groups: Sequence[TokenGroup], read: slice) -> list[TokenGroup]:
    """Cut groups down to neighbouring tokens."""
    total = sum(group.length for group in groups)
    # by hand, since `slice.indices` would make a number of a traced length
    start, stop = read.start or 0, total if read.stop is None else read.stop
    start, stop = (position + total if position < 0 else position for position in (start, stop))
    parts, begin = [], 0
    for group in groups:
        end = begin + group.length
        first, last = begin, end
        if first < start:  # `max` of a traced length would stay a formula
            first = start
        if last > stop:
            last = stop
        if last > first:
            parts.append(TokenGroup(group.route, last - first))
        begin = end
    return parts


def _gate_seed(step_seed: int, layer: int, route: str) -> int:
    return zlib.crc32(f"{step_seed}/{layer}/{route}".encode())
