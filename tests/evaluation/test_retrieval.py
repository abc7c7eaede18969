import subprocess
import sys

import numpy as np
import pytest
import torch
from heart_models import HeartModel, ListDataset, gray_image, image_numbers
from torch import nn
from transformers.utils import ModelOutput

from transformers_upv2.evaluation.retrieval import (
    PROTOCOLS,
    RetrievalEvaluator,
    RetrievalPredictions,
    rank_matches,
    select_images,
)


def random_predictions(num_images=40, num_captions=5, noise=1.5):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 8, generator=generator)
    counts = torch.randint(1, num_captions + 1, (num_images,), generator=generator)
    image_of_text = torch.arange(num_images).repeat_interleave(counts)
    texts = images[image_of_text]
    texts = texts + noise * torch.randn(texts.shape, generator=generator)
    normalize = nn.functional.normalize
    return RetrievalPredictions(normalize(images), normalize(texts), image_of_text)


def test_recalls_equal_brute_force():
    predictions = random_predictions()
    similarity = (predictions.image_features @ predictions.text_features.T).numpy()
    owner = predictions.image_of_text.numpy()
    metrics = RetrievalEvaluator(None, block_size=7).score(predictions)
    for k in (1, 5, 10):
        found = [owner[t] in np.argsort(-similarity[:, t])[:k] for t in range(len(owner))]
        assert metrics[f"text_to_image_r{k}"] == pytest.approx(np.mean(found))
        found = [i in owner[np.argsort(-similarity[i])[:k]] for i in range(len(similarity))]
        assert metrics[f"image_to_text_r{k}"] == pytest.approx(np.mean(found))
    assert len(set(metrics.values())) > 4


def test_block_size_changes_nothing():
    predictions = random_predictions()
    whole = RetrievalEvaluator(None, block_size=1000).score(predictions)
    assert whole == RetrievalEvaluator(None, block_size=3).score(predictions)


def test_equal_features_find_nothing():
    same = torch.ones(20, 4)
    ids = torch.arange(20)
    assert rank_matches(same, same, ids, ids, 8).tolist() == [19] * 20


@pytest.mark.parametrize("broken", ["image_features", "text_features"])
def test_features_that_are_not_numbers_find_nothing(broken):
    predictions = random_predictions(num_images=8, noise=0.0)
    assert set(RetrievalEvaluator(None).score(predictions).values()) == {1.0}
    getattr(predictions, broken).fill_(torch.nan)
    assert set(RetrievalEvaluator(None).score(predictions).values()) == {0.0}


def test_one_feature_that_is_not_a_number_harms_its_own_alone():
    predictions = random_predictions(noise=0.0)
    predictions.image_features[3] = torch.nan
    metrics = RetrievalEvaluator(None, ranks=(1,)).score(predictions)
    assert metrics["image_to_text_r1"] == pytest.approx(39 / 40)
    own = (predictions.image_of_text == 3).float().mean().item()
    assert metrics["text_to_image_r1"] == pytest.approx(1 - own)


class Retriever(HeartModel):
    """Features of an image and of its captions are one direction, unless told otherwise."""

    def __init__(self, tokenizer, number_of_text):
        super().__init__(answer=None)
        self.tokenizer, self.number_of_text = tokenizer, number_of_text

    def get_image_features(self, pixel_values, pixel_mask):
        return ModelOutput(pooler_output=torch.eye(8)[image_numbers(pixel_values)])

    def get_text_features(self, input_ids, attention_mask):
        assert torch.equal(attention_mask, (input_ids != self.tokenizer.pad_token_id).long())
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        numbers = [self.number_of_text[text.strip()] for text in texts]
        return ModelOutput(pooler_output=torch.eye(8)[numbers])


CAPTIONS = [["a red star", "star"], ["a circle"], ["big blue square", "square", "the square"]]


def evaluate(processor, numbers, **options):
    dataset = ListDataset(
        {"image": gray_image(i), "image_id": i, "captions": texts} for i, texts in enumerate(CAPTIONS)
    )
    model = Retriever(processor.tokenizer, numbers)
    evaluator = RetrievalEvaluator(None, **options)
    return evaluator(model, processor, dataset, batch_size=2, progress=False)


def test_images_and_captions_are_paired_in_order(processor):
    right = {text: i for i, texts in enumerate(CAPTIONS) for text in texts}
    metrics = evaluate(processor, right)
    assert set(metrics.values()) == {1.0}
    assert len(metrics) == 6


def test_image_finds_any_of_its_captions_and_each_caption_its_image(processor):
    numbers = {text: i for i, texts in enumerate(CAPTIONS) for text in texts}
    numbers |= {"star": 1, "square": 0, "the square": 1}
    metrics = evaluate(processor, numbers)
    assert metrics["text_to_image_r1"] == pytest.approx(3 / 6)
    assert metrics["image_to_text_r1"] == pytest.approx(1 / 3)  # two images have tied strangers
    first_only = evaluate(processor, numbers, captions_per_image=1)
    assert first_only["text_to_image_r1"] == first_only["image_to_text_r1"] == 1


def test_image_without_caption_is_an_error(processor):
    dataset = ListDataset([{"image": gray_image(0), "image_id": 41, "captions": []}])
    model = Retriever(processor.tokenizer, {})
    with pytest.raises(ValueError, match="got none for image 41"):
        RetrievalEvaluator(None)(model, processor, dataset, progress=False)


def test_folds_are_averaged_and_the_rest_is_left_out():
    whole = random_predictions(num_images=40, num_captions=3)
    folds = [select_images(whole, start, 12) for start in (0, 12, 24)]
    scores = [RetrievalEvaluator().score(fold) for fold in folds]
    both = RetrievalEvaluator(fold_size=12).score(whole)
    averaged = {f"{name}_folds_of_12": pytest.approx(np.mean([s[name] for s in scores])) for name in scores[0]}
    assert both == RetrievalEvaluator().score(whole) | averaged
    assert len({s["text_to_image_r1"] for s in scores}) > 1
    for fold in folds:
        assert fold.image_of_text.min() == 0
        assert fold.image_of_text.max() == 11
    with pytest.raises(ValueError, match="at least `fold_size` = 50 images, got 40"):
        RetrievalEvaluator(fold_size=50).score(whole)


def test_protocols_take_five_captions_an_image():
    assert {options["captions_per_image"] for options in PROTOCOLS.values()} == {5}
    assert RetrievalEvaluator(**PROTOCOLS["coco_1k"]).fold_size == 1000
    assert RetrievalEvaluator(**PROTOCOLS["coco_5k"]).fold_size is None


MEMORY_SCRIPT = """
import re, torch
from pathlib import Path
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator, RetrievalPredictions
texts = torch.randn(25000, 768)
predictions = RetrievalPredictions(texts[::5].clone(), texts, torch.arange(5000).repeat_interleave(5))
def peak():  # of this process alone; what getrusage says begins with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
metrics = RetrievalEvaluator(ranks=(1,)).score(predictions)
assert metrics["image_to_text_r1"] == 1, metrics
print(peak(), peak() - before)
"""


@pytest.mark.slow
def test_five_thousand_images_and_their_texts_fit_in_two_gibibytes():
    result = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], check=True, capture_output=True, text=True)
    whole, added = (int(kibibytes) / 2**20 for kibibytes in result.stdout.split())
    assert whole < 2
    assert added < 0.3  # all similarities together would be 0.47
