"""Hidden states and attention weights: those of the input and never of candidates, through every class."""

import pytest
import torch
from torch import nn

from tiny_models import CLASS_NAMES, random_images
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForZeroShotObjectDetection,
)

IMAGE_TOKENS = 1 + 2 + 4 + 6  # [SPE], pooled tokens, grid, proposals
LAYERS = 2
FLAGS = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture
def eager(model):
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def words(roberta_tokenizer) -> dict[str, torch.Tensor]:
    return dict(roberta_tokenizer(CLASS_NAMES[:2], padding=True, return_tensors="pt"))


IMAGES = {"pixel_values": random_images(2)}
CASES = {
    UniPerceiverV2ForImageClassification: (True, False),
    UniPerceiverV2ForObjectDetection: (True, False),
    UniPerceiverV2ForZeroShotObjectDetection: (True, True),
    UniPerceiverV2ForImageTextRetrieval: (True, True),
    UniPerceiverV2ForConditionalGeneration: (True, True),
    UniPerceiverV2ForMaskedLM: (False, True),
}


@pytest.mark.parametrize("model_class", CASES, ids=lambda each: each.__name__)
def test_states_are_those_of_the_input(eager, words, model_class):
    view = model_class.from_model(eager)
    has_image, has_text = CASES[model_class]
    inputs = (IMAGES if has_image else {}) | (words if has_text else {})
    length = words["input_ids"].shape[1]
    tokens = {
        UniPerceiverV2ForConditionalGeneration: IMAGE_TOKENS + length + 1,
        UniPerceiverV2ForMaskedLM: 1 + length,
    }.get(model_class, IMAGE_TOKENS)
    with torch.no_grad():
        plain = view(**inputs)
        for _ in range(2):  # candidates are encoded in the first call and kept in the second
            output = view(**inputs, **FLAGS)
            assert len(output.hidden_states) == LAYERS + 1
            assert len(output.attentions) == LAYERS
            assert output.hidden_states[0].shape == (2, tokens, 32)
            assert output.attentions[0].shape == (2, 4, tokens, tokens)
            for weights in output.attentions:
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
            eager.model.candidate_cache.clear()
    assert plain.hidden_states is None
    assert plain.attentions is None
    key = "logits" if plain.logits is not None else "logits_per_image"
    torch.testing.assert_close(output[key], plain[key])
    torch.testing.assert_close(output.hidden_states[0][:, 0], eager.model.spe_token.expand(2, -1))


def test_the_last_state_becomes_the_embeddings(eager):
    with torch.no_grad():
        output = eager.model(**IMAGES, **FLAGS)
        expected = eager.model.likelihood.embed(output.hidden_states[-1])
    torch.testing.assert_close(output.last_hidden_state, expected)


def test_an_encoding_that_remembers_its_embeddings_gives_states_too(eager):
    view = UniPerceiverV2ForImageClassification.from_model(eager)
    with torch.no_grad():
        encoding = view.encode_image(**IMAGES)
        view(image_encoding=encoding)
        assert encoding.decoded
        output = view(image_encoding=encoding, output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1


def test_chosen_states_alone_are_kept(eager):
    with torch.no_grad():
        every = eager.model(**IMAGES, output_hidden_states=True).hidden_states
        chosen = eager.model(**IMAGES, output_hidden_states=[1]).hidden_states
    assert [state is None for state in chosen] == [True, False, True]
    torch.testing.assert_close(chosen[1], every[1])


def test_the_config_asks_as_the_arguments_do(eager):
    view = UniPerceiverV2ForMaskedLM.from_model(eager)
    view.config.output_hidden_states = True
    with torch.no_grad():
        output = view(torch.tensor([[0, 7, 8, 2]]))
        assert len(output.hidden_states) == LAYERS + 1
        assert view(torch.tensor([[0, 7, 8, 2]]), output_hidden_states=False).hidden_states is None


def test_a_tuple_has_the_loss_first_and_the_encoding_behind_the_answers(eager):
    view = UniPerceiverV2ForImageTextRetrieval.from_model(eager)
    texts = {"input_ids": torch.tensor([[0, 7, 2], [0, 8, 2]])}
    with torch.no_grad():
        output = view(**IMAGES, **texts)
        as_tuple = view(**IMAGES, **texts, return_dict=False)
    assert list(output) == [
        "loss",
        "loss_terms",
        "logits_per_image",
        "logits_per_text",
        "image_embeds",
        "text_embeds",
        "image_encoding",
    ]
    assert isinstance(as_tuple, tuple)
    for value, entry in zip(as_tuple, output.values(), strict=True):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, entry)


def test_the_trainers_class_takes_the_flags(eager, batches):
    with torch.no_grad():
        output = eager("classification", **batches["classification"], output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    eager.train()
    output = eager("classification", **batches["classification"], output_hidden_states=True, step_seed=1)
    assert set(output) == {"loss", "loss_terms", "hidden_states"}


def test_generate_returns_the_states_of_every_step(eager):
    captioner = UniPerceiverV2ForConditionalGeneration.from_model(eager)
    output = captioner.generate(**IMAGES, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, **FLAGS)
    assert [len(states) for states in output.hidden_states] == [LAYERS + 1] * 3
    # the image, <s> and a slot; then each time a word and a slot
    assert [states[0].shape[1] for states in output.hidden_states] == [IMAGE_TOKENS + 2, 2, 2]
    assert [weights[0].shape[-1] for weights in output.attentions] == [IMAGE_TOKENS + length for length in (2, 3, 4)]


def test_gradient_reaches_states_and_weights(eager):
    output = eager.model(**IMAGES, **FLAGS)
    kept = [output.hidden_states[0], output.attentions[0]]
    for tensor in kept:
        tensor.retain_grad()
    nn.functional.cosine_similarity(*output.pooler_output, dim=0).backward()
    for tensor in kept:
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
