"""How an arm is trained, by the name of its method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from transformers_upv2.evaluation.linear_probe import linear_probe
from transformers_upv2.model.distributed import world_size
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.studies.arms import Arm
from transformers_upv2.studies.settings import StudyPaths
from transformers_upv2.studies.world_model import load_folder, make_trainer, training_arguments
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.distillation import DistillationTrainer
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "adam_beta1": 0.97,
    "adam_beta2": 0.99,
    "save_strategy": "no",
    "disable_tqdm": True,
    "logging_steps": 10,
}
"""Training arguments of all arms; what differs is an arm's own."""
BATCH_SIZES = {"detection": 8, "classification": 32, "captioning": 64, "retrieval": 64}
"""Of an update with a locked image side; one that learns has a quarter of the images that are only asked about."""
TASK_WEIGHTS = {"detection": 4.0, "captioning": 4.0, "retrieval": 4.0}
"""ω_k, as the shipped checkpoint's; TBGN only."""
TEXT_MULTIPLIER = {"model.text_encoder": 0.3}
BACKBONE_MULTIPLIER = {"model.image_encoder.backbone": 0.2}
FIRST_UNSEEN_DIGIT = 6


@dataclass(frozen=True)
class Run:
    """An arm with a seed, ready to be trained."""

    paths: StudyPaths
    arm: Arm
    seed: int
    model: UniPerceiverV2ForMultiTask
    processor: UniPerceiverV2Processor
    datasets: Mapping[str, Dataset]

    def train(
        self,
        trainer_class: type[UniPerceiverV2Trainer] = UniPerceiverV2Trainer,
        lr_multipliers: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        """Train in place.

        Args:
            trainer_class: The Trainer.
            lr_multipliers: In place of the arm's.
            **options: Further arguments of the Trainer.
        """
        arguments = self.arguments()
        if lr_multipliers is not None:
            arguments.lr_multipliers = dict(lr_multipliers)
        make_trainer(self.model, self.processor, self.datasets, arguments, trainer_class, **options).train()

    def arguments(self) -> UniPerceiverV2TrainingArguments:
        """Put the arguments together; every task has as many batches in all, whatever the sampling."""
        arm = self.arm
        mixed = arm.arguments.get("sampling") == "mixed"
        per_task = round(self.paths.read_settings().updates_per_task * arm.rounds)
        uses_tbgn = arm.arguments.get("optimizer", "tbgn") == "tbgn"
        options = {
            "batch_sizes": {task: self._batch_size(task) for task in arm.tasks},
            "task_weights": {task: TASK_WEIGHTS.get(task, 1.0) for task in arm.tasks} if uses_tbgn else None,
            "lr_multipliers": TEXT_MULTIPLIER | ({} if arm.locked else BACKBONE_MULTIPLIER),
            "seed": self.seed,
        }
        folder = self.paths.run(arm.name, self.seed)
        updates = per_task * (1 if mixed else len(arm.tasks))
        return training_arguments(folder, updates, **COMMON | options | dict(arm.arguments))

    def _batch_size(self, task: str) -> int:
        """Samples of a task on each process."""
        learns = not self.arm.locked and task != "detection"
        return max(2, BATCH_SIZES[task] // (4 if learns else 1) // world_size())


def train_plainly(run: Run) -> dict[str, float]:
    """Train as the arm says."""
    run.train()
    return {}


def train_distilled(run: Run) -> dict[str, float]:
    """Train with the pretrained encoders' checkpoint as the teacher."""
    teacher, _ = load_folder(run.paths.read_settings().encoders)
    run.train(DistillationTrainer, teacher=teacher)
    return {}


def train_visft(run: Run) -> dict[str, float]:
    """Train the heads on the frozen backbone, then LoRA in the backbone under frozen heads, and probe the result."""
    from transformers_upv2.training.visft import adapt_encoder, freeze_encoder, merge_encoder

    freeze_encoder(run.model)
    run.train(lr_multipliers=TEXT_MULTIPLIER)
    adapt_encoder(run.model, layers="pointwise")
    run.train(lr_multipliers={})
    merge_encoder(run.model)
    return probe(run)


def probe(run: Run) -> dict[str, float]:
    """Tell scikit-learn's handwritten six to nine, none of which is in the world, apart by the backbone's features."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = digits.target >= FIRST_UNSEEN_DIGIT
    labels = (digits.target[chosen] - FIRST_UNSEEN_DIGIT).tolist()
    images = [
        Image.fromarray((16 * image).clip(0, 255).astype("uint8")).convert("RGB") for image in digits.images[chosen]
    ]
    half = len(images) // 2
    data = (images[:half], labels[:half], images[half:], labels[half:])
    return {"probe/accuracy": linear_probe(run.model, run.processor, *data)}


METHODS: dict[str, Callable[[Run], dict[str, float]]] = {
    "plain": train_plainly,
    "distilled": train_distilled,
    "visft": train_visft,
    "untrained": probe,
}
"""What each method does; the figures that it returns are added to those of the tasks."""
