"""Dense cross-attention against torch's own, and what SiA does to its attention maps."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from transformers_upv2.model.position_encoding import encode_grid
from transformers_upv2.model.proposal_dense_attention import (
    DenseAttention,
    SimilarAttention,
    masked_softmax,
    real_cells,
    upsample_real,
)

SHAPES = [(2, 3), (4, 6), (8, 12)]
CELLS = [6, 24, 96]
EXTENTS = torch.tensor([[1.0, 1.0], [0.5, 0.75]])


def build(num_levels=2, similar_attention=False):
    torch.manual_seed(0)
    attention = DenseAttention(16, 4, num_levels, similar_attention=similar_attention)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "similar_attention" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return attention


def inputs():
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 5, 16, generator=generator)
    return queries, torch.rand(2, 5, 4, generator=generator), torch.randn(2, sum(CELLS), 16, generator=generator)


def random_logits(shapes, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 5, *shape, generator=generator) for shape in shapes]


def all_real(shapes):
    return [torch.ones(2, *shape, dtype=torch.bool) for shape in shapes]


def fusion(*weights):
    module = SimilarAttention(len(weights) + 1)
    with torch.no_grad():
        module.weights.copy_(torch.tensor(weights))
    return module


def torch_attention(attention):
    """The same weights in torch's own attention."""
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    projections = (attention.query_proj, attention.key_proj, attention.value_proj)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        reference.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
        reference.out_proj.load_state_dict(attention.output_proj.state_dict())
    return reference


@pytest.mark.parametrize("num_levels", [1, 2])
@pytest.mark.parametrize("extents", [None, EXTENTS])
@torch.no_grad()
def test_output_is_the_mean_of_torchs_attention_to_each_level(num_levels, extents):
    attention = build(num_levels)
    reference = torch_attention(attention)
    queries, boxes, source = inputs()
    expected = []
    for level, states in enumerate(source.split(CELLS, dim=1)[:num_levels]):
        keys = states + encode_grid(SHAPES[level], 16).flatten(1, 2) + attention.level_embedding[level]
        padded = None
        if extents is not None:
            padded = torch.ones(2, *SHAPES[level], dtype=torch.bool)
            for image, (height, width) in zip(padded, (extents * torch.tensor(SHAPES[level])).ceil().int().tolist()):
                image[:height, :width] = False
            padded = padded.flatten(1)
        expected.append(reference(queries, keys, states, key_padding_mask=padded)[0])
    actual = attention(queries, boxes, source, SHAPES, extents)
    torch.testing.assert_close(actual, torch.stack(expected).mean(0), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_finer_maps_are_not_attended():
    attention = build(num_levels=2)
    queries, boxes, source = inputs()
    expected = attention(queries, boxes, source, SHAPES)
    changed = source.clone()
    changed[:, 30:] = 7
    assert torch.equal(attention(queries, boxes, changed, SHAPES), expected)
    changed[:, 29] = 7
    assert not torch.equal(attention(queries, boxes, changed, SHAPES), expected)


@torch.no_grad()
def test_a_new_sia_changes_nothing_and_a_learned_one_does():
    plain, similar = build(3), build(3, similar_attention=True)
    missing, unexpected = similar.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["similar_attention.weights"], [])
    assert similar.similar_attention.weights.shape == (2,)
    for extents in (None, EXTENTS):
        expected = plain(*inputs(), SHAPES, extents)
        assert torch.equal(similar(*inputs(), SHAPES, extents), expected)
    similar.similar_attention.weights.fill_(0.5)
    assert not torch.allclose(similar(*inputs(), SHAPES, EXTENTS), expected, atol=1e-3)


@torch.no_grad()
def test_fusion_passes_on_what_was_fused():
    shapes = [(3, 4)] * 3  # equal sizes: upsampling changes nothing
    coarse, middle, fine = random_logits(shapes)
    fused = fusion(0.5, -2.0)([coarse, middle, fine], all_real(shapes))
    assert torch.equal(fused[0], coarse)
    torch.testing.assert_close(fused[1], middle + 0.5 * coarse)
    torch.testing.assert_close(fused[2], fine - 2 * (middle + 0.5 * coarse))


@torch.no_grad()
def test_equal_levels_are_scaled_by_one_plus_alpha():
    (logits,) = random_logits([(3, 4)])
    torch.testing.assert_close(fusion(0.3)([logits, logits], all_real([(3, 4)] * 2))[1], 1.3 * logits)
    # of another size, where each map is constant
    means = logits.mean((-2, -1), keepdim=True)
    levels = [means.expand(2, 4, 5, 2, 3), means.expand(2, 4, 5, 5, 7)]
    fused = fusion(0.3)(levels, all_real([(2, 3), (5, 7)]))
    torch.testing.assert_close(fused[1], 1.3 * levels[1])


@torch.no_grad()
def test_upsampling_without_padding_is_bilinear():
    (maps,) = random_logits([(3, 4)])
    expected = F.interpolate(maps.flatten(0, 1), size=(7, 8), mode="bilinear").unflatten(0, (2, 4))
    torch.testing.assert_close(upsample_real(maps, all_real([(3, 4)])[0], (7, 8)), expected)


@torch.no_grad()
def test_a_padded_canvas_fuses_and_weighs_as_the_image_alone():
    shapes, canvases = [(3, 2), (6, 4), (12, 8)], [(6, 3), (12, 6), (24, 12)]
    extents = torch.tensor([[3 / 6, 2 / 3]] * 2)
    alone = random_logits(shapes)
    padded = [torch.full((2, 4, 5, *canvas), 1e3) for canvas in canvases]
    for large, small in zip(padded, alone):
        large[..., : small.shape[-2], : small.shape[-1]] = small
    is_real = [real_cells(extents, canvas) for canvas in canvases]
    fuse = fusion(0.7, 0.4)
    fused, expected = fuse(padded, is_real), fuse(alone, all_real(shapes))
    for logits, real, small in zip(fused, is_real, expected):
        weights = masked_softmax(logits, real).unflatten(-1, logits.shape[-2:])
        height, width = small.shape[-2:]
        torch.testing.assert_close(weights[..., :height, :width].flatten(-2), small.flatten(-2).softmax(-1))
        assert weights.sum((-2, -1)).allclose(torch.ones(()))


@torch.no_grad()
def test_padded_cells_change_nothing():
    attention = build(3, similar_attention=True)
    attention.similar_attention.weights.fill_(0.5)
    queries, boxes, source = inputs()
    expected = attention(queries, boxes, source, SHAPES, EXTENTS)
    is_real = torch.cat([real_cells(EXTENTS, shape).flatten(1) for shape in SHAPES], dim=1)
    assert not is_real.all()
    changed = torch.where(is_real[..., None], source, 1e4)
    assert torch.equal(attention(queries, boxes, changed, SHAPES, EXTENTS), expected)
    assert not torch.allclose(attention(queries, boxes, changed, SHAPES), expected)


@torch.no_grad()
def test_every_row_sums_to_one_over_real_cells():
    attention = build(3, similar_attention=True)
    attention.similar_attention.weights.fill_(0.5)
    queries, _, source = inputs()
    levels = attention.attention_weights(queries, source, SHAPES, EXTENTS)
    for weights, shape in zip(levels, SHAPES, strict=True):
        assert weights.shape == (2, 4, 5, shape[0] * shape[1])
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
        padded = ~real_cells(EXTENTS, shape)[:, None, None].expand(2, 4, 5, *shape).flatten(-2)
        assert (weights[padded] == 0).all()
        assert (weights[~padded] > 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_finest_maps_teach_coarse_keys_only_through_alpha(weight):
    attention = build(2, similar_attention=True)
    with torch.no_grad():
        attention.similar_attention.weights.fill_(weight)
    queries, _, source = inputs()
    source.requires_grad_()
    finest = attention.attention_weights(queries, source, SHAPES)[-1]
    gradient, of_weight = torch.autograd.grad(finest.square().sum(), [source, attention.similar_attention.weights])
    assert of_weight.abs() > 0  # it can leave zero
    assert gradient[:, 6:30].any()
    assert bool(gradient[:, :6].any()) == (weight != 0)


def test_a_cell_is_real_if_it_shows_a_pixel():
    # canvases of 64 x 96 pixels, images of 64 x 96, 33 x 32 and 1 x 95
    extents = torch.tensor([[64, 96], [33, 32], [1, 95]]) / torch.tensor([64, 96])
    assert real_cells(extents, (2, 3)).int().tolist() == [
        [[1, 1, 1], [1, 1, 1]],
        [[1, 0, 0], [1, 0, 0]],
        [[1, 1, 1], [0, 0, 0]],
    ]


@torch.no_grad()
def test_bfloat16_keeps_attention_maps_in_float32():
    attention = build(3, similar_attention=True)
    queries, boxes, source = inputs()
    expected = attention(queries, boxes, source, SHAPES)
    half = copy.deepcopy(attention).bfloat16()
    output = half(queries.bfloat16(), boxes, source.bfloat16(), SHAPES)
    assert output.dtype == torch.bfloat16
    assert half.attention_weights(queries.bfloat16(), source.bfloat16(), SHAPES)[0].dtype == torch.float32
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1)


def test_errors_name_what_was_got():
    with pytest.raises(ValueError, match="must be a multiple of `num_heads`, got 10 and 4"):
        DenseAttention(10, 4, 1)
    queries, boxes, source = inputs()
    with pytest.raises(ValueError, match="must name at least 3 maps, got"):
        build(3)(queries, boxes, source[:, :30], SHAPES[:2])
    with pytest.raises(ValueError, match="make 126 cells, but `source_states` has 125"):
        build(3)(queries, boxes, source[:, 1:], SHAPES)
