"""Train the shipped tiny checkpoint: `make train-tiny`.

Two stages, as the paper's joint training starts from a detection-pretrained image side: detection alone, with a Mask
DINO that knows the classes; then, with one foreground logit, all tasks with unmixed sampling and TBGN. Each stage
resumes from its newest checkpoint. Two processes with one thread each use two cores better than one with two threads:

    torchrun --nproc_per_node 2 scripts/train_tiny.py
"""

import argparse
import json
import time
from pathlib import Path

import torch.distributed as dist
from transformers.trainer_utils import get_last_checkpoint

from tiny_recipe import (
    IMAGE_SIZE,
    JOINT,
    RUNS,
    SHORT,
    ColoredObjects,
    build_model,
    class_agnostic,
    freeze_early_layers,
    image_side_of,
    make_trainer,
    prepare_world,
    training_arguments,
)
from transformers_upv2 import UniPerceiverV2Trainer

STAGES = {
    "detection": {
        "learning_rate": 2e-3,
        "batch_sizes": {"detection": 8},
        "adam_beta2": 0.99,
        "lr_multipliers": {"model.image_encoder.backbone": 0.2, "model.decoder": 0.3, "model.text_encoder": 0.3},
    },
    "joint": {"learning_rate": 5e-4, **JOINT},
}


def run_stage(trainer: UniPerceiverV2Trainer, folder: Path) -> None:
    """Train from the newest checkpoint of the stage, if there is one, and save the result as ``folder/final``."""
    started = time.time()
    checkpoint = get_last_checkpoint(str(folder)) if folder.exists() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(folder / "final"))
    if trainer.is_world_process_zero():
        record = {"seconds": round(time.time() - started), "log_history": trainer.state.log_history}
        (folder / "history.json").write_text(json.dumps(record))


def main() -> None:
    """Run both stages, or what is left of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "train_tiny")
    parser.add_argument("--world", type=Path, default=RUNS / "world")
    parser.add_argument("--detection-steps", type=int, default=1500)
    parser.add_argument("--joint-steps", type=int, default=3200)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="a smaller one trains faster")
    parser.add_argument(
        "--image-side",
        type=Path,
        help="a checkpoint whose backbone and proposal network are taken; the first stage is left out",
    )
    options = parser.parse_args()
    arguments = {
        "detection": training_arguments(options.out / "detection", options.detection_steps, **STAGES["detection"]),
        "joint": training_arguments(options.out / "joint", options.joint_steps, **STAGES["joint"]),
    }
    world = prepare_world(options.world)
    if options.image_side:
        model, processor = image_side_of(options.image_side, world, options.image_size)
        freeze_early_layers(model)
        short = training_arguments(options.out / "joint", options.joint_steps, **SHORT)
        run_stage(make_trainer(model, processor, world.train, short), options.out / "joint")
        return
    colored = ColoredObjects(world.train["detection"])
    model, processor = build_model(world, options.image_size, colored.class_names)
    if not (options.out / "detection" / "final").exists():
        trainer = make_trainer(model, processor, {"detection": colored}, arguments["detection"])
        run_stage(trainer, options.out / "detection")
    if dist.is_initialized():
        dist.barrier()
    model, processor = class_agnostic(options.out / "detection" / "final", world)
    freeze_early_layers(model)
    run_stage(make_trainer(model, processor, world.train, arguments["joint"]), options.out / "joint")


if __name__ == "__main__":
    main()
