"""Candidates: padded ids, averaged variants, label sets, and a cache that notices new weights."""

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transformers_upv2.model import candidates
from transformers_upv2.model.candidates import (
    CandidateCache,
    average_variants,
    build_label_set,
    freeze_ids,
    label_texts,
    pad_ids,
    weights_digest,
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


def test_fingerprint_notices_writes_that_pytorch_does_not_count():
    module = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Conv2d(2, 2, 2), nn.LayerNorm(3).to(torch.bfloat16)))
    module[1][0].to(memory_format=torch.channels_last)
    module.empty = nn.Parameter(torch.zeros(0))
    module.broken = nn.Parameter(torch.tensor(torch.nan))
    module.elsewhere = nn.Parameter(torch.zeros(2, device="meta"))
    seen = {weights_fingerprint(module), weights_fingerprint(module)}
    assert len(seen) == 1
    changed = [p for p in module.parameters() if p.numel() and not p.is_meta]
    for parameter in changed:
        version = parameter._version
        parameter.data.fill_(0.25)
        assert parameter._version == version
        seen.add(weights_fingerprint(module))
    assert len(seen) == 1 + len(changed) == 8


def test_candidates_are_fresh_after_writes_that_pytorch_does_not_count(model, roberta_tokenizer):
    before = model.encode_labels(["hat"], roberta_tokenizer)
    for parameter in model.model.text_encoder.parameters():
        parameter.data.mul_(1.5)
    after = model.encode_labels(["hat"], roberta_tokenizer)
    model.model.candidate_cache.clear()
    assert torch.equal(after, model.encode_labels(["hat"], roberta_tokenizer))
    assert (after - before).abs().max() > 1e-3


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


def test_digest_is_of_the_values_the_names_and_the_types():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    digest = weights_digest(module)
    assert weights_digest(copy.deepcopy(module)) == digest
    assert weights_digest(copy.deepcopy(module).to(torch.bfloat16)) != digest
    assert weights_digest(nn.ModuleDict({"0": module[0], "b": module[1]})) != digest
    changed = copy.deepcopy(module)
    changed[1].running_mean += 1
    assert weights_digest(changed) != digest


def test_digest_is_the_same_in_another_process():
    code = (
        "import torch; from transformers_upv2.model.candidates import weights_digest\n"
        "linear = torch.nn.Linear(2, 2); torch.nn.init.ones_(linear.weight); torch.nn.init.zeros_(linear.bias)\n"
        "print(weights_digest(linear))"
    )
    linear = nn.Linear(2, 2)
    nn.init.ones_(linear.weight)
    nn.init.zeros_(linear.bias)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == weights_digest(linear)


def encoder(module, asked):
    """Encodes label i as the unit vector i; notes what it was asked."""

    def encode(positions):
        asked.append((positions, torch.is_grad_enabled()))
        return module.weight[positions]

    return encode


def test_each_label_is_kept_on_its_own():
    module, cache, asked = nn.Linear(4, 4), CandidateCache(), []
    torch.nn.init.eye_(module.weight)
    keys = ["a", "b", "c", "a"]
    found = cache.get_labels(module, keys, encoder(module, asked))
    assert torch.equal(found, torch.eye(4)[[3, 1, 2, 3]])  # the two that are equal are encoded once
    assert torch.equal(cache.get_labels(module, ["c", "a"], encoder(module, asked)), found[[2, 0]])
    assert torch.equal(cache.get_labels(module, ["d", "b"], encoder(module, asked))[1], found[1])
    assert asked == [([3, 1, 2], False), ([0], False)]
    with torch.no_grad():
        module.weight.neg_()
    assert torch.equal(cache.get_labels(module, ["b"], encoder(module, asked)), -torch.eye(4)[:1])


def test_labels_kept_under_inference_mode_can_be_used_with_gradient():
    module, cache = nn.Linear(4, 4), CandidateCache()
    with torch.inference_mode():
        found = cache.get_labels(module, ["a"], encoder(module, []))
        assert cache.get(module, "words", lambda: module.weight * 2) is not None
    (module.weight @ cache.get_labels(module, ["a"], encoder(module, [])).T).sum().backward()
    (module.weight * cache.get(module, "words", pytest.fail)).sum().backward()
    assert found.is_inference()
    assert module.weight.grad is not None


def test_the_oldest_labels_make_room(monkeypatch):
    monkeypatch.setattr(candidates, "MAX_KEPT_LABELS", 2)
    module, cache, asked = nn.Linear(4, 4), CandidateCache(), []
    assert len(cache.get_labels(module, ["a", "b", "c"], encoder(module, asked))) == 3
    cache.get_labels(module, ["b", "c"], encoder(module, asked))
    cache.get_labels(module, ["a"], encoder(module, asked))
    assert [positions for positions, _ in asked] == [[0, 1, 2], [0]]


def test_saved_candidates_are_read_back_and_refused_by_other_weights(tmp_path):
    module, cache = nn.Linear(4, 4), CandidateCache()
    path = tmp_path / "candidates.safetensors"
    keys = [freeze_ids([[0, 7, 2], [0, 8, 2]]), freeze_ids([[0, 9, 2]])]
    labels = cache.get_labels(module, keys, encoder(module, []))
    words = cache.get(module, "vocabulary", lambda: module.weight * 2)
    cache.save(module, path)
    loaded = CandidateCache()
    loaded.load(copy.deepcopy(module), path)  # the same values at another place
    same = copy.deepcopy(module)
    loaded.load(same, path)
    assert torch.equal(loaded.get_labels(same, keys, pytest.fail), labels)
    assert torch.equal(loaded.get(same, "vocabulary", pytest.fail), words)
    with torch.no_grad():
        same.bias[0] += 1
    with pytest.raises(ValueError, match=r"candidates.safetensors' must come from the present weights"):
        loaded.load(same, path)
    save_file({"labels": labels}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"written by `save_candidates`, got '.*other.safetensors'"):
        loaded.load(module, tmp_path / "other.safetensors")


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


@pytest.mark.parametrize("labels", [[], ["a", " "], ["a"] * 1000 + [""]])
def test_unusable_labels_are_an_error(roberta_tokenizer, labels):
    with pytest.raises(ValueError, match="`labels` must hold at least one label and no empty one, got ") as caught:
        build_label_set(labels, roberta_tokenizer)
    assert len(str(caught.value)) < 200


def test_a_name_may_stand_for_several_classes(roberta_tokenizer, caplog):
    """As "crane" does in lists of ImageNet's classes."""
    names = [f"class {n % 700}" for n in range(1000)]
    labels = build_label_set(names, roberta_tokenizer)
    assert labels["names"] == names
    assert len(labels["token_ids"]) == 1000
    assert labels["token_ids"][0] == labels["token_ids"][700] != labels["token_ids"][1]
    assert "Some names in `labels` stand for several classes: ['class 0', 'class 1'" in caplog.text
    assert "'class 4'] and 295 more" in caplog.text
    assert len(caplog.text) < 600


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("star", r"`labels` must be a list of names, .* got the text 'star'. Pass `\['star'\]`"),
        ([1, "star"], "Each name in `labels` must be a text, got 1"),
        ({"star": [["star"]]}, r"Each name in `labels` must be a text, got \['star'\]"),
        ({1: ["star"]}, "Each name in `labels` must be a text, got 1"),
    ],
    ids=["text", "number", "nested", "key"],
)
def test_what_is_no_list_of_names_is_an_error(model, roberta_tokenizer, labels, message):
    for use in (
        lambda: label_texts(labels),
        lambda: build_label_set(labels, roberta_tokenizer),
        lambda: model.set_labels(labels, roberta_tokenizer, label_set="detection"),
        lambda: model.encode_labels(labels, roberta_tokenizer),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_a_single_text_is_one_synonym(roberta_tokenizer):
    assert label_texts({"hat": "cap", "star": ["sun", "star"]}) == [["cap"], ["sun", "star"]]
    labels = build_label_set({"hat": "cap"}, roberta_tokenizer)
    assert labels == {"names": ["hat"], "token_ids": [roberta_tokenizer(["cap"])["input_ids"]]}


def test_templates_that_are_one_text_are_an_error():
    with pytest.raises(ValueError, match=r"`templates` must be a list of sentences, got the text 'a \{\}'"):
        label_texts(["hat"], "a {}")


def test_template_without_a_place_for_the_name_is_an_error(roberta_tokenizer):
    with pytest.raises(ValueError, match=r"Each of `templates` must contain '\{\}' once, got 'a photo'"):
        build_label_set(["hat"], roberta_tokenizer, templates=["{}", "a photo"])


@pytest.mark.parametrize("labels", [[], {}, ["a", ""], {"hat": []}, {"hat": ["cap", " "]}])
def test_labels_without_a_text_are_an_error(labels):
    with pytest.raises(ValueError, match="`labels` must hold at least one label and no empty one, got "):
        label_texts(labels)


def test_a_label_may_hold_braces():
    assert label_texts(["{x}", "a {} b"], ["the {}"]) == [["the {x}"], ["the a {} b"]]


def test_frozen_ids_are_hashable_and_keep_the_grouping():
    assert hash(freeze_ids([[0, 2], [1]])) is not None
    assert freeze_ids([[0], [1]]) != freeze_ids([[0, 1]])
