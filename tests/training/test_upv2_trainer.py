"""UniPerceiverV2Trainer: readers' data sets, our collators and evaluators, with a toy model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tiny_models import tiny_config
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.streams import ShuffledStream
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

TEXTS = [f"text number {number} of many words" for number in range(10)]


@pytest.fixture(scope="module")
def processor():
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": 32})
    return UniPerceiverV2Processor(image_processor, train_tokenizer(TEXTS))


class Images(torch.utils.data.Dataset):
    """Gray images whose label is their gray level; one cannot be read."""

    def __init__(self, levels, bad=None):
        self.levels = list(levels)
        self.bad = bad

    def __len__(self):
        return len(self.levels)

    def __getitem__(self, index):
        if index == self.bad:
            raise DataError(f"image {index}: broken")
        level = self.levels[index]
        return {"image": Image.new("RGB", (32, 32), (level,) * 3), "label": level, "image_id": index}


class Texts(Images):
    def __init__(self):
        super().__init__(range(10))

    def __getitem__(self, index):
        return {"text": TEXTS[index]}


class Recorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, task, step_seed, **batch):
        self.batches.append((task, {**batch, "step_seed": step_seed}))
        return {"loss": self.weight.square()}


def make_trainer(folder, processor, datasets, arguments=None, **kwargs):
    defaults = {"max_steps": 20, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = UniPerceiverV2TrainingArguments(output_dir=str(folder), **(defaults | (arguments or {})))
    return UniPerceiverV2Trainer(Recorder(), args, datasets, processing_class=processor, **kwargs)


def test_batches_reach_the_model(tmp_path, processor):
    datasets = {"classification": Images(range(9), bad=4), "language_modeling": Texts()}
    trainer = make_trainer(tmp_path, processor, datasets, {"batch_sizes": {"classification": 3}})
    trainer.train()
    by_task = dict(trainer.model.batches)
    assert set(by_task["classification"]) == {"pixel_values", "pixel_mask", "labels", "step_seed"}
    assert set(by_task["language_modeling"]) == {"input_ids", "attention_mask", "labels", "step_seed"}
    assert by_task["classification"]["labels"].shape == (3,)
    labels = torch.cat([b["labels"] for task, b in trainer.model.batches if task == "classification"])
    assert set(labels.tolist()) == set(range(9)) - {4}
    ((name, (task, reason, times)),) = trainer.task_log.replaced.items()
    assert (name, task, reason) == ("classification/4", "classification", "image 4: broken")
    assert trainer.state.log_history[-1]["replaced_samples/classification"] == times > 0


def test_several_datasets_are_drawn_by_weight_and_transformed(tmp_path, processor):
    def brighten(example, rng: np.random.Generator):
        return {**example, "label": example["label"] + 100}

    parts = {"small": (Images([0, 1]), 3.0), "large": (Images(range(10, 50)), 1.0)}
    trainer = make_trainer(
        tmp_path, processor, {"classification": parts}, {"max_steps": 60}, transforms={"classification": brighten}
    )
    trainer.train()
    labels = torch.cat([batch["labels"] for _, batch in trainer.model.batches])
    assert labels.min() >= 100
    share = (labels < 110).float().mean().item()
    assert abs(share - 0.75) < 3 * (0.75 * 0.25 / len(labels)) ** 0.5


def test_streamed_and_map_style_data_sets_are_mixed_and_transformed(tmp_path, processor):
    def brighten(example, rng: np.random.Generator):
        return {**example, "label": example["label"] + 100}

    parts = {"streamed": (ShuffledStream(Images(range(9), bad=4)), 2.0), "whole": (Images(range(20, 30)), 1.0)}
    trainer = make_trainer(
        tmp_path, processor, {"classification": parts}, {"max_steps": 30}, transforms={"classification": brighten}
    )
    trainer.train()
    labels = torch.cat([batch["labels"] for _, batch in trainer.model.batches])
    assert set(labels.tolist()) == {100 + level for level in [*range(9), *range(20, 30)] if level != 4}
    share = (labels < 110).float().mean().item()
    assert abs(share - 2 / 3) < 3 * (2 / 9 / len(labels)) ** 0.5
    assert {reason for _, reason, _ in trainer.task_log.replaced.values()} == {"sample 4: image 4: broken"}


def broken_coco(folder):
    """Five images: one cannot be read, one is missing, one has a box without an area."""
    boxes = [[2, 2, 10, 10]] * 4 + [[5, 5, 0, 4]]
    for number in (0, 1, 4):
        Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:60])
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in range(5)],
        "annotations": [{"id": n, "image_id": n, "category_id": 7, "bbox": box} for n, box in enumerate(boxes)],
        "categories": [{"id": 7, "name": "thing"}],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return CocoDetection(folder / "instances.json", folder)


def test_training_goes_on_past_bad_files_and_annotations(tmp_path, processor):
    dataset = broken_coco(tmp_path)
    trainer = make_trainer(tmp_path / "run", processor, {"detection": dataset, "language_modeling": Texts()})
    trainer.train()
    sizes = {len(batch["labels"]) for task, batch in trainer.model.batches if task == "detection"}
    assert sizes == {trainer.args.per_device_train_batch_size}
    reasons = {name: reason for name, (_, reason, _) in trainer.task_log.replaced.items()}
    assert set(reasons) == {"detection/2", "detection/3", "detection/4"}
    assert "must be readable" in reasons["detection/2"]
    assert "there is none" in reasons["detection/3"]
    assert "must have an area" in reasons["detection/4"]
    last = trainer.state.log_history[-1]
    assert last["replaced_samples/detection"] >= 3
    assert "replaced_samples/language_modeling" not in last


def test_evaluators_name_their_metrics_by_data_set(tmp_path, processor):
    calls = []

    def evaluator(model, processor, dataset, *, batch_size, progress):
        calls.append((model, processor, len(dataset), batch_size, progress))
        return {"top1": np.float32(len(dataset) / 10), "top5": torch.tensor(0.5)}

    trainer = make_trainer(
        tmp_path,
        processor,
        {"language_modeling": Texts()},
        {"eval_strategy": "steps", "eval_steps": 10, "per_device_eval_batch_size": 5},
        eval_dataset={"classification": Images(range(7)), "classification/other": Images(range(3))},
        evaluators={"classification": evaluator},
    )
    trainer.train()
    assert calls[0] == (trainer.model, processor, 7, 5, False)
    rows = [row for row in trainer.state.log_history if "eval_classification/other/top1" in row]
    found = [(row["step"], row["eval_classification/other/top1"]) for row in rows]
    assert found == [(10, pytest.approx(0.3)), (20, pytest.approx(0.3))]
    metrics = trainer.evaluate({"classification/new": Images(range(1))}, metric_key_prefix="test")
    names = ("test_classification/new/top1", "test_classification/new/top5", "epoch")
    assert metrics == dict(zip(names, (pytest.approx(0.1), 0.5, 1.0)))
    assert {type(value) for value in metrics.values()} == {float}  # others are left out of curves and cannot be saved
    with pytest.raises(ValueError, match=r"none for 'retrieval', only for \['classification'\]"):
        trainer.evaluate({"retrieval/flickr30k": Images(range(3))})


def test_data_sets_of_a_task_must_have_equal_classes(tmp_path, processor):
    first = broken_coco(tmp_path)
    (tmp_path / "instances.json").write_text((tmp_path / "instances.json").read_text().replace("thing", "bus"))
    second = CocoDetection(tmp_path / "instances.json", tmp_path)
    with pytest.raises(DataError, match=r"only in 'x': \['thing'\], only in 'y': \['bus'\]"):
        make_trainer(tmp_path, processor, {"detection": {"x": (first, 1.0), "y": (second, 1.0)}})
    make_trainer(tmp_path, processor, {"detection": {"x": first, "y": first}})


def test_a_model_of_other_classes_is_not_trained(tmp_path, processor):
    """It would learn the data's labels under its own names."""
    data = broken_coco(tmp_path)
    model = UniPerceiverV2ForMultiTask(tiny_config(text_config={"vocab_size": len(processor.tokenizer)}))
    arguments = UniPerceiverV2TrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    for names in (None, ["car", "bus"], ["thing", "bus"]):
        if names:
            model.set_labels(names, processor.tokenizer, label_set="detection")
        for datasets in (data, {"own": (torch.utils.data.Subset(data, [0, 1]), 1.0)}):
            with pytest.raises(ValueError, match=r"labels of task 'detection' .* `model.set_labels\("):
                UniPerceiverV2Trainer(model, arguments, {"detection": datasets}, processing_class=processor)
    model.set_labels(data.class_names, processor.tokenizer, label_set="detection")
    UniPerceiverV2Trainer(model, arguments, {"detection": data}, processing_class=processor)


def test_unknown_tasks_are_named(tmp_path, processor):
    with pytest.raises(ValueError, match=r"`train_dataset` must be a dict from tasks to data sets, got Images"):
        make_trainer(tmp_path, processor, Images(range(3)))
    with pytest.raises(ValueError, match="got 'detect'"):
        make_trainer(tmp_path, processor, {"detect": Texts()})
    with pytest.raises(ValueError, match="got 'caption'"):
        make_trainer(tmp_path, processor, {"language_modeling": Texts()}, evaluators={"caption": len})
    with pytest.raises(ValueError, match=r"`image_options` .* got \['detection'\]"):
        make_trainer(tmp_path, processor, {"language_modeling": Texts()}, {"image_options": {"detection": {}}})
    with pytest.raises(ValueError, match="must be a processor, got None"):
        make_trainer(tmp_path, None, {"language_modeling": Texts()})
