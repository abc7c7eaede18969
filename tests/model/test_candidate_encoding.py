"""Labels are encoded once, whoever asks; saved candidates spare a fresh process the work."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tiny_models import CLASS_NAMES, random_images
from transformers_upv2.model.candidates import CANDIDATES_NAME
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
)


@pytest.fixture
def encoded(model):
    """How many texts each call of the text encoder read."""
    counts = []
    hook = model.model.text_encoder.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    yield counts
    hook.remove()


@pytest.mark.parametrize(
    "task_class", [UniPerceiverV2ForZeroShotImageClassification, UniPerceiverV2ForZeroShotObjectDetection]
)
def test_tokenized_labels_are_encoded_once(model, encoded, roberta_tokenizer, task_class):
    view = task_class.from_model(model)
    pixels = random_images(1)
    with torch.no_grad():
        for names in (["hat", "red circle"], ["red circle", "hat"], ["a much longer name of a hat", "hat"]):
            words = roberta_tokenizer(names, padding=True, return_tensors="pt")
            output = view(pixels, **words)
            candidates = view.encode_labels(names, roberta_tokenizer)
            expected = view(image_encoding=output.image_encoding, candidates=candidates)
            for key in ("logits", "logits_per_image"):
                if output.get(key) is not None:
                    assert torch.equal(output[key], expected[key])
    assert encoded == [2, 1]  # padding and the order do not matter, and the third call brings one new name


def test_labels_have_a_gradient_when_there_is_any(model, encoded, roberta_tokenizer):
    view = UniPerceiverV2ForZeroShotImageClassification.from_model(model)
    words = roberta_tokenizer(["hat"], return_tensors="pt")
    for _ in range(2):
        view(random_images(1), **words).logits_per_image.sum().backward()
    assert encoded == [1, 1]
    assert model.model.text_encoder.encoder.get_input_embeddings().weight.grad.abs().sum() > 0


def test_encode_labels_averages_synonyms_in_templates(model, roberta_tokenizer):
    labels, templates = {"hat": ["hat", "cap"], "star": ["star"]}, ["a {}", "the {}"]
    with torch.no_grad():
        found = model.encode_labels(labels, roberta_tokenizer, templates)
        rows = [["a hat", "the hat", "a cap", "the cap"], ["a star", "the star"]]
        expected = [F.normalize(model.encode_labels(row, roberta_tokenizer).mean(0), dim=0) for row in rows]
    torch.testing.assert_close(found, torch.stack(expected))


def test_either_texts_or_candidates(model, roberta_tokenizer):
    view = UniPerceiverV2ForZeroShotObjectDetection.from_model(model)
    words = roberta_tokenizer(["hat"], return_tensors="pt")
    with pytest.raises(ValueError, match="Pass either `input_ids` or `candidates`, got both"):
        view(random_images(1), **words, candidates=torch.zeros(1, 32))


def test_saved_candidates_answer_without_encoding(model, encoded, roberta_tokenizer, tmp_path):
    model.encode_labels(["hat", "never heard of"], roberta_tokenizer)
    model.model.save_candidates(tmp_path)
    fresh = copy.deepcopy(model)
    fresh.model.candidate_cache.clear()
    fresh.model.text_encoder.register_forward_pre_hook(lambda *_: pytest.fail("a text was encoded"))
    fresh.model.load_candidates(tmp_path)
    with torch.no_grad():
        classified = UniPerceiverV2ForImageClassification.from_model(fresh)(random_images(1)).logits
        assert len(fresh.encode_labels(["never heard of", *CLASS_NAMES], roberta_tokenizer)) == 5
        assert torch.equal(fresh.model.vocabulary_candidates(), model.model.vocabulary_candidates())
        assert torch.equal(classified, UniPerceiverV2ForImageClassification.from_model(model)(random_images(1)).logits)
    assert (tmp_path / CANDIDATES_NAME).is_file()
    assert not any("candidate" in name for name in model.state_dict())


def test_saved_candidates_of_other_weights_are_refused(model, tmp_path):
    model.model.save_candidates(tmp_path)
    with torch.no_grad():
        model.model.spe_token += 0.1
    with pytest.raises(ValueError, match="must come from the present weights"):
        model.model.load_candidates(tmp_path)
    model.train()
    with pytest.raises(ValueError, match="must be in evaluation mode to save candidates"):
        model.model.save_candidates(tmp_path)
