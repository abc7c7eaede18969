"""One run: an arm with a seed, trained and measured.

python -m transformers_upv2.studies.run FOLDER ARM SEED
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from transformers_upv2.data.demo_world import World, open_world
from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.detection import DetectionEvaluator
from transformers_upv2.evaluation.linear_probe import linear_probe
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
from transformers_upv2.evaluation.suite import default_evaluators, evaluate_all
from transformers_upv2.model.distributed import leave_together, rank, world_size
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.studies.arms import ARMS, Arm
from transformers_upv2.studies.perceived import EncodedImages, perceive_all
from transformers_upv2.studies.settings import StudyPaths
from transformers_upv2.studies.start import start_model
from transformers_upv2.studies.world_model import (
    MAX_CAPTION_TOKENS,
    freeze_early_layers,
    load_folder,
    make_trainer,
    training_arguments,
)
from transformers_upv2.training.distillation import DistillationTrainer

COMMON: dict[str, Any] = {"learning_rate": 1e-3, "adam_beta1": 0.97, "adam_beta2": 0.99, "save_strategy": "no"}
"""Training arguments of all arms; what differs is an arm's own."""
BATCH_SIZES = {"detection": 8, "classification": 32, "captioning": 64, "retrieval": 64}
"""Of a whole update; an image side that learns has a quarter of the asked images."""
TASK_WEIGHTS = {"detection": 4.0, "captioning": 4.0, "retrieval": 4.0}
LR_MULTIPLIERS = {"model.text_encoder": 0.3}
BACKBONE_MULTIPLIER = {"model.image_encoder.backbone": 0.2}
EVALUATION_BATCH = 50
FIRST_UNSEEN_DIGIT = 6
DATA = {"classification": "classification", "captioning": "captioning", "retrieval": "captioning"}
"""Tasks whose images can be perceived once, and the data set that is perceived."""


def run(paths: StudyPaths, arm: Arm, seed: int) -> dict[str, float]:
    """Train an arm and evaluate it on the test split of its tasks."""
    started = time.time()
    world = open_world(paths.world)
    model, processor = start_model(paths, arm, world, seed)
    datasets = {task: world.train[task] for task in arm.tasks}
    if arm.locked:
        model.model.image_encoder.requires_grad_(False)
        datasets |= perceived_datasets(paths, arm, model, processor, world)
    elif arm.start != "scratch" and "backbone_config" not in arm.config:
        freeze_early_layers(model)
    metrics = RECIPES[arm.recipe](paths, arm, seed, model, processor, datasets) or {}
    trained = time.time()
    metrics |= measure(model, processor, {task: world.test[task] for task in arm.tasks})
    return {**metrics, "seconds/training": trained - started, "seconds/evaluation": time.time() - trained}


def train_plainly(*run: Any) -> None:
    """Train as the arm says."""
    paths, arm, seed, model, processor, datasets = run
    make_trainer(model, processor, datasets, arguments_of(paths, arm, seed)).train()


def train_distilled(*run: Any) -> None:
    """Train with the pretrained detector as the teacher."""
    paths, arm, seed, model, processor, datasets = run
    teacher, _ = load_folder(paths.detection_part)
    arguments = arguments_of(paths, arm, seed)
    make_trainer(model, processor, datasets, arguments, DistillationTrainer, teacher=teacher).train()


def train_visft(*run: Any) -> dict[str, float]:
    """Train the heads on the frozen backbone, then LoRA in the backbone on frozen heads, and probe it."""
    from transformers_upv2.training.visft import adapt_encoder, freeze_encoder, merge_encoder

    paths, arm, seed, model, processor, datasets = run
    freeze_encoder(model)
    arguments = arguments_of(paths, arm, seed, lr_multipliers=LR_MULTIPLIERS)
    make_trainer(model, processor, datasets, arguments).train()
    adapt_encoder(model, layers="pointwise")
    arguments = arguments_of(paths, arm, seed, lr_multipliers={})
    make_trainer(model, processor, datasets, arguments).train()
    merge_encoder(model)
    return probe(model, processor)


def leave_untrained(*run: Any) -> dict[str, float]:
    """Probe what the arm starts from."""
    _, _, _, model, processor, _ = run
    return probe(model, processor)


RECIPES: dict[str, Callable[..., dict[str, float] | None]] = {
    "plain": train_plainly,
    "distilled": train_distilled,
    "visft": train_visft,
    "untrained": leave_untrained,
}
"""How an arm is trained; what it returns are further metrics."""


def probe(model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor) -> dict[str, float]:
    """Tell scikit-learn's handwritten six to nine, none of which is in the world, apart by the backbone's features."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = digits.target >= FIRST_UNSEEN_DIGIT
    images = [
        Image.fromarray((16 * digit).clip(0, 255).astype("uint8")).convert("RGB") for digit in digits.images[chosen]
    ]
    labels = (digits.target[chosen] - FIRST_UNSEEN_DIGIT).tolist()
    half = len(images) // 2
    accuracy = linear_probe(model, processor, images[:half], labels[:half], images[half:], labels[half:])
    return {"probe/accuracy": accuracy}


def arguments_of(paths: StudyPaths, arm: Arm, seed: int, **changes: Any) -> Any:
    """Training arguments: the common ones, the arm's, and changes of one stage."""
    mixed = arm.arguments.get("sampling") == "mixed"
    updates = paths.read_settings().updates_per_task * arm.rounds * (1 if mixed else len(arm.tasks))
    tbgn = arm.arguments.get("optimizer") != "adamw"
    shrink = world_size() * (1 if arm.locked else 4)
    options = {
        "batch_sizes": {
            task: max(2, BATCH_SIZES[task] // (world_size() if task == "detection" else shrink)) for task in arm.tasks
        },
        "task_weights": {task: TASK_WEIGHTS.get(task, 1.0) for task in arm.tasks} if tbgn else None,
        "lr_multipliers": LR_MULTIPLIERS | ({} if arm.locked else BACKBONE_MULTIPLIER),
        "seed": seed,
        "disable_tqdm": True,
        "logging_steps": 10,
    }
    return training_arguments(paths.run(arm.name, seed), updates, **COMMON | options | dict(arm.arguments) | changes)


def perceived_datasets(
    paths: StudyPaths, arm: Arm, model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, world: World
) -> dict[str, Dataset]:
    """The data sets of the tasks that only ask, with every image perceived once."""
    folder = paths.encodings(model.config.image_representation)
    return {
        task: EncodedImages(world.train[task], perceive_all(model, processor, world.train[data], folder / data))
        for task, data in DATA.items()
        if task in arm.tasks
    }


def measure(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, datasets: dict[str, Dataset]
) -> dict[str, float]:
    """Evaluate on all data sets; one caption an image in retrieval, boxes without masks."""
    evaluators = default_evaluators() | {
        "captioning": CaptioningEvaluator(max_new_tokens=MAX_CAPTION_TOKENS),
        "retrieval": RetrievalEvaluator(captions_per_image=1),
        "detection": DetectionEvaluator(with_masks=False),
    }
    return evaluate_all(model.eval(), processor, datasets, evaluators, batch_size=EVALUATION_BATCH)


def main(folder: str, arm_name: str, seed: str) -> None:
    """Run one arm unless its figures are there; they are written last and whole."""
    logging.set_verbosity_error()
    paths, arm = StudyPaths(Path(folder)), ARMS[arm_name]
    metrics = run(paths, arm, int(seed))
    if rank() == 0:
        target = paths.metrics(arm.name, int(seed))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".part")
        unfinished.write_text(json.dumps(metrics, indent=2))
        unfinished.rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave_together()
