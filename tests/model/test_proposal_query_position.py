"""Query positions: how the code of a query's place goes from layer to layer."""

import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import encode_sinusoidal_position_embedding

from transformers_upv2.model.proposal_decoder_layer import DeformableCrossAttention, ProposalDecoderLayer
from transformers_upv2.model.proposal_query_decoder import ProposalQueryDecoder
from transformers_upv2.model.proposal_query_position import build_position_head

SHAPES = [(8, 8), (4, 4), (2, 2)]


def build(query_position, scattered=True):
    torch.manual_seed(0)
    layers = [
        ProposalDecoderLayer(32, lambda: DeformableCrossAttention(32, 4, 3, 2), num_heads=4, ffn_size=16)
        for _ in range(3)
    ]
    decoder = ProposalQueryDecoder(32, layers, num_queries=10, initial_box="bitmask", query_position=query_position)
    if scattered:
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder


def inputs():
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, h * w, 32, generator=generator) for h, w in SHAPES]
    return levels, SHAPES, torch.randn(2, 32, 16, 16, generator=generator)


def run(decoder):
    """Decode; also return each layer's output, position codes and boxes."""
    outputs, codes, boxes = [], [], []

    def record(module, args, output):
        outputs.append(output)
        codes.append(args[1])
        boxes.append(args[2])

    handles = [layer.register_forward_hook(record) for layer in decoder.layers]
    result = decoder(*inputs())
    for handle in handles:
        handle.remove()
    return result, outputs, codes, boxes


def test_static_codes_are_those_of_the_first_boxes_in_every_layer():
    decoder = build("static")
    _, _, codes, boxes = run(decoder)
    first = decoder.box_position_head(encode_sinusoidal_position_embedding(boxes[0], num_pos_feats=16))
    torch.testing.assert_close(codes[0], first)
    assert torch.equal(codes[1], codes[0])
    assert torch.equal(codes[2], codes[0])
    assert not torch.equal(boxes[2], boxes[0])  # the boxes do move


def test_anchor_codes_change_from_layer_to_layer():
    _, _, codes, _ = run(build("anchor"))
    assert not torch.equal(codes[1], codes[0])
    assert not torch.equal(codes[2], codes[1])


def test_guided_codes_add_an_update_from_the_newest_box_to_the_first_code():
    decoder = build("guided")
    _, _, codes, boxes = run(decoder)
    first, _, last = decoder.box_position_head.update
    for layer in (1, 2):
        sine = encode_sinusoidal_position_embedding(boxes[layer], num_pos_feats=16)
        hidden = (sine @ first.weight.T + first.bias).clamp(min=0)
        update = hidden @ last.weight.T + last.bias
        assert update.abs().max() > 0.01
        torch.testing.assert_close(codes[layer], codes[0] + update)
    assert not torch.equal(codes[2], codes[1])


@pytest.mark.parametrize("query_position", ["anchor", "guided"])
def test_codes_give_no_gradient_to_the_box_head_or_the_layer_before(query_position):
    decoder = build(query_position)
    _, outputs, codes, _ = run(decoder)
    heads = [*decoder.box_head.parameters(), *outputs[:1]]
    gradients = torch.autograd.grad(codes[1].square().sum(), heads, retain_graph=True, allow_unused=True)
    assert gradients == (None,) * len(heads)
    learned = list(decoder.box_position_head.parameters())
    gradients = torch.autograd.grad(codes[1].square().sum(), learned)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@torch.no_grad()
def test_a_new_guided_head_is_a_static_one():
    static, guided = build("static"), build("guided", scattered=False)
    missing, unexpected = guided.load_state_dict(static.state_dict(), strict=False)
    assert sorted(missing) == [
        f"box_position_head.update.{index}.{name}" for index in (0, 2) for name in ("bias", "weight")
    ]
    assert unexpected == []
    (expected, expected_last, _), *_ = run(static)
    (semantic, last, _), *_ = run(guided)
    assert torch.equal(semantic, expected)
    assert torch.equal(last.boxes, expected_last.boxes)
    assert guided.box_position_head.update[0].weight.any()  # else nothing could be learned


@torch.no_grad()
def test_the_three_positions_decode_differently():
    states = {name: run(build(name))[0][0] for name in ("anchor", "static")}
    guided = build("guided")
    guided.load_state_dict(build("static").state_dict(), strict=False)
    states["guided"] = run(guided)[0][0]
    assert not torch.allclose(states["anchor"], states["static"], atol=1e-4)
    assert not torch.allclose(states["guided"], states["static"], atol=1e-4)


def test_static_and_anchor_have_the_weights_of_mask_dino():
    assert list(build("static").state_dict()) == list(build("anchor").state_dict())


def test_an_unknown_position_is_an_error():
    with pytest.raises(ValueError, match=r"must be one of \['anchor', 'guided', 'static'\], got 'guide'"):
        build_position_head("guide", 32)
