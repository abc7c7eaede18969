import numpy as np
import pytest
import torch
from heart_models import CATEGORY_IDS, ListDataset
from PIL import Image

from transformers_upv2.evaluation.baselines import (
    caption_ceiling,
    caption_without_image,
    classify_by_color,
    color_histogram,
    consensus_caption,
    guess_most_frequent_word,
    retrieve_by_color,
    shuffle_class_names,
)
from transformers_upv2.evaluation.captioning import score_captions
from transformers_upv2.evaluation.classification import ClassificationEvaluator
from transformers_upv2.evaluation.detection import DetectionEvaluator, DetectionPredictions
from transformers_upv2.evaluation.language_modeling import LanguageModelingEvaluator
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator

COLORS = ["red", "lime", "blue", "yellow"]


def color_dataset(shade, **columns):
    """One picture a color, a little darker or brighter than pure."""
    examples = []
    for index, color in enumerate(COLORS):
        image = Image.new("RGB", (8, 8), color).point(lambda value: min(value + shade, 255))
        examples.append({"image": image, "image_id": index} | {key: v[index] for key, v in columns.items()})
    return ListDataset(examples)


def test_color_histogram_counts_every_pixel_once():
    image = Image.effect_noise((20, 10), 90).convert("RGB")
    histogram = color_histogram(image)
    assert histogram.shape == (512,)
    assert np.sum(histogram.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-6)
    black_and_white = Image.new("L", (4, 1))
    black_and_white.putpixel((0, 0), 255)
    assert color_histogram(black_and_white)[[0, 511]] == pytest.approx(np.sqrt([0.75, 0.25]))


def test_color_neighbor_finds_the_class_where_color_tells_it():
    train, test = color_dataset(0, label=[2, 0, 1, 3]), color_dataset(9, label=[2, 0, 1, 0])
    metrics = ClassificationEvaluator(None).score(classify_by_color(test, train))
    assert metrics["top1"] == 0.75


def test_color_neighbor_finds_captions_where_color_tells_them():
    words = [["red star", "a star"], ["green circle"], ["blue square", "it is blue"], ["yellow moon", "moon"]]
    train, test = color_dataset(0, captions=words), color_dataset(9, captions=words)
    predictions = retrieve_by_color(test, train)
    assert predictions.image_of_text.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert RetrievalEvaluator(None).score(predictions)["image_to_text_r1"] == 1
    exchanged = color_dataset(9, captions=words[::-1])
    assert RetrievalEvaluator(None).score(retrieve_by_color(exchanged, train))["text_to_image_r1"] == 0
    assert len(retrieve_by_color(test, train, captions_per_image=1).text_features) == 4


def test_shuffled_names_keep_places_and_change_every_class(coco_dataset):
    truth = [a | {"category_id": CATEGORY_IDS[a["category_id"]]} for e in coco_dataset for a in e["annotations"]]
    boxes = [{key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0} for a in truth]
    found = DetectionPredictions(coco_dataset.annotation_file, [100, 101, 102, 103, 104], boxes)
    for seed in range(5):
        shuffled = shuffle_class_names(found, CATEGORY_IDS, seed)
        names = {(a["category_id"], b["category_id"]) for a, b in zip(found.boxes, shuffled.boxes)}
        assert len(names) == len({a for a, _ in names}) == len({b for _, b in names})
        assert all(a != b for a, b in names)
        assert [b["bbox"] for b in shuffled.boxes] == [b["bbox"] for b in found.boxes]
        evaluator = DetectionEvaluator(None)
        assert evaluator.score(shuffled)["box_ap"] < 0.5 < evaluator.score(found)["box_ap"]
    with pytest.raises(ValueError, match="got 1"):
        shuffle_class_names(found, [3])


TRAIN_CAPTIONS = [
    ["a red circle above a blue square", "one circle and one square"],
    ["a red circle above a green square", "a circle on a square"],
    ["a red circle above a blue star", "circle and star"],
    ["seventeen unrelated words about the weather of yesterday"],
    ["a red circle left of a blue square", "two shapes"],
]


def test_consensus_caption_is_the_best_by_brute_force():
    """All pairwise cosines, with one dense matrix for each phrase length."""
    captions = [text for texts in TRAIN_CAPTIONS for text in texts]
    likeness = np.zeros((len(captions), len(captions)))
    for length in (1, 2, 3, 4):
        phrases = [[" ".join(w[i : i + length]) for i in range(len(w) - length + 1)] for w in map(str.split, captions)]
        names = sorted({phrase for each in phrases for phrase in each})
        counts = np.array([[each.count(name) for name in names] for each in phrases], dtype=float)
        images = [sum(len(texts) for texts in TRAIN_CAPTIONS[:n]) for n in range(5)]
        in_image = np.add.reduceat(counts, images, axis=0) > 0
        vectors = counts * np.log(5 / in_image.sum(axis=0))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms > 0, norms, 1)
        likeness += vectors @ vectors.T
    assert consensus_caption(TRAIN_CAPTIONS) == captions[likeness.sum(axis=1).argmax()]


def test_caption_without_image_is_the_same_everywhere():
    references = {7: ["a red circle above a blue square"], 9: ["nothing"]}
    predictions = caption_without_image(references, TRAIN_CAPTIONS)
    assert set(predictions.captions) == {7, 9}
    assert len(set(predictions.captions.values())) == 1


def test_caption_ceiling_is_leave_one_out():
    references = {i: texts for i, texts in enumerate(TRAIN_CAPTIONS) if len(texts) == 2}
    there = score_captions({i: t[0] for i, t in references.items()}, {i: t[1:] for i, t in references.items()})
    back = score_captions({i: t[1] for i, t in references.items()}, {i: t[:1] for i, t in references.items()})
    ceiling = caption_ceiling(references)
    for name, value in ceiling.items():
        assert value == pytest.approx((there[name] + back[name]) / 2), name
    with pytest.raises(ValueError, match=r"fewer for \[3\]"):
        caption_ceiling({3: ["a"], 4: ["a", "b"]})


def test_most_frequent_word_is_right_as_often_as_it_is_asked_for():
    asked = [(5,), (6, 7), (5,), (8,)]
    predictions = guess_most_frequent_word(asked, [(6, 7), (5,), (5,), (9,)])
    assert LanguageModelingEvaluator(None).score(predictions)["masked_accuracy"] == 0.5


def test_predictions_are_scored_on_the_labels_of_the_test_split():
    train, test = color_dataset(0, label=[0, 1, 2, 3]), color_dataset(9, label=[3, 2, 1, 0])
    predictions = classify_by_color(test, train)
    assert torch.equal(predictions.labels, torch.tensor([3, 2, 1, 0]))
    assert predictions.logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
