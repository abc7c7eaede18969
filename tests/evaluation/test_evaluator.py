import pytest
import torch
from heart_models import HeartModel, ListDataset, gray_image
from torch import nn

from transformers_upv2.evaluation.classification import ClassificationEvaluator
from transformers_upv2.evaluation.evaluator import (
    find_labels,
    iterate_batches,
    match_class_names,
    prediction_mode,
    to_model,
)


def test_prediction_mode_restores_every_module():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(1))
    model[1].eval()

    def fail():
        with prediction_mode(model):
            assert not model[0].training
            assert not torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.training
    assert model[0].training
    assert not model[1].training
    assert torch.is_grad_enabled()


def test_batches_cover_the_dataset_once_in_order():
    batches = list(iterate_batches(list(range(7)), 3, "", progress=False))
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_progress_bar_counts_examples(capsys):
    list(iterate_batches(list(range(7)), 3, "looking", progress=True))
    assert "looking" in capsys.readouterr().err


def test_bad_sizes_are_errors():
    with pytest.raises(ValueError, match="at least one example, got 0"):
        next(iterate_batches([], 3, "", progress=False))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        next(iterate_batches([1], 0, "", progress=False))


def test_inputs_take_the_dtype_of_the_model_but_ids_stay():
    model = nn.Linear(1, 1).to(torch.bfloat16)
    batch = to_model({"pixel_values": torch.zeros(1), "input_ids": torch.zeros(1).long()}, model)
    assert batch["pixel_values"].dtype is torch.bfloat16
    assert batch["input_ids"].dtype is torch.int64


def test_classes_are_found_by_name():
    model = HeartModel(answer=None, class_names=["b", "a", "c"])
    assert find_labels(model, ListDataset([], class_names=["c", "b"])) == [2, 0]
    for names in (["a", "d"], ["a", "a"]):
        with pytest.raises(ValueError, match=rf"got 2 names \['a', '{names[1]}'\]... for 3 labels \['b', 'a', 'c'\]"):
            find_labels(model, ListDataset([], class_names=names))
    same_twice = ["a", "a"]
    assert match_class_names(same_twice, same_twice) == [0, 1]
    with pytest.raises(ValueError, match="each once"):
        match_class_names(["a"], same_twice)


def test_model_is_asked_through_the_task_class(processor):
    class View(HeartModel):
        @classmethod
        def from_model(cls, model):
            return cls(model.answer)

    model = HeartModel(lambda number: {"logits": torch.eye(3)[number]})
    dataset = ListDataset([{"image": gray_image(1), "label": 1}], class_names=["circle", "square", "star"])
    assert type(ClassificationEvaluator(View).view(model)) is View
    assert ClassificationEvaluator(HeartModel).view(model) is model
    assert ClassificationEvaluator(View)(model, processor, dataset, progress=False)["top1"] == 1
