import math

import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import (
    encode_sinusoidal_position_embedding,
)

from transformers_upv2.model import proposal_query_decoder
from transformers_upv2.model.boxes import inverse_sigmoid, masks_to_boxes, xyxy_to_cxcywh
from transformers_upv2.model.proposal_decoder_layer import DeformableCrossAttention, ProposalDecoderLayer
from transformers_upv2.model.proposal_denoising import DenoisingNoise, build_denoising_queries
from transformers_upv2.model.proposal_query_decoder import ProposalQueryDecoder, predict_masks, prior_box_logits

SHAPES = [(8, 8), (4, 4), (2, 2)]
NUM_QUERIES = 10


def new_layer():
    return ProposalDecoderLayer(32, lambda: DeformableCrossAttention(32, 4, 3, 2), num_heads=4, ffn_size=16)


def build(num_layers=2, num_classes=1, initial_box="bitmask"):
    torch.manual_seed(0)
    layers = [new_layer() for _ in range(num_layers)]
    decoder = ProposalQueryDecoder(
        32, layers, num_queries=NUM_QUERIES, num_classes=num_classes, initial_box=initial_box
    )
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return decoder


def inputs(batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    levels = [torch.randn(batch, h * w, 32, generator=generator) for h, w in SHAPES]
    return levels, SHAPES, torch.randn(batch, 32, 16, 16, generator=generator)


def record_layers(decoder):
    """Return two lists that a forward call fills: outputs of the layers and their arguments."""
    outputs, arguments = [], []

    def record(module, args, output):
        outputs.append(output)
        arguments.append(args)

    for layer in decoder.layers:
        layer.register_forward_hook(record)
    return outputs, arguments


def denoising_queries(noise_seed=0):
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.2, 0.2]]]).repeat(2, 1, 1)
    is_target = torch.tensor([[True, True], [True, False]])
    noise = DenoisingNoise.draw((2, 3, 2), generator=torch.Generator().manual_seed(noise_seed))
    return build_denoising_queries(
        torch.zeros(2, 2, dtype=torch.int64), boxes, is_target, noise, num_classes=1, noise_scale=0.4
    )


def test_predict_masks_is_a_dot_product():
    embeddings, features = torch.randn(2, 3, 4), torch.randn(2, 4, 5, 6)
    masks = predict_masks(embeddings, features)
    torch.testing.assert_close(masks[1, 2, 3, 4], embeddings[1, 2] @ features[1, :, 3, 4])


def test_prior_boxes_grow_from_coarse_to_fine():
    logits, is_valid = prior_box_logits([(1, 1), (2, 2)])
    assert is_valid.all()
    torch.testing.assert_close(logits[0].sigmoid(), torch.tensor([0.5, 0.5, 0.05, 0.05]))
    torch.testing.assert_close(logits[2].sigmoid(), torch.tensor([0.75, 0.25, 0.1, 0.1]))


def test_prior_boxes_near_the_border_are_not_valid():
    logits, is_valid = prior_box_logits([(1, 100)])  # the first center is 0.005
    assert is_valid.tolist() == [False, *[True] * 98, False]
    assert logits[0].tolist() == [math.inf] * 4


def test_selected_queries_are_those_with_the_highest_logit():
    decoder = build(num_classes=2)
    levels, shapes, _ = inputs()
    memory = torch.cat(levels[::-1], dim=1)
    selected, prior = decoder._select(memory, shapes[::-1])
    states = decoder.memory_norm(decoder.memory_projection(memory))
    scores = decoder.class_head(states).amax(-1)
    best = scores[0].argsort(descending=True)[:NUM_QUERIES]
    torch.testing.assert_close(selected[0], states[0, best])
    torch.testing.assert_close(prior[0], prior_box_logits(shapes[::-1])[0][best])


def test_cells_without_a_valid_prior_box_carry_no_features():
    decoder = build()
    decoder.num_queries = 100  # select all
    selected, prior = decoder._select(torch.randn(1, 100, 32), [(1, 100)])
    is_invalid = prior.isinf().all(-1)
    assert is_invalid.sum() == 2  # the first and the last center are beyond the margin
    empty = decoder.memory_norm(decoder.memory_projection.bias)
    torch.testing.assert_close(selected[is_invalid], empty.expand(2, -1))


def test_encoder_proposals_move_their_prior_boxes():
    decoder = build()
    levels, shapes, features = inputs()
    _, _, training = decoder(levels, shapes, features, None, all_predictions=True)
    selected, prior = decoder._select(torch.cat(levels[::-1], dim=1), shapes[::-1])
    expected = (decoder.box_head(selected) + prior).sigmoid()
    torch.testing.assert_close(training.matching.boxes[0], expected)


def test_layers_read_the_maps_coarse_to_fine():
    decoder = build()
    _, arguments = record_layers(decoder)
    levels, shapes, features = inputs()
    decoder(levels, shapes, features)
    for _, _, _, memory, layer_shapes, _ in arguments:
        assert layer_shapes == shapes[::-1]
        assert torch.equal(memory, torch.cat([levels[2], levels[1], levels[0]], dim=1))


def test_query_positions_encode_boxes_as_y_x_w_h():
    decoder = build()
    _, arguments = record_layers(decoder)
    decoder(*inputs())
    for _, codes, boxes, *_ in arguments:
        # swaps x and y by itself
        expected = encode_sinusoidal_position_embedding(boxes, num_pos_feats=16)
        torch.testing.assert_close(codes, decoder.box_position_head(expected))


def test_layers_get_detached_queries_and_boxes():
    decoder = build()
    _, arguments = record_layers(decoder)
    decoder(*inputs())
    assert not arguments[0][0].requires_grad
    assert arguments[1][0].requires_grad
    assert [args[2].requires_grad for args in arguments] == [False, False]


def test_first_boxes_surround_the_first_masks(monkeypatch):
    decoder = build()
    embeddings, features = torch.randn(2, NUM_QUERIES, 32), torch.randn(2, 32, 16, 12)
    masks = predict_masks(embeddings, features) > 0
    boxes = xyxy_to_cxcywh(masks_to_boxes(masks, "bitmask")) / torch.tensor([12.0, 16, 12, 16])
    torch.testing.assert_close(decoder._boxes_from_masks(embeddings, features), inverse_sigmoid(boxes))
    monkeypatch.setattr(proposal_query_decoder, "MASK_CHUNK_ELEMENTS", 3 * 2 * 16 * 12)
    torch.testing.assert_close(decoder._boxes_from_masks(embeddings, features), inverse_sigmoid(boxes))


@torch.no_grad()
def test_heads_follow_the_official_order_of_norms():
    decoder = build(num_layers=1).eval()
    raw, arguments = record_layers(decoder)
    semantic, last, training = decoder(*inputs())
    assert training is None
    once = decoder.decoder_norm(raw[0])
    twice = decoder.decoder_norm(once)
    torch.testing.assert_close(semantic, once)
    torch.testing.assert_close(last.class_logits[0], decoder.class_head(twice))
    torch.testing.assert_close(last.mask_embeddings[0], decoder.mask_head(twice))
    expected = (decoder.box_head(once) + inverse_sigmoid(arguments[0][2])).sigmoid()
    torch.testing.assert_close(last.boxes[0], expected)


@torch.no_grad()
def test_next_layer_starts_from_the_box_without_norm():
    decoder = build(num_layers=2).eval()
    raw, arguments = record_layers(decoder)
    decoder(*inputs())
    expected = (decoder.box_head(raw[0]) + inverse_sigmoid(arguments[0][2])).sigmoid()
    torch.testing.assert_close(arguments[1][2], expected)


def test_boxes_look_forward_twice():
    decoder = build(num_layers=2)
    raw, _ = record_layers(decoder)
    decoder.layers[1].register_forward_pre_hook(lambda module, args: (args[0].detach(), args[1].detach(), *args[2:]))
    _, last, _ = decoder(*inputs())
    # layer 1 is cut off from layer 0, so the gradient can only come through its box
    (gradient,) = torch.autograd.grad(last.boxes.sum(), raw[0])
    assert gradient.abs().sum() > 0


def test_training_predictions_contain_the_proposals_of_inference():
    decoder = build().eval()
    semantic, last, training = decoder(*inputs(), denoising_queries(), all_predictions=True)
    plain_semantic, plain, _ = decoder(*inputs())
    torch.testing.assert_close(semantic, plain_semantic, rtol=1e-5, atol=1e-5)
    for name in ("class_logits", "boxes", "mask_embeddings"):
        value = getattr(training.matching, name)
        assert value.shape[:3] == (4, 2, NUM_QUERIES)
        assert getattr(training.denoising, name).shape[:3] == (3, 2, 6)
        torch.testing.assert_close(value[-1:], getattr(plain, name), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(getattr(last, name), value[-1:])


@torch.no_grad()
def test_denoising_groups_do_not_see_each_other():
    decoder = build().eval()
    queries, changed = denoising_queries(), denoising_queries()
    changed.box_logits[:, 2:4] = 0.3  # group 1
    _, _, training = decoder(*inputs(), queries, all_predictions=True)
    _, _, other = decoder(*inputs(), changed, all_predictions=True)
    difference = (training.denoising.boxes - other.denoising.boxes).abs().amax((0, 1, 3))
    assert (difference > 1e-4).tolist() == [False, False, True, True, False, False]


def test_padded_denoising_queries_are_neutral():
    decoder = build().eval()
    _, _, training = decoder(*inputs(), denoising_queries(), all_predictions=True)
    padded = training.denoising.boxes[0, 1, 1::2]  # the second image has one target of two
    torch.testing.assert_close(padded, torch.full_like(padded, 0.5))


def test_every_parameter_learns_without_denoising_queries():
    decoder = build()
    _, _, training = decoder(*inputs(), None, all_predictions=True)
    matching = training.matching
    loss = matching.class_logits.sum() + matching.boxes.sum() + matching.mask_embeddings.sum()
    loss.backward()
    assert [name for name, value in decoder.named_parameters() if value.grad is None] == []


def test_class_head_starts_at_its_prior_and_boxes_at_their_references():
    decoder = ProposalQueryDecoder(32, [new_layer()], num_queries=4)
    torch.testing.assert_close(decoder.class_head.bias.sigmoid(), torch.tensor([0.01]))
    assert not decoder.box_head(torch.randn(3, 32)).any()


@torch.no_grad()
def test_bfloat16_keeps_boxes_in_float32():
    decoder = build().eval()
    _, expected, _ = decoder(*inputs())
    levels, shapes, features = inputs()
    levels = [level.bfloat16() for level in levels]
    semantic, last, _ = decoder.bfloat16()(levels, shapes, features.bfloat16())
    assert semantic.dtype == torch.bfloat16
    assert last.boxes.dtype == torch.float32
    assert last.boxes.isfinite().all()
    assert last.boxes.shape == expected.boxes.shape


def test_errors_name_what_was_got():
    with pytest.raises(ValueError, match="must be 'mask2box' or 'bitmask', got 'no'"):
        ProposalQueryDecoder(32, [], num_queries=4, initial_box="no")
    decoder = build()
    levels, _, features = inputs()
    with pytest.raises(ValueError, match="at least `num_queries` = 10 cells, got 4 cells"):
        decoder(levels[2:], SHAPES[2:], features)
