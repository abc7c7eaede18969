import pytest
from heart_models import HeartModel, ListDataset, gray_image, image_numbers
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from transformers_upv2.evaluation.captioning import CaptioningEvaluator, score_captions

REFERENCES = {
    1: ["A red circle above the big blue square.", "a circle on top of a square"],
    2: ["two small green stars on a dark background", "green stars"],
    3: ["a big red square", "the square is red and big"],
}


class Captioner(HeartModel):
    """Says what it was told about each image, in token ids of unequal lengths."""

    def __init__(self, tokenizer, captions):
        super().__init__(answer=None)
        self.tokenizer, self.captions = tokenizer, captions

    def generate(self, pixel_values, pixel_mask, **options):
        self.options = options
        assert not self.training
        texts = [self.captions[number] for number in image_numbers(pixel_values)]
        return self.tokenizer(texts, padding=True, return_tensors="pt").input_ids


def dataset():
    return ListDataset({"image": gray_image(i), "image_id": i, "captions": texts} for i, texts in REFERENCES.items())


def test_scores_equal_the_coco_scorers(processor):
    captions = {1: "a red square above the circle", 2: "two green stars", 3: "a big red square"}
    model = Captioner(processor.tokenizer, captions)
    evaluator = CaptioningEvaluator(None, max_new_tokens=17)
    metrics = evaluator(model, processor, dataset(), batch_size=2, progress=False)
    words = {
        1: ["a red circle above the big blue square", "a circle on top of a square"],
        2: REFERENCES[2],
        3: REFERENCES[3],
    }
    answers = {key: [text] for key, text in captions.items()}
    bleu, _ = Bleu(4).compute_score(words, answers, verbose=0)
    expected = {f"bleu{n + 1}": value for n, value in enumerate(bleu)}
    expected["rouge_l"], _ = Rouge().compute_score(words, answers)
    expected["cider"], _ = Cider().compute_score(words, answers)
    assert metrics == pytest.approx(expected)
    assert 0 < metrics["bleu4"] < 1
    assert model.options["max_new_tokens"] == 17
    assert model.training


def test_repeating_a_reference_is_perfect_but_for_its_case():
    captions = {key: texts[0].upper() for key, texts in REFERENCES.items()}
    metrics = score_captions(captions, {key: texts[:1] for key, texts in REFERENCES.items()})
    assert metrics["bleu4"] == pytest.approx(1, abs=1e-6)
    assert metrics["rouge_l"] == pytest.approx(1)
    assert metrics["cider"] == pytest.approx(10)


def test_empty_caption_scores_nothing():
    metrics = score_captions(dict.fromkeys(REFERENCES, ""), REFERENCES)
    assert max(metrics.values()) < 1e-6


def test_bad_references_are_errors():
    with pytest.raises(ValueError, match=r"only one of them has: \[2\]"):
        score_captions({1: "a"}, {1: ["a"], 2: ["b"]})
    with pytest.raises(ValueError, match="got none for image 7"):
        score_captions({7: "a"}, {7: [" "]})


def test_special_tokens_are_no_words(processor):
    model = Captioner(processor.tokenizer, dict.fromkeys(REFERENCES, "stars"))
    predictions = CaptioningEvaluator(None).predict(model, processor, dataset(), progress=False)
    assert predictions.captions == dict.fromkeys(REFERENCES, "stars")
