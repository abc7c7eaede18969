"""What the arms start from: pretrained parts, made once.

As in the paper the encoders are pretrained and the unified decoder is new; it learns text alone, without experts,
before it meets images. For the study of the image side, this learns from there to detect colored objects.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import RobertaTokenizer

from transformers_upv2.data.demo_world import World, open_world
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.distributed import rank
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.studies.arms import Arm
from transformers_upv2.studies.perceived import wait
from transformers_upv2.studies.settings import StudyPaths
from transformers_upv2.studies.world_model import (
    ColoredObjects,
    build_model,
    class_agnostic,
    freeze_early_layers,
    load_folder,
    make_trainer,
    training_arguments,
)
from transformers_upv2.training.checkpoints import newest_checkpoint
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

TEXT: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_sizes": {"language_modeling": 64},
    "adam_beta2": 0.99,
    "lr_multipliers": {},
}
"""Training arguments of the text stage."""
DETECTION: dict[str, Any] = {
    "learning_rate": 2e-3,
    "batch_sizes": {"detection": 8},
    "adam_beta2": 0.99,
    "lr_multipliers": {"model.image_encoder.backbone": 0.2},
}
"""Training arguments of the detection stage."""
_DENSE = {"num_experts": 1, "num_experts_per_group": 1}
IMAGE_SIDE = "model.image_encoder."
_EXPERTS = {"num_experts": 8, "num_experts_per_group": 2}


def run_stage(trainer: UniPerceiverV2Trainer, folder: Path) -> None:
    """Train from the newest checkpoint of the stage, if there is one, and save the result as ``folder/final``.

    Whoever is killed while saving leaves no ``final`` behind.
    """
    trainer.train(resume_from_checkpoint=newest_checkpoint(folder))
    unfinished = folder / "unfinished"
    trainer.save_model(str(unfinished))
    if rank() == 0:
        shutil.rmtree(folder / "final", ignore_errors=True)
        unfinished.rename(folder / "final")


def make_parts(paths: StudyPaths, arms: Sequence[Arm]) -> None:
    """Train the parts that the arms need and that are not there yet."""
    world = open_world(paths.world)
    _make_text_part(paths, world)
    wait()
    if any(arm.start == "detection" for arm in arms) and not paths.detection_part.exists():
        _make_detection_part(paths, world)
    wait()


def _make_text_part(paths: StudyPaths, world: World) -> None:
    """Teach a new g and the checkpoint's text encoder the world's text; the backbone is ImageNet's, all else new."""
    folder = paths.text_part.parent
    if paths.text_part.exists():
        return
    settings = paths.read_settings()
    tokenizer = RobertaTokenizer.from_pretrained(settings.encoders)
    model, processor = build_model(world, tokenizer, decoder_config=_DENSE)
    source = UniPerceiverV2ForMultiTask.from_pretrained(settings.encoders)
    model.model.text_encoder.load_state_dict(source.model.text_encoder.state_dict())
    model.model.image_encoder.requires_grad_(False)
    text = {"language_modeling": world.train["language_modeling"]}
    run_stage(make_trainer(model, processor, text, training_arguments(folder, settings.text_updates, **TEXT)), folder)


def _make_detection_part(paths: StudyPaths, world: World) -> None:
    """Teach the image side to detect as a Mask DINO that knows colors and classes, then with one foreground logit."""
    settings = paths.read_settings()
    folder = paths.root / "parts" / "detection"
    colored = ColoredObjects(world.train["detection"])  # type: ignore[arg-type]
    if not (folder / "final").exists():
        source, processor = load_folder(paths.text_part)
        model, _ = build_model(world, processor.tokenizer, colored.class_names, decoder_config=_DENSE)
        _copy_parts(model, source.state_dict())
        _train_proposals(model, processor, colored, folder, settings.detection_updates)
    wait()
    torch.manual_seed(0)
    model, processor = class_agnostic(folder / "final", world)
    freeze_early_layers(model)
    scenes = world.train["detection"]
    _train_proposals(model, processor, scenes, paths.detection_part.parent, settings.foreground_updates)


def _train_proposals(
    model: UniPerceiverV2ForMultiTask,
    processor: UniPerceiverV2Processor,
    scenes: Dataset,
    folder: Path,
    updates: int,
) -> None:
    """Train the proposal network alone; g answers for nothing."""
    model.config.region_loss_weight = 0.0
    arguments = training_arguments(folder, updates, **DETECTION)
    run_stage(make_trainer(model, processor, {"detection": scenes}, arguments), folder)


def start_model(
    paths: StudyPaths, arm: Arm, world: World, seed: int = 0
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build the model of an arm from the parts; what they do not have, or have in another shape, is new."""
    checkpoint = UniPerceiverV2ForMultiTask.from_pretrained(paths.read_settings().encoders)
    source, processor = load_folder(paths.detection_part if arm.start == "detection" else paths.text_part)
    parts = {
        name: value
        for name, value in source.state_dict().items()
        if not (arm.start == "scratch" and name.startswith(IMAGE_SIDE))
    }
    if arm.start == "encoders":
        parts |= {name: value for name, value in checkpoint.state_dict().items() if name.startswith(IMAGE_SIDE)}
    fields = source.config.to_dict() | {"region_loss_weight": checkpoint.config.region_loss_weight}
    for name, value in {"decoder_config": _EXPERTS, **arm.config}.items():
        is_changed = isinstance(value, Mapping) and "model_type" not in value
        fields[name] = {**fields[name], **value} if is_changed else value
    torch.manual_seed(seed)
    model = UniPerceiverV2ForMultiTask(UniPerceiverV2Config.from_dict(fields))
    _copy_parts(model, parts)
    for task in ("classification", "detection"):
        model.set_labels(world.class_names, processor.tokenizer, label_set=task)
    return model, processor


def _copy_parts(model: UniPerceiverV2ForMultiTask, parts: Mapping[str, Tensor]) -> None:
    """Copy what fits; the one dense expert becomes every expert, which leaves the network as it is."""
    own = model.state_dict()
    for name, value in parts.items():
        target = own.get(name)
        if (
            target is not None
            and target.dim() == value.dim()
            and value.shape in (target.shape, (1, *target.shape[1:]))
        ):
            target.copy_(value)
