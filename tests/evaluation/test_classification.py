import numpy as np
import torch
from heart_models import HeartModel, ListDataset, gray_image

from transformers_upv2.evaluation.classification import (
    ClassificationEvaluator,
    ClassificationPredictions,
)


def test_accuracies_equal_counting(processor):
    scores = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    labels = [3, 1, 4, 1, 5, 2, 0, 5, 3, 5]
    names = [str(i) for i in range(6)]
    model = HeartModel(lambda number: {"logits": scores[number]}, names)
    dataset = ListDataset(
        [{"image": gray_image(i), "label": label} for i, label in enumerate(labels)],
        class_names=names,
    )
    metrics = ClassificationEvaluator(None)(model, processor, dataset, batch_size=4, progress=False)
    order = np.argsort(-scores.numpy(), axis=1)
    assert metrics["top1"] == np.float32(np.mean([order[i, 0] == x for i, x in enumerate(labels)]))
    assert metrics["top5"] == np.float32(np.mean([x in order[i, :5] for i, x in enumerate(labels)]))
    assert 0 < metrics["top1"] < metrics["top5"] < 1
    assert not model.saw_training
    assert not model.saw_gradients
    assert model.training


def test_fewer_than_five_classes():
    predictions = ClassificationPredictions(torch.eye(3), torch.tensor([0, 1, 0]))
    metrics = ClassificationEvaluator(None).score(predictions)
    assert metrics["top5"] == 1
    assert metrics["top1"] == np.float32(2 / 3)


def test_classes_are_found_by_name(processor):
    scores = torch.eye(6)
    model = HeartModel(lambda number: {"logits": scores[number]}, list("abcdef"))
    dataset = ListDataset(
        [{"image": gray_image(4), "label": 0}, {"image": gray_image(1), "label": 1}], class_names=["e", "b"]
    )
    assert ClassificationEvaluator(None)(model, processor, dataset, progress=False)["top1"] == 1
