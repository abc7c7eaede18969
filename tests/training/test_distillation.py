"""DistillationTrainer on tiny models: what is compared, what learns, what is saved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distillation_toys import TEACHER, WIDE_TEACHER, Pictures, Texts, make_model, make_processor, make_trainer

from source_files import ROOT
from tiny_models import box_labels, pad_images, random_images
from transformers_upv2.model.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2ForObjectDetection
from transformers_upv2.training.distillation import FGDSettings
from transformers_upv2.training.distilled_maps import MapRecorder, compute_maps, map_channels
from transformers_upv2.training.trainer import MultiTaskTrainer


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def wide_teacher(processor):
    return make_model(processor, **WIDE_TEACHER)


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def detection_batch(height=48, width=40):
    """Two images on a canvas of 64 x 64 that they do not fill."""
    images = pad_images(list(random_images(2, height, width)), 64, 64)
    return images | {"labels": box_labels([2, 3], with_masks=False)}


def test_recorded_maps_are_the_computed_ones(processor):
    model = make_model(processor).train()
    encoder = model.model.image_encoder
    with MapRecorder(encoder) as recorder:
        model(task="detection", **detection_batch())
        maps = recorder.maps
        assert recorder.pixels.shape == (2, 3, 64, 64)
        computed = compute_maps(encoder, recorder.pixels)
    assert [map_.shape for map_ in maps] == [(2, 32, size, size) for size in (8, 4, 2, 1, 2)]
    assert map_channels(encoder) == [32] * 5
    for one, other in zip(maps, computed, strict=True):
        assert one.requires_grad
        torch.testing.assert_close(one, other)
    model(task="detection", **detection_batch())
    assert recorder.calls == {}


@pytest.mark.parametrize(("levels", "last_map"), [(None, False), ((1, 3), True)])
def test_the_term_is_the_loss_of_the_chosen_maps(tmp_path, processor, wide_teacher, levels, last_map):
    trainer = make_trainer(tmp_path, processor, wide_teacher, fgd=FGDSettings(levels=levels, last_map=last_map))
    batch = detection_batch()
    model = trainer.model.train()
    with trainer.student_maps:
        model(task="detection", **batch)
        added = trainer.added_losses(batch)
        pixels = trainer.student_maps.pixels
    assert set(added) == {"fgd"}
    # the image fills 48 rows and 40 columns of 64, so these cells of a map show it
    student, teacher = (compute_maps(m.model.image_encoder, pixels) for m in (model, wide_teacher))
    boxes = [cxcywh_to_xyxy(label["boxes"]) * torch.tensor([40, 48, 40, 48]) for label in batch["labels"]]
    chosen = [*(range(4) if levels is None else levels), *([4] if last_map else [])]
    assert len(trainer.fgd_losses) == len(chosen)
    expected = 0
    for loss, index in zip(trainer.fgd_losses, chosen):
        size = teacher[index].shape[-1]
        real = torch.zeros(2, size, size, dtype=torch.bool)
        real[:, : -(-48 * size // 64), : -(-40 * size // 64)] = True
        expected += loss(student[index], teacher[index], boxes, (64, 64), real)
    assert loss.align is not None
    torch.testing.assert_close(added["fgd"], expected)


def test_boxes_at_the_edges_of_cells_cover_no_cell_more(tmp_path, processor, wide_teacher):
    """Of these, fractions of the image in fp32 give corners a hair beside the edge of a cell."""
    boxes = torch.cartesian_prod(*[torch.arange(0.0, 41, 8)] * 4)
    boxes = boxes[(boxes[:, :2] < boxes[:, 2:]).all(dim=1)]
    trainer = make_trainer(tmp_path, processor, wide_teacher, fgd=FGDSettings(levels=(0,)))
    pixels = pad_images([random_images(1, 48, 56)[0]], 64, 64)
    size = torch.tensor([56, 48] * 2)
    inexact = cxcywh_to_xyxy(xyxy_to_cxcywh(boxes) / size) * size
    assert (inexact[:, :2] < boxes[:, :2]).any()
    assert (inexact[:, 2:] > boxes[:, 2:]).any()
    with trainer.student_maps, torch.no_grad():
        trainer.model.train()(task="classification", **pixels, labels=torch.tensor([0]))
        maps = (
            trainer.student_maps.maps[0],
            compute_maps(wide_teacher.model.image_encoder, trainer.student_maps.pixels)[0],
        )
        real = torch.zeros(1, 8, 8, dtype=torch.bool)
        real[:, :6, :7] = True
        for box in boxes[None].swapaxes(0, 1):
            labels = [{"class_labels": torch.tensor([0]), "boxes": xyxy_to_cxcywh(box) / size}]
            added = trainer.added_losses(pixels | {"labels": labels})
            torch.testing.assert_close(added["fgd"], trainer.fgd_losses[0](*maps, [box], (64, 64), real))


def test_batches_without_boxes_are_not_distilled(tmp_path, processor, wide_teacher):
    trainer = make_trainer(tmp_path, processor, wide_teacher)
    assert trainer.added_losses({"pixel_values": torch.zeros(2, 3, 64, 64), "labels": torch.tensor([0, 1])}) == {}
    assert trainer.added_losses({"input_ids": torch.zeros(2, 3)}) == {}


def test_two_steps_teach_the_student_and_the_losses_but_not_the_teacher(tmp_path, processor):
    teacher = make_model(processor, **WIDE_TEACHER).train()
    before = copied(teacher)
    trainer = make_trainer(tmp_path, processor, teacher, fgd=FGDSettings(levels=(0, 1), last_map=True))
    losses_before, student_before = copied(trainer.fgd_losses), copied(trainer.model)
    names = set(student_before)
    runs = {"backbone": 0, "heads": 0}
    trainer.model.model.image_encoder.backbone.register_forward_hook(
        lambda *_: runs.update(backbone=runs["backbone"] + 1)
    )
    teacher.model.image_encoder.proposal_network.query_decoder.register_forward_hook(
        lambda *_: runs.update(heads=runs["heads"] + 1)
    )
    modes = []
    teacher.model.image_encoder.proposal_network.pixel_decoder.register_forward_hook(
        lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
    )
    trainer.train()
    assert runs == {"backbone": 2, "heads": 0}
    assert modes == [(False, False)] * 2
    assert equal(copied(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    # a bias that all logits of a softmax share has no gradient
    for name, value in trainer.fgd_losses.state_dict().items():
        if not name.endswith("mask.bias"):
            assert not torch.equal(value, losses_before[name]), name
    assert set(trainer.model.state_dict()) == names
    assert not equal(copied(trainer.model), student_before)
    rows = [row for row in trainer.state.log_history if "loss/detection" in row]
    assert len(rows) == 2
    for row in rows:
        assert 0 < row["loss/detection/fgd"] < row["loss/detection"]

    trainer.save_model(tmp_path / "student")
    for model_class in (UniPerceiverV2ForMultiTask, UniPerceiverV2ForObjectDetection):
        loaded, info = model_class.from_pretrained(tmp_path / "student", output_loading_info=True)
        assert not info["unexpected_keys"]
        assert not info["missing_keys"]
        assert equal(copied(loaded), copied(trainer.model))


def test_an_optimizer_that_is_given_gets_the_losses_once(tmp_path, processor, wide_teacher):
    trainer = make_trainer(tmp_path, processor, wide_teacher)
    trainer.optimizer = torch.optim.AdamW(trainer.model.parameters())
    for _ in range(2):
        held = [id(p) for group in trainer.create_optimizer().param_groups for p in group["params"]]
        assert all(held.count(id(parameter)) == 1 for parameter in trainer.fgd_losses.parameters())


def test_the_student_comes_closer_to_the_teacher(tmp_path, processor):
    """Every update sees all pictures, and nothing but the student can move."""
    settings = FGDSettings(alpha=1.0, beta=1.0, gamma=0.0, lambda_=0.0)
    options = {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8}
    trainer = make_trainer(tmp_path, processor, make_model(processor, **TEACHER), fgd=settings, **options)
    assert all(loss.align is None for loss in trainer.fgd_losses)
    trainer.train()
    terms = [row["loss/detection/fgd"] for row in trainer.state.log_history[:-1]]
    assert terms[-1] < 0.8 * terms[0]


def without_times(log_history):
    return [{k: v for k, v in row.items() if not k.startswith("time_share/")} for row in log_history]


@pytest.mark.slow
def test_a_resumed_run_ends_bit_equal(tmp_path, processor, wide_teacher):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = make_trainer(tmp_path, processor, wide_teacher, **options)
    whole.train()
    resumed = make_trainer(tmp_path, processor, wide_teacher, **options)
    with torch.no_grad():
        for parameter in [*resumed.model.parameters(), *resumed.fgd_losses.parameters()]:
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(copied(resumed.model), copied(whole.model))
    assert equal(copied(resumed.fgd_losses), copied(whole.fgd_losses))
    assert without_times(resumed.state.log_history[:-1]) == without_times(whole.state.log_history[:-1])
    (tmp_path / "checkpoint-2" / "fgd_loss.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="comes from a run without distillation"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_gradients_of_the_losses_are_those_of_one_update(tmp_path, processor, wide_teacher):
    """Neither earlier updates nor steps of other tasks leave a gradient behind."""
    datasets = {"detection": Pictures(), "language_modeling": Texts()}
    trainer = make_trainer(tmp_path, processor, wide_teacher, datasets=datasets)
    trainer.create_optimizer()
    words = processor.tokenizer(["a red circle"], return_tensors="pt")
    text = {
        "input_ids": words["input_ids"],
        "attention_mask": words["attention_mask"],
        "labels": words["input_ids"].clone(),
    }
    text["labels"][:, 0] = -100
    gradients = []
    for position, (task, batch) in enumerate([("detection", detection_batch()), ("language_modeling", text)]):
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(trainer.model, {"position": position, "batches": {task: batch}})
        gradients.append([parameter.grad is not None for parameter in trainer.fgd_losses.parameters()])
    assert all(gradients[0])
    assert not any(gradients[1])


@pytest.mark.slow
def test_two_processes_keep_one_set_of_losses(tmp_path):
    script = Path(__file__).with_name("distillation_toys.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    paths = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in range(2)]
    assert equal(ranks[0]["losses"], ranks[1]["losses"])
    assert equal(ranks[0]["student"], ranks[1]["student"])


def test_bad_setups_are_named(tmp_path, processor, wide_teacher):
    with pytest.raises(ValueError, match=r"different ones of 0 to 3, got \(2, 4\)"):
        make_trainer(tmp_path, processor, wide_teacher, fgd=FGDSettings(levels=(2, 4)))
    with pytest.raises(ValueError, match="nothing to distil"):
        make_trainer(tmp_path, processor, wide_teacher, fgd=FGDSettings(levels=()))
    five = make_model(processor, **TEACHER, proposal_config={"num_feature_levels": 5})
    with pytest.raises(ValueError, match="got 4 and 5"):
        make_trainer(tmp_path, processor, five)
    student = make_model(processor)
    view = UniPerceiverV2ForObjectDetection.from_model(student)
    with pytest.raises(ValueError, match="got a view of it"):
        make_trainer(tmp_path, processor, view, student)


def test_fsdp_is_refused(tmp_path, processor, wide_teacher, monkeypatch):
    build = MultiTaskTrainer.__init__

    def pretend(self, *args, **kwargs):
        build(self, *args, **kwargs)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(MultiTaskTrainer, "__init__", pretend)
    with pytest.raises(ValueError, match="FSDP must be off"):
        make_trainer(tmp_path, processor, wide_teacher)


def test_the_example_of_the_docs_runs(tmp_path, processor):
    page = (ROOT / "docs" / "related_methods.md").read_text()
    section = page.partition("## FGD")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    template = make_trainer(tmp_path, processor, datasets={"detection": Pictures()})
    names = {"args": template.args, "datasets": {"detection": Pictures()}, "processor": processor}
    names |= {"student": make_model(processor), "teacher": make_model(processor, **TEACHER)}
    exec(code, names)
    assert names["trainer"].state.global_step == 2
    assert any("loss/detection/fgd" in row for row in names["trainer"].state.log_history)
