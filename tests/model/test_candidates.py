"""Candidates: padded ids, averaged variants, label sets, and a cache that notices new weights."""

import pytest
import torch
from torch import nn

from transformers_upv2.model.candidates import (
    CandidateCache,
    average_variants,
    build_label_set,
    freeze_ids,
    pad_ids,
    weights_fingerprint,
)


def test_fingerprint_notices_every_kind_of_change():
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    seen = [weights_fingerprint(module)]
    module(torch.randn(2, 3)).sum().backward()
    assert weights_fingerprint(module) == seen[0]  # a forward and a backward pass change nothing
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    seen.append(weights_fingerprint(module))
    with torch.no_grad():
        module[1].bias.add_(1)
    seen.append(weights_fingerprint(module))
    module.load_state_dict(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)).state_dict())
    seen.append(weights_fingerprint(module))
    module.to(torch.bfloat16)
    seen.append(weights_fingerprint(module))
    assert len(set(seen)) == 5


def test_cache_encodes_once_per_key_and_forgets_with_the_weights():
    module, cache, calls = nn.Linear(2, 2), CandidateCache(), []

    def encode():
        calls.append(torch.is_grad_enabled())
        return module.weight * 2

    first = cache.get(module, "a", encode)
    assert cache.get(module, "a", encode) is first
    cache.get(module, "b", encode)
    assert calls == [False, False]
    assert not first.requires_grad
    with torch.no_grad():
        module.weight.mul_(2)
    assert torch.equal(cache.get(module, "a", encode), first * 2)
    cache.clear()
    cache.get(module, "a", encode)
    assert len(calls) == 4


def test_pad_ids_pads_on_the_right():
    ids, mask = pad_ids([[0, 7, 2], [0, 2], [0, 8, 9, 2]], 1, torch.device("cpu"))
    assert ids.tolist() == [[0, 7, 2, 1], [0, 2, 1, 1], [0, 8, 9, 2]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_variants_are_averaged_and_normalized_again():
    embeddings = nn.functional.normalize(torch.randn(6, 4), dim=1)
    averaged = average_variants(embeddings, [1, 3, 2])
    expected = torch.stack([embeddings[0], embeddings[1:4].mean(0), embeddings[4:].mean(0)])
    torch.testing.assert_close(averaged, nn.functional.normalize(expected, dim=1))
    assert average_variants(embeddings, [1] * 6) is embeddings


def test_label_set_of_names_is_tokenized_bare(roberta_tokenizer):
    labels = build_label_set(["hat", "red circle"], roberta_tokenizer)
    assert labels["names"] == ["hat", "red circle"]
    assert labels["token_ids"] == [
        [roberta_tokenizer("hat")["input_ids"]],
        [roberta_tokenizer("red circle").input_ids],
    ]


def test_label_set_of_synonyms_and_templates(roberta_tokenizer):
    labels = build_label_set(
        {"hat": ["hat", "cap"], "star": ["star"]}, roberta_tokenizer, templates=["{}", "a photo of a {}"]
    )
    texts = [["hat", "a photo of a hat", "cap", "a photo of a cap"], ["star", "a photo of a star"]]
    assert labels["token_ids"] == [[roberta_tokenizer(text)["input_ids"] for text in row] for row in texts]


@pytest.mark.parametrize("labels", [[], ["a", "a"], ["a", " "]])
def test_unusable_labels_are_an_error(roberta_tokenizer, labels):
    with pytest.raises(ValueError, match="`labels` must be different non-empty names, got "):
        build_label_set(labels, roberta_tokenizer)


def test_template_without_a_place_for_the_name_is_an_error(roberta_tokenizer):
    with pytest.raises(ValueError, match=r"Each of `templates` must contain '\{\}', got 'a photo'"):
        build_label_set(["hat"], roberta_tokenizer, templates=["{}", "a photo"])


def test_frozen_ids_are_hashable_and_keep_the_grouping():
    assert hash(freeze_ids([[[0, 2], [1]]])) is not None
    assert freeze_ids([[[0], [1]]]) != freeze_ids([[[0]], [[1]]])
