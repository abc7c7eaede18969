"""Image tokens: pooled masks without masks, masked pooling, detached boxes and masks."""

import pytest
import torch
from torch.nn import functional as F

from transformers_upv2.model.image_tokens import AttentionPools, GlobalTokens, ProposalTokens
from transformers_upv2.model.proposal_query_decoder import predict_masks


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (11, 7)])
def test_pooled_features_give_the_pooled_masks(size):
    """Also where the map is no multiple of the pooled side, or smaller than it."""
    tokens = ProposalTokens(proposal_size=16, hidden_size=32, pooled_mask_size=8).double()
    embeddings, features = torch.randn(2, 5, 16).double(), torch.randn(2, 16, *size).double()
    full = predict_masks(embeddings, features)
    expected = F.adaptive_avg_pool2d(full, 8)
    torch.testing.assert_close(tokens.pool_masks(embeddings, features), expected, atol=1e-12, rtol=0)


def test_proposal_token_is_the_sum_of_three_parts():
    tokens = ProposalTokens(proposal_size=16, hidden_size=32, pooled_mask_size=8)
    semantic, boxes, masks = torch.randn(2, 5, 16), torch.rand(2, 5, 4), torch.randn(2, 5, 8, 8)
    output = tokens(semantic, boxes, masks)
    assert output.shape == (2, 5, 32)

    def part(projection, values):
        return F.layer_norm(F.linear(values, projection.weight, projection.bias), (32,))

    other_masks = torch.randn(2, 5, 8, 8)
    expected = part(tokens.mask_projection, other_masks.sigmoid().flatten(2))
    expected = expected - part(tokens.mask_projection, masks.sigmoid().flatten(2))
    torch.testing.assert_close(tokens(semantic, boxes, other_masks) - output, expected, atol=1e-5, rtol=1e-5)
    other = tokens(semantic.flip(1), boxes, masks) - output
    expected = part(tokens.semantic_projection, semantic.flip(1)) - part(tokens.semantic_projection, semantic)
    torch.testing.assert_close(other, expected, atol=1e-5, rtol=1e-5)
    moved = tokens(semantic, boxes.flip(1), masks)
    assert not torch.allclose(moved, output)


def test_no_part_of_a_proposal_token_drowns_another():
    tokens = ProposalTokens(proposal_size=16, hidden_size=32, pooled_mask_size=8)
    semantic, boxes, masks = torch.randn(2, 5, 16), torch.rand(2, 5, 4), torch.randn(2, 5, 8, 8)
    change = tokens(semantic, boxes.flip(1), masks) - tokens(semantic, boxes, masks)
    loud = tokens(1000 * semantic, boxes.flip(1), masks) - tokens(1000 * semantic, boxes, masks)
    torch.testing.assert_close(loud, change, atol=1e-4, rtol=1e-4)


def test_gradient_reaches_the_semantic_part_only():
    tokens = ProposalTokens(proposal_size=16, hidden_size=32, pooled_mask_size=8)
    semantic, boxes, masks = (
        values.requires_grad_() for values in (torch.randn(2, 5, 16), torch.rand(2, 5, 4), torch.randn(2, 5, 8, 8))
    )
    tokens(semantic, boxes, masks).square().sum().backward()
    assert semantic.grad.abs().max() > 0
    assert boxes.grad is None
    assert masks.grad is None
    for projection in (tokens.box_projection, tokens.mask_projection):
        assert projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("channels", "heads"), [(128, 2), (48, 1), (130, 2), (195, 3), (200, 1)])
def test_attention_pools_equal_multi_head_attention(channels, heads):
    pools = AttentionPools(channels, 32, num_pools=3)
    pools.reset_parameters(std=0.5)
    torch.nn.init.normal_(pools.output_bias)
    if channels == 200:  # 200 // 64 = 3 heads would not divide the channels
        assert pools.num_heads == 1
    assert pools.num_heads == heads
    grid, mask = torch.randn(2, 6, channels), torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    output = pools(grid, mask)
    for index in range(3):
        rows = slice(index * channels, (index + 1) * channels)
        weight, bias = pools.key_projection.weight[rows], pools.key_projection.bias[rows]
        expected, _ = F.multi_head_attention_forward(
            pools.queries[index].expand(2, 1, -1).transpose(0, 1),
            grid.transpose(0, 1),
            grid.transpose(0, 1),
            channels,
            heads,
            None,
            torch.cat([torch.zeros(channels), bias, pools.value_projection.bias[rows]]),
            None,
            None,
            False,
            0.0,
            pools.output_weight[index].T,
            pools.output_bias[index][: pools.output_weight.shape[2]],
            key_padding_mask=~mask,
            use_separate_proj_weight=True,
            q_proj_weight=torch.eye(channels),
            k_proj_weight=weight,
            v_proj_weight=pools.value_projection.weight[rows],
        )
        torch.testing.assert_close(output[:, index], expected[0], atol=1e-4, rtol=1e-4)


def test_hidden_cells_change_no_pooled_token():
    tokens = GlobalTokens(in_channels=64, hidden_size=32, num_pools=2)
    tokens.pools.reset_parameters(std=0.5)
    maps = torch.randn(1, 64, 3, 4)
    mask = torch.ones(1, 3, 4, dtype=torch.bool)
    mask[..., 2:] = False
    pooled, grid = tokens(maps, mask)
    assert pooled.shape == (1, 2, 32)
    assert grid.shape == (1, 12, 32)
    changed = maps.clone()
    changed[..., 2:] += 5.0
    other, other_grid = tokens(changed, mask)
    torch.testing.assert_close(other, pooled)
    seen = mask.flatten(1)
    torch.testing.assert_close(other_grid[seen], grid[seen])
    changed[..., 0, 0] += 5.0
    assert not torch.allclose(tokens(changed, mask)[0], pooled)


def test_equal_cells_differ_by_their_place_and_transposing_is_noticed():
    tokens = GlobalTokens(in_channels=64, hidden_size=32, num_pools=2)
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    _, grid = tokens(torch.ones(1, 64, 2, 3), mask)
    distances = torch.cdist(grid[0], grid[0]) + torch.eye(6)
    assert distances.min() > 0.05
