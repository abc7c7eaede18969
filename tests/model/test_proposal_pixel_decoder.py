import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer

from transformers_upv2.model.position_encoding import encode_grid
from transformers_upv2.model.proposal_pixel_decoder import (
    ProposalEncoderLayer,
    ProposalPixelDecoder,
)

CHANNELS = [6, 8, 10, 12]


def feature_maps(size=64, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, size // stride, size // stride, generator=generator)
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32))
    ]


def build(num_levels, hidden_size=32, num_layers=1):
    torch.manual_seed(0)
    layers = [
        ProposalEncoderLayer(hidden_size, num_heads=4, num_levels=num_levels, num_points=2, ffn_size=16)
        for _ in range(num_layers)
    ]
    return ProposalPixelDecoder(CHANNELS, hidden_size, num_levels, layers)


@pytest.mark.parametrize(
    ("num_levels", "sizes"),
    [(3, [8, 4, 2]), (4, [8, 4, 2, 1]), (5, [16, 8, 4, 2, 1]), (6, [16, 8, 4, 2, 1, 1])],
)
def test_levels_and_shapes(num_levels, sizes):
    levels, spatial_shapes, mask_features = build(num_levels)(feature_maps())
    assert spatial_shapes == [(size, size) for size in sizes]
    assert [tuple(level.shape) for level in levels] == [(2, size * size, 32) for size in sizes]
    assert mask_features.shape == (2, 32, 16, 16)


def test_extra_level_is_made_of_the_raw_coarsest_map():
    decoder = build(4, num_layers=0)
    maps = feature_maps()
    levels, _, _ = decoder(maps)
    extra = decoder.input_projections[-1]
    assert extra[0].weight.shape == (32, CHANNELS[-1], 3, 3)
    torch.testing.assert_close(levels[-1], extra(maps[-1]).flatten(2).transpose(1, 2))


def test_mask_features_fuse_the_finest_encoded_map():
    decoder = build(4, num_layers=0)
    maps = feature_maps()
    _, _, mask_features = decoder(maps)
    finest = decoder.input_projections[0](maps[1])
    upsampled = F.interpolate(finest, scale_factor=2, mode="bilinear", align_corners=False)
    expected = decoder.mask_projection(decoder.fusion(decoder.lateral_projection(maps[0]) + upsampled))
    torch.testing.assert_close(mask_features, expected)


@pytest.mark.parametrize(("hidden_size", "groups"), [(256, 32), (32, 4), (192, 24)])
def test_number_of_groups(hidden_size, groups):
    decoder = ProposalPixelDecoder(CHANNELS, hidden_size, 4, [])
    norms = [module for module in decoder.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {groups}


def test_encoder_layer_agrees_with_deformable_detr():
    config = DeformableDetrConfig(
        d_model=32,
        encoder_attention_heads=4,
        encoder_ffn_dim=16,
        encoder_n_points=2,
        num_feature_levels=2,
        dropout=0.0,
        activation_dropout=0.0,
    )
    layer = ProposalEncoderLayer(32, num_heads=4, num_levels=2, num_points=2, ffn_size=16)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    reference = DeformableDetrEncoderLayer(config).eval()
    names = {
        "self_attention.": "self_attn.",
        "self_attention_norm.": "self_attn_layer_norm.",
        "feed_forward.linear1.": "mlp.fc1.",
        "feed_forward.linear2.": "mlp.fc2.",
        "feed_forward.norm.": "final_layer_norm.",
    }
    renamed = {}
    for name, value in layer.state_dict().items():
        prefix = max((key for key in names if name.startswith(key)), key=len)
        renamed[names[prefix] + name.removeprefix(prefix)] = value
    reference.load_state_dict(renamed)
    shapes = [(4, 4), (2, 2)]
    hidden_states = torch.randn(2, 20, 32)
    codes = torch.randn(1, 20, 32)
    references = torch.rand(1, 20, 2)
    expected = reference(
        hidden_states,
        attention_mask=None,
        spatial_position_embeddings=codes,
        reference_points=references[:, :, None].expand(2, -1, 2, -1),
        spatial_shapes=torch.tensor(shapes),
        spatial_shapes_list=shapes,
        level_start_index=torch.tensor([0, 16]),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    actual = layer(hidden_states, codes, references, shapes)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_positions_tell_levels_apart():
    decoder = build(4, num_layers=1)
    seen = {}
    decoder.layers[0].register_forward_pre_hook(
        lambda module, inputs: seen.update(codes=inputs[1], references=inputs[2])
    )
    decoder(feature_maps())
    expected = encode_grid((2, 2), 32).flatten(1, 2) + decoder.level_embedding[2]
    torch.testing.assert_close(seen["codes"][:, 80:84], expected)
    assert seen["references"][0, 80].tolist() == [0.25, 0.25]
    assert seen["references"].dtype == torch.float32


def test_batch_composition_does_not_matter():
    decoder = build(4).eval()
    maps = feature_maps()
    both, _, masks = decoder(maps)
    single, _, single_masks = decoder([level[1:] for level in maps])
    torch.testing.assert_close(both[0][1:], single[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masks[1:], single_masks, rtol=1e-5, atol=1e-5)


def test_errors_name_what_was_got():
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple of 8, got 20"):
        ProposalPixelDecoder(CHANNELS, 20, 4, [])
    with pytest.raises(ValueError, match=r"`num_feature_levels` must be at least 3.*got 2"):
        ProposalPixelDecoder(CHANNELS, 32, 2, [])
