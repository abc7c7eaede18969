import pytest
from heart_models import ListDataset

from transformers_upv2.evaluation.suite import default_evaluators, evaluate_all
from transformers_upv2.model.tasks import TASKS


def test_every_task_has_an_evaluator():
    assert set(default_evaluators()) == set(TASKS)


def test_metrics_are_named_by_dataset():
    def evaluator(model, processor, dataset, *, batch_size=16, progress=True):
        return {"size": float(len(dataset)), "batch": float(batch_size)}

    datasets = {"detection": ListDataset([1]), "retrieval/flickr30k": ListDataset([1, 2])}
    evaluators = {"detection": evaluator, "retrieval": evaluator}
    assert evaluate_all(None, None, datasets, evaluators, batch_size=3) == {
        "detection/size": 1.0,
        "detection/batch": 3.0,
        "retrieval/flickr30k/size": 2.0,
        "retrieval/flickr30k/batch": 3.0,
    }


def test_unknown_task_is_an_error_before_anything_runs():
    def evaluator(*args, **kwargs):
        pytest.fail("must not run")

    with pytest.raises(ValueError, match=r"start with one of \['detection'\], got 'detect/coco'"):
        evaluate_all(None, None, {"detection": [], "detect/coco": []}, {"detection": evaluator})
