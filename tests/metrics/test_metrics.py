"""Each metric loads by `evaluate.load` without a network and equals our evaluator's score."""

import json

import evaluate
import pytest
import torch

from transformers_upv2.evaluation.captioning import score_captions
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator, RetrievalPredictions
from transformers_upv2.metrics import NAMES, metric_path


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        yield lambda name: evaluate.load(metric_path(name), cache_dir=str(folder), experiment_id=name)


def test_caption_scores(load):
    captions = ["a red star", "a big square on the left", "two dogs"]
    references = [["a red star", "one star"], ["a big square"], ["two dogs run", "dogs"]]
    scores = load("caption_scores").compute(predictions=captions, references=references)
    assert scores == score_captions(dict(enumerate(captions)), dict(enumerate(references)))
    assert 0 < scores["bleu4"] < 1


def test_top_k_accuracy(load):
    logits = torch.eye(7)[[0, 1, 2, 3]] - 0.1 * torch.arange(7)
    scores = load("top_k_accuracy").compute(predictions=logits.tolist(), references=[0, 1, 3, 6])
    assert scores == {"top1": 0.5, "top5": 0.75}


def test_retrieval_recall(load):
    features = torch.nn.functional.normalize(torch.randn(30, 4), dim=1)
    image_of_text = torch.arange(10).repeat_interleave(3)
    references = [{"image_id": 100 + int(i), "feature": features[i].tolist()} for i in image_of_text]
    scores = load("retrieval_recall").compute(predictions=features.tolist(), references=references)
    expected = RetrievalEvaluator().score(RetrievalPredictions(features[:10], features, image_of_text))
    assert scores == pytest.approx(expected)
    assert 0 < scores["text_to_image_r5"] < 1


def test_coco_average_precision(load, tmp_path):
    square = {"bbox": [2, 2, 10, 10], "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]], "category_id": 3}
    image = {"id": 7, "width": 40, "height": 40, "file_name": "none"}
    annotation = square | {"id": 1, "image_id": 7, "area": 100, "iscrowd": 0}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 3, "name": "square"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    half = {"image_id": 7, "category_id": 3, "score": 0.5, "bbox": [2, 2, 10, 8]}
    (tmp_path / "results.json").write_text(json.dumps([half]))
    files = {"predictions": [str(tmp_path / "results.json")], "references": [str(tmp_path / "instances.json")]}
    scores = load("coco_average_precision").compute(**files)
    assert scores["box_ap"] == pytest.approx(0.7)  # IoU 0.8: seven of the ten thresholds
    assert len(scores) == 12
    with pytest.raises(ValueError, match="must hold one results file, got 2"):
        load("coco_average_precision").compute(**{key: value * 2 for key, value in files.items()})


def test_unknown_names_are_listed():
    assert len(NAMES) == 4
    with pytest.raises(ValueError, match=r"must be one of .*'caption_scores'.* got 'cider'"):
        metric_path("cider")
