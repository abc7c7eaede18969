"""Query position, dense cross-attention and SiA in whole networks and models."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from safetensors import safe_open
from torch.utils.checkpoint import checkpoint

from tiny_models import box_labels, pad_images, random_images, scatter_weights, tiny_config
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Model
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config, UniPerceiverV2ProposalConfig
from transformers_upv2.model.proposal_decoder_layer import DeformableCrossAttention
from transformers_upv2.model.proposal_dense_attention import DenseAttention, real_cells
from transformers_upv2.model.proposal_matcher import ProposalLossSettings
from transformers_upv2.model.proposal_network import ProposalNetwork, ProposalSettings
from transformers_upv2.model_summary import summarize_model

SHIPPED = Path(__file__).resolve().parents[2] / "model_cards" / "uniperceiver-v2-tiny"
DEFAULTS = {"query_position": "anchor", "cross_attention": "deformable", "similar_attention": False}
SIA = {"cross_attention": "dense", "similar_attention": True}
OPTIONS = [
    {"query_position": "static"},
    {"query_position": "guided"},
    {"cross_attention": "dense"},
    SIA,
    {"query_position": "guided"} | SIA,
]
NAMES = ["static", "guided", "dense", "sia", "guided-sia"]
CHANNELS = [6, 8, 10, 12]


def build_network(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "encoder_layers": 1, "decoder_layers": 3, "num_heads": 4, "num_points": 2}
    sizes |= {"encoder_ffn_size": 16, "decoder_ffn_size": 16, "num_queries": 12, "dn_number": 8}
    return ProposalNetwork(CHANNELS, ProposalSettings(**(sizes | changes)), ProposalLossSettings(num_points=32))


def build_model(seed=0, **options):
    torch.manual_seed(seed)
    return scatter_weights(UniPerceiverV2Model(tiny_config(proposal_config=options))).eval()


def feature_maps(batch=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, 96 // stride, 64 // stride, generator=generator)
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32))
    ]


def targets():
    labels = box_labels([2, 1])
    for label in labels:
        label["class_labels"] = torch.zeros_like(label["class_labels"])
        label["masks"] = torch.nn.functional.pad(label["masks"], (0, 0, 0, 32))
    return labels


def train(network):
    output = network(feature_maps(), targets())
    terms, _ = network.losses(output, targets())
    assert output.training.denoising is not None
    loss = network.weighted_sum(terms)
    loss.backward()
    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_a_training_step_reaches_every_parameter(options):
    network = build_network(**options)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    new = {name for name, _ in network.named_parameters()} - {name for name, _ in build_network().named_parameters()}
    assert bool(new) == (options != {"query_position": "static"})
    moved = set()
    for _ in range(2):  # behind a layer of zeros, learning starts with the second step
        assert train(network).isfinite()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            moved |= {name} if parameter.grad.any() else set()
        optimizer.step()
    assert new <= moved


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
def test_batch_of_two_equals_two_batches_of_one(options):
    network = scatter_weights(build_network(**options)).eval()
    maps = feature_maps()
    both, single = network(maps), network([level[1:] for level in maps])
    torch.testing.assert_close(both.boxes[1:], single.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.semantic[1:], single.semantic, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_feature_levels", "num_coarse"), [(3, 2), (4, 3), (5, 3)])
def test_dense_attention_is_for_maps_from_stride_16_on(num_feature_levels, num_coarse):
    network = build_network(num_feature_levels=num_feature_levels, cross_attention="dense")
    shapes = []
    attention = network.query_decoder.layers[0].cross_attention
    attention.register_forward_hook(lambda module, args, output: shapes.extend(args[3]))
    network([*feature_maps(1)])
    assert isinstance(attention, DenseAttention)
    assert shapes[: attention.num_levels] == [(2, 1), (3, 2), (6, 4)][-num_coarse:]


def test_checkpointed_layers_get_the_extents_and_equal_gradients():
    network = build_network(**SIA).train()
    extents = torch.tensor([[1.0, 0.75], [0.5, 1.0]])

    def gradients():
        network.zero_grad()
        output = network(feature_maps(), image_extents=extents)
        (output.boxes.sum() + output.semantic.square().sum()).backward()
        return output, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}

    expected, expected_gradients = gradients()
    whole = network(feature_maps())
    assert not torch.allclose(whole.semantic, expected.semantic, atol=1e-3)
    for layer in network.query_decoder.layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    output, actual_gradients = gradients()
    assert torch.equal(output.semantic, expected.semantic)
    torch.testing.assert_close(actual_gradients, expected_gradients)


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@torch.no_grad()
def test_neither_padding_nor_other_images_change_an_encoding(options):
    encoder = build_model(**options).image_encoder
    images = [random_images(1, 40, 72)[0], random_images(1, 128, 96, seed=1)[0]]
    together = encoder(**pad_images(images, 128, 128, fill=9.0))
    alone = encoder(images[0][None])
    torch.testing.assert_close(together.boxes[:1], alone.boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.semantic[:1], alone.semantic, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_padded_training_batch_attends_to_no_padding():
    encoder = build_model(**SIA).image_encoder
    calls = []
    for layer in encoder.proposal_network.query_decoder.layers:
        layer.cross_attention.register_forward_hook(lambda module, args, output: calls.append((module, args)))
    sizes = torch.tensor([[40, 72], [128, 128]])
    encoder.forward_training(random_images(2, 128, 128), sizes, None)
    assert len(calls) == 2
    for attention, (queries, _, memory, shapes, extents) in calls:
        assert torch.equal(extents, sizes / 128)
        for weights, shape in zip(attention.attention_weights(queries, memory, shapes, extents), shapes):
            padded = ~real_cells(sizes / 128, shape).flatten(1)
            assert padded[0].any()
            assert not padded[1].any()
            assert (weights[0][..., padded[0]] == 0).all()


STARTING_AT_ZERO = [({"query_position": "static"}, {"query_position": "guided"}), ({"cross_attention": "dense"}, SIA)]


@pytest.mark.parametrize(("options", "more"), STARTING_AT_ZERO, ids=["guided", "sia"])
@torch.no_grad()
def test_what_starts_at_zero_changes_no_output(options, more):
    plain, extended = build_network(**options), build_network(**more)
    scatter_weights(plain)
    missing, _ = extended.load_state_dict(plain.state_dict(), strict=False)
    assert missing
    expected, actual = plain(feature_maps()), extended(feature_maps())
    for field in ("semantic", "boxes", "class_logits", "mask_embeddings"):
        assert torch.equal(getattr(actual, field), getattr(expected, field)), field


@pytest.mark.parametrize(("options", "more"), STARTING_AT_ZERO, ids=["guided", "sia"])
def test_a_checkpoint_without_the_option_can_be_loaded_with_it(options, more, tmp_path):
    model = build_model(**options)
    model.save_pretrained(tmp_path)
    config = tiny_config(proposal_config=more)
    extended, info = UniPerceiverV2Model.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["missing_keys"]
    assert not info["unexpected_keys"]
    state = extended.state_dict()
    for key in info["missing_keys"]:
        assert ".update." in key or key.endswith("similar_attention.weights")
        assert bool(state[key].any()) == key.endswith("update.0.weight")
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("options", OPTIONS, ids=NAMES)
@torch.no_grad()
def test_save_and_load(options, tmp_path):
    model = build_model(**options)
    model.save_pretrained(tmp_path)
    loaded, info = UniPerceiverV2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in (DEFAULTS | options).items():
        assert getattr(loaded.config.proposal_config, name) == value
    images = random_images(1)
    tokens, expected = (each.eval().image_encoder(images).tokens for each in (loaded, model))
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_with_deformable_attention_starts_dense_attention_anew(tmp_path):
    build_model().save_pretrained(tmp_path)
    config = tiny_config(proposal_config={"decoder_layers": 2} | SIA)
    model, info = UniPerceiverV2Model.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert all(".cross_attention." in key for key in info["missing_keys"] | info["unexpected_keys"])
    attention = model.image_encoder.proposal_network.query_decoder.layers[0].cross_attention
    assert not attention.key_proj.bias.any()
    bound = (6 / 64) ** 0.5  # Xavier-uniform of 32 to 32
    assert 0.9 * bound < attention.key_proj.weight.abs().max() <= bound
    assert attention.level_embedding.std().item() == pytest.approx(1, abs=0.3)
    assert not attention.similar_attention.weights.any()


@torch.no_grad()
def test_a_network_as_a_part_brings_its_options():
    options = {"query_position": "guided"} | SIA
    source = build_model(**options)
    network = source.image_encoder.proposal_network
    model = UniPerceiverV2Model.from_pretrained_parts(proposal_network=network, config=tiny_config())
    for name, value in options.items():
        assert getattr(model.config.proposal_config, name) == value
    own = model.image_encoder.proposal_network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_dense_attention_is_counted():
    counts = []
    for size in ((64, 64), (128, 128)):
        parts = summarize_model(tiny_config(proposal_config=SIA), size).parts
        counts.append({part.name: part for part in parts}["query_decoder"].image_multiply_adds)
    # per layer: keys and values of each cell, and 10 queries that read both
    grown = 2 * (84 - 21) * (2 * 32 * 32 + 2 * 10 * 32)
    selection = (340 - 85) * (32 * 32 + 32)  # the projection and the class of each cell of all maps
    masks = (32 * 32 - 16 * 16) * 10 * 32  # for the first boxes
    assert counts[1] - counts[0] == grown + selection + masks


def test_a_config_from_before_the_options_means_mask_dino():
    fields = json.loads((SHIPPED / "config.json").read_text())
    assert not DEFAULTS.keys() & fields["proposal_config"].keys()
    config = UniPerceiverV2Config.from_pretrained(SHIPPED)
    assert {name: getattr(config.proposal_config, name) for name in DEFAULTS} == DEFAULTS


@torch.no_grad()
def test_the_shipped_checkpoint_is_as_with_explicit_defaults():
    config = UniPerceiverV2Config.from_pretrained(SHIPPED)
    for name, value in DEFAULTS.items():
        setattr(config.proposal_config, name, value)
    plain, info = UniPerceiverV2ForMultiTask.from_pretrained(SHIPPED, output_loading_info=True)
    explicit = UniPerceiverV2ForMultiTask.from_pretrained(SHIPPED, config=config)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with safe_open(SHIPPED / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(plain.state_dict())
    for layer in plain.model.image_encoder.proposal_network.query_decoder.layers:
        assert isinstance(layer.cross_attention, DeformableCrossAttention)
    images = random_images(1, 96, 128)
    encodings = [model.eval().model.image_encoder(images) for model in (plain, explicit)]
    assert torch.equal(encodings[0].tokens, encodings[1].tokens)
    assert torch.equal(encodings[0].boxes, encodings[1].boxes)


def test_unknown_values_list_the_choices():
    with pytest.raises(StrictDataclassFieldValidationError, match=r"'anchor', 'guided', 'static'\), got guide"):
        UniPerceiverV2ProposalConfig(query_position="guide")
    with pytest.raises(StrictDataclassFieldValidationError, match=r"'deformable', 'dense'\), got masked"):
        UniPerceiverV2ProposalConfig(cross_attention="masked")
    with pytest.raises(ValueError, match="must be 'deformable' or 'dense', got 'masked'"):
        ProposalSettings(cross_attention="masked")
    with pytest.raises(ValueError, match="`query_position` must be one of"):
        build_network(query_position="guide")


def test_sia_needs_attention_maps():
    message = "which only `cross_attention='dense'` has, got 'deformable'. Use dense cross-attention, or leave SiA off"
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(proposal_config={"similar_attention": True})
    with pytest.raises(ValueError, match=message):
        ProposalSettings(similar_attention=True)
