"""What all arms start from: pretrained parts, made once.

The text encoder and g learn text alone, without experts; from there the image side learns to detect colored objects.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import RobertaTokenizer
from transformers.trainer_utils import get_last_checkpoint

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
    "sampling_probabilities": {"detection": 0.75, "language_modeling": 0.25},
    "batch_sizes": {"detection": 8, "language_modeling": 32},
    "adam_beta2": 0.99,
    "lr_multipliers": {"model.image_encoder.backbone": 0.2, "model.decoder": 0.3, "model.text_encoder": 0.3},
}
"""Training arguments of the detection stage."""
_DENSE = {"num_experts": 1, "num_experts_per_group": 1}
_EXPERTS = {"num_experts": 8, "num_experts_per_group": 2}


def run_stage(trainer: UniPerceiverV2Trainer, folder: Path) -> None:
    """Train from the newest checkpoint of the stage, if there is one, and save the result as ``folder/final``."""
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
    trainer.save_model(str(folder / "final"))


def make_parts(paths: StudyPaths) -> None:
    """Train the parts that are not there yet."""
    settings = paths.read_settings()
    world = open_world(paths.world)
    colored = ColoredObjects(world.train["detection"])  # type: ignore[arg-type]
    text = {"language_modeling": world.train["language_modeling"]}
    if not paths.text_part.exists():
        tokenizer = RobertaTokenizer.from_pretrained(world.paths.tokenizer)
        model, processor = build_model(world, tokenizer, colored.class_names, decoder_config=_DENSE)
        model.model.image_encoder.requires_grad_(False)
        folder = paths.text_part.parent
        arguments = training_arguments(folder, settings.text_updates, **TEXT)
        run_stage(make_trainer(model, processor, text, arguments), folder)
    wait()
    detector = paths.root / "parts" / "detection"
    if not (detector / "final").exists():
        model, processor = load_folder(paths.text_part)
        freeze_early_layers(model)
        arguments = training_arguments(detector, settings.detection_updates, **DETECTION)
        run_stage(make_trainer(model, processor, {"detection": colored, **text}, arguments), detector)
    wait()
    if rank() == 0 and not paths.detection_part.exists():
        model, processor = class_agnostic(detector / "final", world)
        model.save_pretrained(paths.detection_part)
        processor.save_pretrained(paths.detection_part)
    wait()


def start_model(
    paths: StudyPaths, arm: Arm, world: World, seed: int = 0
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build the model of an arm from the parts; what they do not have, or have in another shape, is new."""
    part = paths.detection_part if arm.start == "detection" else paths.text_part
    source, processor = load_folder(part)
    fields = source.config.to_dict()
    for name, value in {"proposal_config": {"num_classes": 1}, "decoder_config": _EXPERTS, **arm.config}.items():
        fields[name] = {**fields[name], **value} if isinstance(value, Mapping) else value
    torch.manual_seed(seed)
    model = UniPerceiverV2ForMultiTask(UniPerceiverV2Config.from_dict(fields))
    own = model.state_dict()
    for name, value in source.state_dict().items():
        if name in own and not (arm.start == "scratch" and name.startswith("model.image_encoder.")):
            _copy_part(own[name], value)
    for task in ("classification", "detection"):
        model.set_labels(world.class_names, processor.tokenizer, label_set=task)
    return model, processor


def _copy_part(target: Tensor, value: Tensor) -> None:
    """Copy a tensor if it fits; the one dense expert becomes every expert, which leaves the network as it is."""
    if target.shape == value.shape or (value.dim() == target.dim() and value.shape == (1, *target.shape[1:])):
        target.copy_(value)
