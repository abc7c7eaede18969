import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from heart_models import ListDataset

from transformers_upv2.data.demo_world import WorldSizes, make_world
from transformers_upv2.evaluation import distributed
from transformers_upv2.evaluation.captioning import CaptioningEvaluator, CaptionPredictions
from transformers_upv2.evaluation.classification import ClassificationEvaluator, ClassificationPredictions
from transformers_upv2.evaluation.detection import DetectionEvaluator, DetectionPredictions
from transformers_upv2.evaluation.distributed import own_part, score_together
from transformers_upv2.evaluation.language_modeling import LanguageModelingEvaluator, MaskedWordPredictions
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator, RetrievalPredictions


@pytest.mark.parametrize(("size", "batch_size", "ranks"), [(10, 3, 2), (7, 7, 3), (25, 4, 4), (1, 8, 2)])
def test_parts_are_the_whole_in_order_and_in_whole_batches(monkeypatch, size, batch_size, ranks):
    dataset = ListDataset(range(size), class_names=["a"])
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    seen = []
    for each in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda each=each: each)
        part = own_part(dataset, batch_size)
        assert part.class_names == ["a"]
        assert part.first_index == len(seen) or len(part) == 0
        assert len(seen) % batch_size == 0 or len(part) == 0
        seen += [part[i] for i in range(len(part))]
    assert seen == list(range(size))


def test_one_process_has_the_dataset_itself():
    dataset = ListDataset(range(3))
    assert own_part(dataset, 2) is dataset
    assert score_together([1, 2], lambda parts: parts[0], lambda found: {"sum": sum(found)}) == {"sum": 3}


def test_an_error_of_scoring_is_raised_everywhere():
    def fail(_):
        raise ValueError("no word")

    with pytest.raises(ValueError, match="no word"):
        score_together([1], lambda parts: parts[0], fail)


def test_joined_predictions_are_in_order():
    logits, labels = torch.randn(5, 3), torch.arange(5)
    joined = ClassificationEvaluator().join(
        [ClassificationPredictions(logits[:2], labels[:2]), ClassificationPredictions(logits[2:], labels[2:])]
    )
    assert torch.equal(joined.logits, logits)
    assert torch.equal(joined.labels, labels)
    captions = CaptioningEvaluator().join(
        [CaptionPredictions({2: "a"}, {2: ["b"]}), CaptionPredictions({1: "c"}, {1: ["d"]})]
    )
    assert list(captions.captions.items()) == [(2, "a"), (1, "c")]
    assert captions.references == {2: ["b"], 1: ["d"]}
    words = LanguageModelingEvaluator().join(
        [MaskedWordPredictions([(1,)], [(2,)]), MaskedWordPredictions([(3, 4)], [(3, 5)])]
    )
    assert words == MaskedWordPredictions([(1,), (3, 4)], [(2,), (3, 5)])
    boxes = [DetectionPredictions(Path("f"), [i], [{"image_id": i}], [{"image_id": -i}]) for i in (5, 6)]
    assert DetectionEvaluator().join(boxes).image_ids == [5, 6]
    assert DetectionEvaluator().join(boxes).masks == [{"image_id": -5}, {"image_id": -6}]
    assert DetectionEvaluator().join([DetectionPredictions(Path("f"), [1], [])]).masks is None
    parts = [RetrievalPredictions(torch.eye(4)[:2], torch.eye(4)[:3], torch.tensor([0, 1, 1]))] * 2
    assert RetrievalEvaluator().join(parts).image_of_text.tolist() == [0, 1, 1, 2, 3, 3]


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path):
    paths = make_world(tmp_path / "world", 0, WorldSizes((2, 21, 2), (24, 24, 24), (30, 20, 20)), progress=False)
    script = Path(__file__).parent / "evaluate_together.py"
    for ranks in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
        subprocess.run([*command, script, paths.root, tmp_path], check=True, capture_output=True, timeout=400)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first == pytest.approx(one, abs=1e-6)
    assert len({key.split("/")[0] for key in one}) == 5
    assert not dist.is_initialized()
