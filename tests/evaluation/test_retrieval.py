import numpy as np
import pytest
import torch
from heart_models import HeartModel, ListDataset, gray_image, image_numbers
from torch import nn
from transformers.utils import ModelOutput

from transformers_upv2.evaluation.retrieval import (
    RetrievalEvaluator,
    RetrievalPredictions,
    rank_matches,
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
