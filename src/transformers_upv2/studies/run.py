"""One run: an arm with a seed, trained and measured.

Started as ``python -m transformers_upv2.studies.run FOLDER ARM SEED``.
"""

import json
import sys
import time
from pathlib import Path

from torch.utils.data import Dataset
from transformers.utils import logging

from transformers_upv2.data.demo_world import World, open_world
from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.detection import DetectionEvaluator
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
from transformers_upv2.evaluation.suite import default_evaluators, evaluate_all
from transformers_upv2.model.distributed import leave_together, rank
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.studies.arms import ARMS, Arm
from transformers_upv2.studies.methods import METHODS, Run
from transformers_upv2.studies.parent import end_with_study
from transformers_upv2.studies.perceived import EncodedImages, perceive_all
from transformers_upv2.studies.settings import StudyPaths
from transformers_upv2.studies.start import start_model
from transformers_upv2.studies.world_model import MAX_CAPTION_TOKENS, freeze_early_layers

EVALUATION_BATCH = 50
PERCEIVED = {"classification": "classification", "captioning": "captioning", "retrieval": "captioning"}
"""Tasks whose images can be perceived once, and the data set that is perceived."""


def train_and_measure(paths: StudyPaths, arm: Arm, seed: int) -> dict[str, float]:
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
    metrics = METHODS[arm.method](Run(paths, arm, seed, model, processor, datasets))
    trained = time.time()
    metrics |= measure(model, processor, {task: world.test[task] for task in arm.tasks})
    return {**metrics, "seconds/training": trained - started, "seconds/evaluation": time.time() - trained}


def perceived_datasets(
    paths: StudyPaths, arm: Arm, model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, world: World
) -> dict[str, Dataset]:
    """The data sets of the tasks that only ask, with every image perceived once."""
    folder = paths.encodings(model.config.image_representation)
    return {
        task: EncodedImages(world.train[task], perceive_all(model, processor, world.train[data], folder / data))
        for task, data in PERCEIVED.items()
        if task in arm.tasks
    }


def measure(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, datasets: dict[str, Dataset]
) -> dict[str, float]:
    """Evaluate on all data sets; one caption an image in retrieval, boxes without masks.

    Where no class was learned, detection is measured as ``proposals``: by the places alone.
    """
    if not model.config.region_loss_weight and "detection" in datasets:
        datasets = {"proposals" if task == "detection" else task: dataset for task, dataset in datasets.items()}
    evaluators = default_evaluators() | {
        "captioning": CaptioningEvaluator(max_new_tokens=MAX_CAPTION_TOKENS),
        "retrieval": RetrievalEvaluator(captions_per_image=1),
        "detection": DetectionEvaluator(with_masks=False),
        "proposals": DetectionEvaluator(with_masks=False, class_agnostic=True),
    }
    return evaluate_all(model.eval(), processor, datasets, evaluators, batch_size=EVALUATION_BATCH)


def main(folder: str, arm_name: str, seed: str) -> None:
    """Run one arm; its figures are written last and whole."""
    logging.set_verbosity_error()
    paths, arm = StudyPaths(Path(folder)), ARMS[arm_name]
    metrics = train_and_measure(paths, arm, int(seed))
    if rank() == 0:
        target = paths.metrics(arm.name, int(seed))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".part")
        unfinished.write_text(json.dumps(metrics, indent=2))
        unfinished.rename(target)


if __name__ == "__main__":
    end_with_study()
    main(*sys.argv[1:])
    leave_together()
