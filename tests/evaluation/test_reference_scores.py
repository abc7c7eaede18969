import pytest
from heart_models import ListDataset, gray_image

from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.classification import ClassificationEvaluator
from transformers_upv2.evaluation.detection import DetectionEvaluator
from transformers_upv2.evaluation.language_modeling import LanguageModelingEvaluator
from transformers_upv2.evaluation.reference_scores import BLIND_ANSWERS, blind_baselines, ceilings
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
from transformers_upv2.model.tasks import TASKS

CAPTIONS = [["a red circle", "one circle"], ["a blue square", "one square"], ["green stars", "two stars"]]


@pytest.fixture
def datasets(coco_dataset):
    captions = ListDataset(
        {"image": gray_image(80 * i), "image_id": i, "captions": texts} for i, texts in enumerate(CAPTIONS)
    )
    return {
        "classification": ListDataset([{"image": gray_image(i * 80), "label": i} for i in range(3)]),
        "detection": coco_dataset,
        "captioning": captions,
        "retrieval": captions,
        "language_modeling": ListDataset({"text": text} for text in ("a red circle", "the red square")),
    }


@pytest.fixture
def evaluators():
    return {
        "classification": ClassificationEvaluator(None),
        "detection": DetectionEvaluator(None),
        "captioning": CaptioningEvaluator(None),
        "retrieval": RetrievalEvaluator(None),
        "language_modeling": LanguageModelingEvaluator(None, probability=1.0),
    }


def test_every_task_has_a_blind_answer():
    assert set(BLIND_ANSWERS) == set(TASKS)


def test_baselines_have_the_keys_of_the_metrics(datasets, evaluators, processor, make_perfect_detector):
    model = make_perfect_detector()
    scores = blind_baselines(model, processor, datasets, datasets, evaluators)
    metrics = DetectionEvaluator(None)(model, processor, datasets["detection"], progress=False)
    assert {f"detection/{name}" for name in metrics} <= set(scores)
    assert scores["detection/box_ap"] < 0.6 < metrics["box_ap"]
    assert scores["classification/top1"] == 1  # it was given the test split to learn from
    assert scores["retrieval/text_to_image_r1"] == 1
    assert scores["language_modeling/masked_accuracy"] == pytest.approx(2 / 6)  # red, red
    assert 0 < scores["captioning/bleu1"] < 1


def test_missing_training_split_is_an_error(datasets, evaluators):
    with pytest.raises(ValueError, match=r"got none for \['retrieval'\]"):
        blind_baselines(None, None, {"retrieval": datasets["retrieval"]}, {}, evaluators)


def test_ceilings_are_one_but_for_captions(datasets):
    values = ceilings({"detection/box_ap": 0.3, "captioning/bleu4": 0.2}, datasets["captioning"])
    assert values["detection/box_ap"] == 1
    assert values["captioning/bleu4"] < 0.5
    assert "captioning/cider" in values
    assert ceilings({"detection/box_ap": 0.3}, None) == {"detection/box_ap": 1.0}
