import copy

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

from transformers_upv2.model.proposal_attention import (
    FeedForward,
    MultiScaleDeformableAttention,
    PredictionHead,
)

SHAPES = [(6, 8), (3, 4)]
CELLS = 60


def random_attention(seed=0):
    """Build attention with weights that depend on the query."""
    attention = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return attention


def random_inputs(coordinates, batch=2, queries=5):
    generator = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(batch, queries, 16, generator=generator)
    source_states = torch.randn(batch, CELLS, 16, generator=generator)
    references = torch.rand(batch, queries, coordinates, generator=generator)
    return hidden_states, references, source_states


@pytest.mark.parametrize("coordinates", [2, 4])
def test_agrees_with_mask2former_and_loads_its_state_dict(coordinates):
    attention = random_attention()
    reference = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(16, 4, 2, 3)
    reference.load_state_dict(attention.state_dict())
    hidden_states, references, source_states = random_inputs(coordinates)
    expected, _ = reference(
        hidden_states,
        encoder_hidden_states=source_states,
        reference_points=references[:, :, None].expand(-1, -1, 2, -1),
        spatial_shapes_list=SHAPES,
    )
    actual = attention(hidden_states, references, source_states, SHAPES)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_samples_in_float32():
    attention = random_attention()
    hidden_states, references, source_states = random_inputs(4)
    expected = attention(hidden_states, references, source_states, SHAPES)
    half = copy.deepcopy(attention).bfloat16()
    actual = half(hidden_states.bfloat16(), references, source_states.bfloat16(), SHAPES)
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)


def test_fresh_attention_looks_along_one_direction_per_head():
    attention = MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3)
    offsets = attention.sampling_offsets.bias.view(4, 2, 3, 2)
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    expected = directions[:, None, None] * torch.tensor([1.0, 2, 3])[:, None]
    torch.testing.assert_close(offsets.detach(), expected.expand_as(offsets), atol=1e-6, rtol=0)
    assert not attention.attention_weights.weight.any()


def test_initialization_spares_loaded_parameters():
    attention = random_attention()
    loaded = attention.value_proj.weight
    loaded._is_hf_initialized = True
    before = loaded.detach().clone()
    attention.reset_parameters()
    assert torch.equal(loaded, before)
    assert not attention.attention_weights.weight.any()


def test_errors_name_what_was_got():
    with pytest.raises(ValueError, match="multiple of `num_heads`, got 10 and 4"):
        MultiScaleDeformableAttention(10, 4, 1, 1)
    hidden_states, references, source_states = random_inputs(2)
    attention = random_attention()
    with pytest.raises(ValueError, match=r"make 61 cells, but `source_states` has 60"):
        attention(hidden_states, references, source_states, [(6, 8), (1, 13)])
    with pytest.raises(ValueError, match="got a last dimension of 3"):
        attention(hidden_states, torch.rand(2, 5, 3), source_states, SHAPES)


def test_feed_forward_is_post_norm():
    layer = FeedForward(8, 16)
    hidden_states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    inner = (hidden_states @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    summed = hidden_states + inner @ layer.linear2.weight.T + layer.linear2.bias
    centered = summed - summed.mean(-1, keepdim=True)
    expected = centered / (summed.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(layer(hidden_states), expected)


def test_prediction_head_has_no_relu_at_the_end():
    head = PredictionHead(4, 6, 3, 2)
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    inner = (inputs @ head.layers[0].weight.T + head.layers[0].bias).clamp(min=0)
    outputs = head(inputs)
    torch.testing.assert_close(outputs, inner @ head.layers[1].weight.T + head.layers[1].bias)
    assert (outputs < 0).any()
