"""The unified decoder: gate noise by (step, layer, route), equal gradients when checkpointed, drop path."""

import copy

import pytest
import torch

from tiny_models import tiny_config
from transformers_upv2.model import unified_decoder
from transformers_upv2.model.attention import additive_mask
from transformers_upv2.model.conditional_moe import TokenGroup
from transformers_upv2.model.unified_decoder import UnifiedDecoder, drop_path


@pytest.fixture
def decoder(model) -> UnifiedDecoder:
    return model.model.decoder


@pytest.fixture
def drawn(decoder, monkeypatch) -> list[tuple[int, str, float]]:
    """First number of the noise that every (layer, route) draws."""
    log = []
    for index, layer in enumerate(decoder.layers):
        gate, forward = layer.feed_forward.gate, layer.feed_forward.gate.forward

        def spy(route, generator=None, index=index, forward=forward):
            if generator is not None:
                state = generator.get_state()
                log.append((index, route, torch.randn(1, generator=generator).item()))
                generator.set_state(state)
            return forward(route, generator)

        monkeypatch.setattr(gate, "forward", spy)
    return log


GROUPS = [TokenGroup("caption_image", 3), TokenGroup("caption_text", 4)]


def test_gate_noise_is_a_function_of_step_layer_and_route(decoder, drawn):
    states = torch.randn(2, 7, 32)
    decoder.train()
    first = decoder(states, None, GROUPS, step_seed=7)
    torch.manual_seed(99)  # other global state, as on another rank
    again = decoder(states, None, GROUPS, step_seed=7)
    assert torch.equal(first, again)
    assert drawn[:4] == drawn[4:]
    assert len({noise for _, _, noise in drawn[:4]}) == 4  # two layers, two routes
    decoder(states, None, GROUPS, step_seed=8)
    assert not {noise for _, _, noise in drawn[8:]} & {noise for _, _, noise in drawn[:4]}


def test_no_noise_without_training(decoder, drawn):
    states = torch.randn(2, 7, 32)
    assert torch.equal(decoder(states, None, GROUPS, step_seed=7), decoder(states, None, GROUPS))
    assert not drawn


@pytest.mark.parametrize("task", ["detection", "captioning", "language_modeling"])
def test_gradient_checkpointing_gives_equal_gradients(model, batches, task):
    for layer in model.model.decoder.layers:
        layer.drop_path = 0.3  # the recomputed pass must drop the same samples
    checkpointed = copy.deepcopy(model)
    # the second name is that of transformers before 5.23
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(checkpointed, name) for name in names if hasattr(checkpointed, name))()
    gradients, recomputed, recomputed_text = [], [], []
    checkpointed.model.decoder.layers[0].attention.register_forward_hook(lambda *_: recomputed.append(1))
    text_layer = checkpointed.model.text_encoder.encoder.encoder.layer[0]
    text_layer.intermediate.register_forward_hook(lambda *_: recomputed_text.append(1))
    for each in (model.train(), checkpointed.train()):
        torch.manual_seed(0)
        each(task, **batches[task], step_seed=3).loss.backward()
        gradients.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    for calls in (len(recomputed), len(recomputed_text)):
        assert calls >= 2
        assert calls % 2 == 0  # each pass ran twice
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_drop_path_keeps_the_expectation_and_whole_samples():
    states = torch.ones(4000, 2, 3)
    dropped = drop_path(states, 0.25, training=True)
    values = dropped.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75]))
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2)))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drop_path(states, 0.25, training=False) is states


def test_seeds_of_neighbouring_steps_differ():
    seeds = {
        unified_decoder._gate_seed(step, layer, route)
        for step in range(100)
        for layer in range(6)
        for route in ("image", "text")
    }
    assert len(seeds) == 1200


def test_layers_take_the_places_of_a_shared_cache_behind_the_text_encoder():
    decoder = UnifiedDecoder(tiny_config().decoder_config, first_cache_index=5)
    assert [layer.attention.cache_index for layer in decoder.layers] == [5, 6]


@pytest.mark.parametrize("groups", [GROUPS, [TokenGroup("image", 7)]])
@pytest.mark.parametrize("read", [slice(1), slice(2, 5), slice(4, None), slice(3, 4)])
def test_outputs_that_nobody_reads_are_not_computed(decoder, groups, read):
    """The others are those of the whole sequence, whichever groups they belong to."""
    states = torch.randn(2, 7, 32)
    mask = additive_mask(torch.rand(2, 7, 7) > 0.3, torch.float32)
    whole = decoder(states, mask, groups)
    lengths = []
    decoder.layers[-1].feed_forward.register_forward_hook(lambda _, args, output: lengths.append(output.shape[1]))
    part = decoder(states, mask, groups, read=read)
    torch.testing.assert_close(part, whole[:, read], atol=1e-5, rtol=1e-5)
    assert lengths == [part.shape[1]] == [len(range(7)[read])]
