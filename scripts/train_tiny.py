"""Train the shipped tiny checkpoint: `make train-tiny`.

Four stages, as the paper's joint training starts from pretrained encoders: text alone; detection with a Mask DINO that
knows colors and classes, beside text; then, with one foreground logit, all tasks with unmixed sampling and TBGN; then
the same with the image side locked, whose encodings are kept, so that batches can be large. Each stage resumes from
its newest checkpoint. Two processes with one thread each use two cores better than one with two threads:

    torchrun --nproc_per_node 2 scripts/train_tiny.py
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from transformers import RobertaTokenizer

from tiny_recipe import JOINT, LOCKED, RUNS, SHORT, from_encoders_of
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Processor, UniPerceiverV2Trainer
from transformers_upv2.data.demo_world import World
from transformers_upv2.model.distributed import leave_together
from transformers_upv2.studies.perceived import EncodedImages, perceive_all, wait
from transformers_upv2.studies.start import run_stage as train_stage
from transformers_upv2.studies.world_model import (
    ColoredObjects,
    build_model,
    class_agnostic,
    freeze_early_layers,
    load_folder,
    make_trainer,
    prepare_world,
    training_arguments,
)

STAGES = {
    "text": {
        "learning_rate": 1e-3,
        "batch_sizes": {"language_modeling": 64},
        "adam_beta2": 0.99,
        "lr_multipliers": {},
    },
    "detection": {
        "learning_rate": 2e-3,
        "sampling_probabilities": {"detection": 0.75, "language_modeling": 0.25},
        "batch_sizes": {"detection": 8, "language_modeling": 32},
        "adam_beta2": 0.99,
        "lr_multipliers": {"model.image_encoder.backbone": 0.2, "model.decoder": 0.3, "model.text_encoder": 0.3},
    },
    "joint": {"learning_rate": 5e-4, **JOINT},
    "locked": {"learning_rate": 5e-4, **LOCKED},
}


def run_stage(trainer: UniPerceiverV2Trainer, folder: Path) -> None:
    """Train from the newest checkpoint of the stage, if there is one, and save the result as ``folder/final``."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "begun"
    if not begun.exists():
        begun.touch()  # its time survives an interruption
    train_stage(trainer, folder)
    if trainer.is_world_process_zero():
        record = {"seconds": round(time.time() - begun.stat().st_mtime), "log_history": trainer.state.log_history}
        (folder / "history.json").write_text(json.dumps(record))


def run_text(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, world: World, steps: int, out: Path
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Train the text encoder and the unified decoder on text alone, and return the result.

    Words must differ before an image is asked for them: the candidates of words that nothing tells apart yet, such as
    colors, fall onto one point and find no way out.
    """
    folder = out / "text"
    if not (folder / "final").exists():
        model.model.image_encoder.requires_grad_(False)
        datasets = {"language_modeling": world.train["language_modeling"]}
        arguments = training_arguments(folder, max_steps=steps, **STAGES["text"])
        run_stage(make_trainer(model, processor, datasets, arguments), folder)
    wait()
    return load_folder(folder / "final")


def run_locked(
    model: UniPerceiverV2ForMultiTask,
    processor: UniPerceiverV2Processor,
    world: World,
    settings: dict[str, Any],
    out: Path,
) -> None:
    """Train what asks, with the image side locked: every image of captions, pairs and classes is perceived once."""
    model.model.image_encoder.requires_grad_(False)
    encodings = {
        name: perceive_all(model, processor, world.train[name], out / "encodings" / name)
        for name in ("captioning", "classification")
    }
    encodings["retrieval"] = encodings["captioning"]  # the same scenes
    encoded = {task: EncodedImages(world.train[task], encoding) for task, encoding in encodings.items()}
    arguments = training_arguments(out / "locked", **settings)
    run_stage(make_trainer(model, processor, world.train | encoded, arguments), out / "locked")


def main() -> None:
    """Run all stages, or what is left of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "train_tiny")
    parser.add_argument("--world", type=Path, default=RUNS / "world")
    parser.add_argument("--text-steps", type=int, default=400)
    parser.add_argument("--detection-steps", type=int, default=2400)
    parser.add_argument("--joint-steps", type=int, default=1500)
    parser.add_argument("--locked-steps", type=int, default=2700)
    parser.add_argument(
        "--encoders",
        type=Path,
        help="the demo's run: take the encoders of a checkpoint and run the first and the last stage alone",
    )
    options = parser.parse_args()
    out = options.out
    world = prepare_world(options.world)
    if options.encoders:
        model, processor = from_encoders_of(options.encoders, world)
        model, processor = run_text(model, processor, world, options.text_steps, out)
        run_locked(model, processor, world, SHORT | {"max_steps": options.locked_steps}, out)
        return
    colored = ColoredObjects(world.train["detection"])
    model, processor = build_model(world, RobertaTokenizer.from_pretrained(world.paths.tokenizer), colored.class_names)
    model, processor = run_text(model, processor, world, options.text_steps, out)
    if not (out / "detection" / "final").exists():
        freeze_early_layers(model)
        datasets = {"detection": colored, "language_modeling": world.train["language_modeling"]}
        arguments = training_arguments(out / "detection", options.detection_steps, **STAGES["detection"])
        run_stage(make_trainer(model, processor, datasets, arguments), out / "detection")
    wait()
    if not (out / "joint" / "final").exists():
        model, processor = class_agnostic(out / "detection" / "final", world)
        freeze_early_layers(model)
        arguments = training_arguments(out / "joint", options.joint_steps, **STAGES["joint"])
        run_stage(make_trainer(model, processor, world.train, arguments), out / "joint")
    wait()
    model, processor = load_folder(out / "joint" / "final")
    run_locked(model, processor, world, STAGES["locked"] | {"max_steps": options.locked_steps}, out)


if __name__ == "__main__":
    main()
    leave_together()
