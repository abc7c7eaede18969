"""MultiTaskTrainer: ``transformers.Trainer`` for any model and a dict of tasks.

Reference: Uni-Perceiver v2, section 4.4 (https://arxiv.org/abs/2211.09808).
Everything random is keyed by the seed and a running number, so nothing but weights, optimizer and
the number of the update has to be saved: a resumed run does what the killed one would have done.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import ProgressCallback, Trainer, default_data_collator
from transformers.trainer_utils import PredictionOutput, TrainOutput
from typing_extensions import override

from transformers_upv2.data.multitask_dataset import WeightedConcat
from transformers_upv2.training.arguments import MultiTaskTrainingArguments
from transformers_upv2.training.callbacks import (
    TaskLogCallback,
    TaskProgressCallback,
    base_learning_rate,
    samples_seen,
)
from transformers_upv2.training.checkpoints import AtomicCheckpoints
from transformers_upv2.training.dead_workers import explain_dead_workers
from transformers_upv2.training.drafted_card import DraftedCard
from transformers_upv2.training.launchers import require_supported_launcher
from transformers_upv2.training.loader import (
    JoinedBatches,
    NumberedBatches,
    SeededDataset,
    StreamedTaskBatches,
    TaskBatches,
    datasets_of_task,
    load_positions,
    only_item,
    require_by_name,
    save_positions,
)
from transformers_upv2.training.model_arguments import extra_arguments
from transformers_upv2.training.optimizer import TaskBalancedAdamW
from transformers_upv2.training.parameter_groups import parameter_groups
from transformers_upv2.training.sampler import DrawSampler, UnmixedTaskSampler, WeightedDrawSampler
from transformers_upv2.training.seeding import seed_from, seed_global_generators
from transformers_upv2.training.streams import PrepareExample, ShuffledStream, Stream, StreamedBatches, own_share

Collator = Callable[[list[Any]], dict[str, Any]]

MIXED = "mixed"


class MultiTaskTrainer(AtomicCheckpoints, DraftedCard, Trainer):
    """Trains one model on several tasks, one task an update (or all, with ``sampling="mixed"``).

    Args:
        model: Any model whose outputs hold a ``loss``. It is called as ``model(task=..., **batch)``
            if its ``forward`` names the argument ``task``, else as ``model(**batch)``; the same
            holds for ``step_seed``, a seed that is equal on all ranks and new in every micro-batch.
            ``loss_terms`` in the outputs, a dict of scalars, is logged.
        args: The arguments.
        train_dataset: The data set of every task, map-style or streamed, or several as
            ``{name: dataset}`` or ``{name: (dataset, weight)}``; see ``training/loader.py``.
        data_collators: The collator of every task, or one for all.
        eval_dataset: Data sets for evaluation, named ``"task"`` or ``"task/name"``.
        **kwargs: Further arguments of ``transformers.Trainer``.

    Raises:
        ValueError: If the arguments do not fit the tasks, or for a launcher that is not supported.
    """

    args: MultiTaskTrainingArguments
    train_dataset: Any  # task -> data set
    eval_dataset: Any  # name -> data set
    optimizer: Any  # None before training

    def __init__(
        self,
        model: nn.Module,
        args: MultiTaskTrainingArguments,
        train_dataset: Mapping[str, Any] | None = None,
        data_collators: Mapping[str, Collator] | Collator | None = None,
        eval_dataset: Mapping[str, Dataset] | None = None,
        **kwargs: Any,
    ) -> None:
        if train_dataset is not None:
            require_by_name(train_dataset, "train_dataset", "tasks")
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        require_supported_launcher(self)
        self.task_args = args.for_tasks(train_dataset or {}) if train_dataset else {}
        self.data_collators = data_collators or default_data_collator
        self.data_seed = args.seed if args.data_seed is None else args.data_seed
        self.task_streams: dict[str, StreamedTaskBatches] = {}
        self._extra_arguments = extra_arguments(self.accelerator.unwrap_model(model))
        self.add_callback(TaskLogCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(TaskProgressCallback)

    @override
    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as ``transformers.Trainer`` does.

        Raises:
            RuntimeError: If a loader worker dies.
        """
        with explain_dead_workers(self._forget_loaders):
            return super().train(*args, **kwargs)

    def _forget_loaders(self) -> None:
        self.callback_handler.train_dataloader = None

    @property
    def task_log(self) -> TaskLogCallback:
        """The callback that collects the losses of the tasks."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, TaskLogCallback))

    def collator_for(self, task: str) -> Collator:
        """Return the collator of a task.

        Raises:
            ValueError: If there is none.
        """
        if callable(self.data_collators):
            return self.data_collators
        if task not in self.data_collators:
            raise ValueError(
                f"`data_collators` must have an entry for every task, none for {task!r}, only for "
                f"{sorted(self.data_collators)}."
            )
        return self.data_collators[task]

    def drawn_dataset(self, task: str, dataset: Dataset) -> Dataset:
        """Return a map-style data set as one that is read by ``(index, draw)``."""
        return SeededDataset(dataset, self.data_seed, task, self.args.max_bad_samples)

    def example_preparation(self, task: str) -> PrepareExample | None:  # noqa: ARG002  # for those that override
        """Return what is done with every example of a stream, as a function of it and its draw."""
        return None

    def get_train_dataloader(self) -> DataLoader:
        """Join the loaders of all tasks.

        Raises:
            ValueError: If there is nothing to train on, or no number of updates.
        """
        if not self.train_dataset:
            raise ValueError("`train_dataset` must hold at least one task to train, got none.")
        if self.args.max_steps < 1:
            raise ValueError(
                "`max_steps` must be positive, since tasks of different sizes have no common "
                f"epoch, got {self.args.max_steps}."
            )
        batches = {task: self._task_batches(task) for task in self.task_args}
        self.task_streams = {task: b for task, b in batches.items() if isinstance(b, StreamedTaskBatches)}
        probabilities = {task: a.sampling_probability for task, a in self.task_args.items()}
        sampler = UnmixedTaskSampler(probabilities, self.data_seed) if self.args.sampling == "unmixed" else None
        joined = JoinedBatches(batches, sampler, self.args.max_steps, self.args.gradient_accumulation_steps)
        # Not prepared by accelerate: every rank already reads its own share of one task.
        return DataLoader(joined, batch_size=1, collate_fn=only_item)

    @property
    def _ranks(self) -> tuple[int, int]:
        return self.args.process_index, self.args.world_size

    def _task_batches(self, task: str) -> NumberedBatches:
        datasets, weights = datasets_of_task(self.train_dataset[task], task)
        arguments = self.task_args[task]
        options = {
            "num_workers": arguments.num_workers,
            "pin_memory": self.args.dataloader_pin_memory and torch.cuda.is_available(),
            "prefetch_factor": self.args.dataloader_prefetch_factor if arguments.num_workers else None,
        }
        if any(isinstance(dataset, Stream) for dataset in datasets):
            streams = [d if isinstance(d, Stream) else ShuffledStream(d, self.data_seed) for d in datasets]
            return StreamedTaskBatches(
                StreamedBatches(
                    [own_share(stream, task, self._ranks, arguments.num_workers) for stream in streams],
                    weights or [1.0],
                    arguments.batch_size,
                    self.collator_for(task),
                    self.example_preparation(task),
                    seed=self.data_seed,
                    task=task,
                    ranks=self._ranks,
                    max_bad_samples=self.args.max_bad_samples,
                ),
                options,
            )
        key = (arguments.batch_size, self.data_seed, task, *self._ranks)
        if len(datasets) == 1:
            dataset, sampler = datasets[0], DrawSampler(len(datasets[0]), *key)
        else:
            dataset = WeightedConcat(datasets, weights)
            sampler = WeightedDrawSampler(dataset.sizes, dataset.shares, *key)
        return TaskBatches(self.drawn_dataset(task, dataset), sampler, self.collator_for(task), options)

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the positions of this rank's streams as well."""
        super()._save_optimizer_and_scheduler(output_dir)
        save_positions(self.task_streams, output_dir, self._ranks)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on reading the streams where the checkpoint's run was."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_positions(self.task_streams, checkpoint, self._ranks)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over all trainable parameters."""
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(
                self.model if model is None else model,  # type: ignore[arg-type]  # there is always one
                args.learning_rate,
                args.weight_decay,
                args.lr_multipliers,  # type: ignore[arg-type]  # parsed from JSON by now
            )
            is_balanced = args.optimizer == "tbgn"
            tasks: Any = {MIXED: None} if args.sampling == "mixed" else self.task_args
            self.optimizer = TaskBalancedAdamW(
                groups,
                lr=args.learning_rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
                sampling_probabilities={t: a.sampling_probability if is_balanced else 1.0 for t, a in tasks.items()},
                task_weights={t: a.task_weight if is_balanced else 1.0 for t, a in tasks.items()},
                normalize=is_balanced,
            )
        for group in self.optimizer.param_groups:  # for the log: not every schedule notes where it began
            group.setdefault("initial_lr", group["lr"])
        return self.optimizer

    @override
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward on a micro-batch: the batch of one task, or of every task."""
        step, micro_batch = divmod(inputs["position"], self.args.gradient_accumulation_steps)
        batches = list(inputs["batches"].items())
        for group in self.optimizer.param_groups:
            group["task"] = MIXED if self.args.sampling == "mixed" else batches[0][0]
        loss = torch.zeros((), device=self.args.device)
        for number, (task, batch) in enumerate(batches, start=1):
            batch = dict(batch)
            self.task_log.add_replaced(task, batch.pop("replaced", ()))
            batch["task"] = task
            batch["step_seed"] = seed_from(self.args.seed, "step", step, micro_batch)
            seed_global_generators(self.args.seed, "forward", task, step, micro_batch, self.args.process_index)
            is_last = number == len(batches)
            with nullcontext() if is_last else self.accelerator.no_sync(model=model):
                loss += super().training_step(model, batch)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss of a batch of one task; in training weighted and noted for the log."""
        task = inputs["task"]
        inputs = {
            name: value
            for name, value in inputs.items()
            if name in self._extra_arguments or name not in ("task", "step_seed")
        }
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            terms = outputs.get("loss_terms") if isinstance(outputs, dict) else None
            added = self.added_losses(inputs)
            loss = loss + sum(added.values())
            self.task_log.add_losses(task, loss, {**(terms or {}), **added})
            loss = loss * self._loss_factor(task)
        return (loss, outputs) if return_outputs else loss

    def added_losses(self, inputs: dict[str, Any]) -> dict[str, Tensor]:  # noqa: ARG002  # for those that override
        """Return what is added to the model's own loss of a batch in training, by name; it is logged."""
        return {}

    def _loss_factor(self, task: str) -> float:
        arguments = self.task_args[task]
        if self.args.sampling == "mixed":
            return arguments.loss_weight * arguments.sampling_probability
        return arguments.loss_weight

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the cost of a micro-batch."""
        return sum(super(MultiTaskTrainer, self).floating_point_ops(b) for b in inputs["batches"].values())

    @override
    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | None:
        """Leave the norm to the optimizer, which computes it anyway."""
        return grad_norm

    @override
    def _get_learning_rate(self) -> float:
        """Return the learning rate of what has no multiplier."""
        return base_learning_rate(self.optimizer, self.args.learning_rate)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what happened in every task to the logs of training.

        Raises:
            RuntimeError: If more than ``max_bad_samples`` samples had to be replaced.
        """
        if "learning_rate" in logs:
            multipliers: Any = self.args.lr_multipliers or {}
            logs |= {f"learning_rate/{prefix}": logs["learning_rate"] * by for prefix, by in multipliers.items()}
        if "loss" in logs or "train_loss" in logs:
            logs |= self.task_log.collect()
            statistics = self.optimizer.param_groups[0].get("task_statistics", {})
            logs |= self.task_log.collect_steps(statistics, self.args.max_grad_norm == 0)
            logs |= (samples := self._samples_seen(statistics))
            if samples and "train_samples_per_second" in logs:  # transformers takes all batches to be of one size
                num_new = sum(samples.values()) - sum(self._samples_seen(self.task_log.first_statistics).values())
                logs["train_samples_per_second"] = round(num_new / logs["train_runtime"], 3)
            self.task_log.require_few_replaced(self.args.max_bad_samples)
        super().log(logs, start_time)

    def _samples_seen(self, statistics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Return how many samples of each task all ranks have seen, those of skipped steps included."""
        per_update = self.args.gradient_accumulation_steps * self.args.world_size
        sizes = {task: arguments.batch_size * per_update for task, arguments in self.task_args.items()}
        return samples_seen(statistics, sizes, MIXED if self.args.sampling == "mixed" else None)

    def evaluate(  # type: ignore[override]  # data sets have names here
        self,
        eval_dataset: Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate on every data set.

        Args:
            eval_dataset: Data sets named ``"task"`` or ``"task/name"``; those of the constructor
                where absent.
            ignore_keys: Outputs of the model that are not gathered.
            metric_key_prefix: First part of all names.

        Returns:
            The metrics of all data sets, named ``prefix_name_metric``.

        Raises:
            ValueError: If the data sets are not a dict.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        require_by_name(datasets, "eval_dataset", "'task' or 'task/name'")
        metrics: dict[str, float] = {}
        for name, dataset in datasets.items():
            metrics |= self.evaluate_task(name.split("/")[0], dataset, f"{metric_key_prefix}_{name}", ignore_keys)
        return metrics

    def evaluate_task(
        self, task: str, dataset: Dataset, prefix: str, ignore_keys: list[str] | None = None
    ) -> dict[str, float]:
        """Evaluate on one data set, with the loss and ``compute_metrics``."""
        self.data_collator = partial(_collate_for, task, self.collator_for(task))
        return super().evaluate(dataset, ignore_keys, prefix)

    def predict(  # type: ignore[override]  # data sets have names here
        self,
        test_dataset: Mapping[str, Dataset],
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> dict[str, PredictionOutput]:
        """Predict on every data set.

        Args:
            test_dataset: Data sets named ``"task"`` or ``"task/name"``.
            ignore_keys: Outputs of the model that are not gathered.
            metric_key_prefix: First part of the names of all metrics.

        Returns:
            What ``transformers.Trainer.predict`` returns, for every data set.

        Raises:
            ValueError: If the data sets are not a dict.
        """
        require_by_name(test_dataset, "test_dataset", "'task' or 'task/name'")
        predictions = {}
        for name, dataset in test_dataset.items():
            task, *_ = name.split("/")
            self.data_collator = partial(_collate_for, task, self.collator_for(task))
            predictions[name] = super().predict(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
        return predictions


def _collate_for(task: str, collate: Collator, examples: list[Any]) -> dict[str, Any]:
    return {**collate(examples), "task": task}
