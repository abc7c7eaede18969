"""UniPerceiverV2Trainer: the multi-task Trainer with our data sets, collators and evaluators."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from transformers import ProcessorMixin
from transformers.trainer_utils import denumpify_detensorize
from typing_extensions import override

from transformers_upv2.data.class_names import require_equal_classes, require_known_classes
from transformers_upv2.data.multitask_dataset import TaskDataset, Transform, prepare_example
from transformers_upv2.model.tasks import get_task
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.collator import UniPerceiverV2Collator
from transformers_upv2.training.loader import require_by_name
from transformers_upv2.training.streams import PrepareExample
from transformers_upv2.training.trainer import MultiTaskTrainer

EvaluatorCall = Callable[..., dict[str, float]]


class UniPerceiverV2Trainer(MultiTaskTrainer):
    """Trains ``UniPerceiverV2ForMultiTask``.

    Args:
        model: The model.
        args: The arguments.
        train_dataset: For every task a reader's data set, map-style or streamed, or several as
            ``{name: dataset}`` or ``{name: (dataset, weight)}``, drawn in proportion to the
            weights, by default to the root of the size.
        eval_dataset: Data sets named ``"task"`` or ``"task/name"``, such as
            ``"retrieval/flickr30k"``.
        evaluators: The evaluator of every task that is evaluated; it is called on every process.
        processing_class: The processor; it is saved with the model.
        transforms: Augmentation of each task, called as ``transform(example, rng)``.
        **kwargs: Further arguments of ``transformers.Trainer``.

    Raises:
        ValueError: If there is no such task, the arguments do not fit the tasks, or the model's labels are not the
            classes of the training data.
        DataError: If a label means different classes in the data sets of a task.
    """

    args: UniPerceiverV2TrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: UniPerceiverV2TrainingArguments,
        train_dataset: Mapping[str, Any] | None = None,
        eval_dataset: Mapping[str, Dataset] | None = None,
        evaluators: Mapping[str, EvaluatorCall] | None = None,
        processing_class: ProcessorMixin | None = None,
        transforms: Mapping[str, Transform] | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("`processing_class` must be a processor, got None.")
        if train_dataset is not None:
            require_by_name(train_dataset, "train_dataset", "tasks")
        self.evaluators = dict(evaluators or {})
        self.transforms = dict(transforms or {})
        for name in [*(train_dataset or {}), *self.evaluators, *self.transforms]:
            get_task(name)
        for task, dataset in (train_dataset or {}).items():
            members = dataset if isinstance(dataset, Mapping) else {"": dataset}
            require_equal_classes(task, members)
            _require_labels_of_data(model, task, members)
        image_options: Any = args.image_options or {}
        collators = {
            task: UniPerceiverV2Collator(
                processing_class,
                task,
                image_options.get(task),
                args.max_text_length,
                args.mask_probability,
            )
            for task in train_dataset or {}
        }
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            data_collators=collators,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )

    @override
    def drawn_dataset(self, task: str, dataset: Any) -> Dataset:
        return TaskDataset(
            dataset,
            task,
            self.data_seed,
            self.transforms.get(task),
            self.args.max_bad_samples,
        )

    @override
    def example_preparation(self, task: str) -> PrepareExample:
        return partial(prepare_example, seed=self.data_seed, task=task, transform=self.transforms.get(task))

    @override
    def evaluate_task(
        self, task: str, dataset: Dataset, prefix: str, ignore_keys: list[str] | None = None
    ) -> dict[str, float]:
        """Evaluate on one data set; the evaluator is called on every process and answers for the whole."""
        if task not in self.evaluators:
            raise ValueError(
                f"`evaluators` must have an entry for every task in `eval_dataset`, none for {task!r}, "
                f"only for {sorted(self.evaluators)}."
            )
        results = self.evaluators[task](
            self.model,
            self.processing_class,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            progress=not self.args.disable_tqdm,
        )
        # a number of numpy or torch would be left out of curves, and cannot be saved in a checkpoint
        metrics = {f"{prefix}/{name}": denumpify_detensorize(value) for name, value in results.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _require_labels_of_data(model: nn.Module, task: str, members: Mapping[str, Any]) -> None:
    """Check the label set of a task, if it has one; a model that is not ours may have none at all."""
    label_sets = getattr(getattr(model, "config", None), "label_sets", None)
    label_set = get_task(task).label_set
    if label_sets is not None and label_set is not None:
        require_known_classes(task, members, label_sets.get(label_set, {}).get("names", []))
