"""DistillationTrainer: a small student learns the features of a large, frozen teacher while it learns its tasks.

Reference: Focal and Global Knowledge Distillation for Detectors (https://arxiv.org/abs/2111.11837), see
``training/fgd_loss.py``. There the maps are those of a neck; our choice for a detector of DETR's kind: the outputs of
the pixel decoder, which have one width and one set of strides whatever the backbone is.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from transformers_upv2.model.boxes import cxcywh_to_xyxy
from transformers_upv2.model.distributed import average_gradients
from transformers_upv2.model.image_encoder import ImageEncoder, image_sizes, real_cells
from transformers_upv2.training.distilled_maps import MapRecorder, compute_maps, map_channels
from transformers_upv2.training.fgd_loss import FGDLoss
from transformers_upv2.training.parameter_groups import parameter_groups
from transformers_upv2.training.trainer import MultiTaskTrainer
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

LOSS_FILE = "fgd_loss.safetensors"


@dataclasses.dataclass(frozen=True)
class FGDSettings:
    """What is distilled, and how strongly. The weights are the defaults of the official code, for dense detectors."""

    alpha: float = 1e-3
    """Weight of the foreground."""
    beta: float = 5e-4
    """Weight of the background."""
    gamma: float = 1e-3
    """Weight of the attention."""
    lambda_: float = 5e-6
    """Weight of the relations."""
    tau: float = 0.5
    """Temperature of the attention."""
    levels: tuple[int, ...] | None = None
    """Maps of the pixel decoder, 0 is the finest; None: all."""
    last_map: bool = False
    """Whether F_L is distilled too, as projected for the global tokens."""


class DistillationMixin(MultiTaskTrainer):
    """Adds the distillation of a teacher to a Trainer of Uni-Perceiver v2.

    Every training batch with boxes adds the term ``fgd`` to the student's loss, whatever its task. The losses have
    parameters of their own: they are in the optimizer and in checkpoints, and in no student. Their gradient counts in
    the norm of TBGN, and is so small that ``adam_epsilon`` should be, too (1e-12); clipping, with
    ``optimizer="adamw"``, is of the student's gradient alone.

    Args:
        *args: Arguments of the Trainer, first the student.
        teacher: The base model or any task class, frozen: only its image encoder runs, without proposals.
        fgd: What is distilled.
        **kwargs: Further arguments of the Trainer.

    Raises:
        ValueError: If student and teacher have no such levels in common, or for FSDP.
    """

    def __init__(self, *args: Any, teacher: PreTrainedModel, fgd: FGDSettings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            raise ValueError("FSDP must be off: the parameters of the distillation losses are not sharded. Use DDP.")
        settings = fgd or FGDSettings()
        encoders = [_image_encoder(model) for model in (self.model, teacher)]
        if encoders[0] is encoders[1]:
            raise ValueError("`teacher` must be another model than the student, got a view of it. Load it again.")
        self.student_maps = MapRecorder(encoders[0])
        self.teacher = encoders[1].eval().to(self.args.device)
        channels, teacher_channels = (map_channels(encoder) for encoder in encoders)
        self.distilled = _distilled_maps(settings, len(channels) - 1, len(teacher_channels) - 1)
        numbers = {name: getattr(settings, name) for name in ("alpha", "beta", "gamma", "lambda_", "tau")}
        # the Trainer has just set the seed, so all processes draw the same
        losses = [FGDLoss(channels[index], teacher_channels[index], **numbers) for index in self.distilled]
        self.fgd_losses = nn.ModuleList(losses).to(self.args.device)

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer over the student and the losses; one that was given gets the losses as well."""
        optimizer = super().create_optimizer(model)
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not all(id(parameter) in held for parameter in self.fgd_losses.parameters()):
            for group in parameter_groups(self.fgd_losses, self.args.learning_rate, self.args.weight_decay):
                optimizer.add_param_group(group)
        return optimizer

    @override
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a micro-batch, and do for the losses' parameters what is else done for the model's only."""
        if inputs["position"] % self.args.gradient_accumulation_steps == 0:
            self.fgd_losses.zero_grad()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            average_gradients(self.fgd_losses.parameters())
        return loss

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the loss of a batch, with distillation if it has boxes and the model trains."""
        with self.student_maps:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    @override
    def added_losses(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Compare the student's maps of this forward with the teacher's of the same pixels."""
        added = super().added_losses(inputs)
        if not _has_boxes(inputs):
            return added
        pixels = self.student_maps.pixels
        with torch.no_grad(), self.accelerator.autocast():
            teacher_maps = compute_maps(self.teacher, pixels)
        student_maps = self.student_maps.maps
        canvas = (pixels.shape[-2], pixels.shape[-1])
        sizes = image_sizes(inputs["pixel_values"], inputs.get("pixel_mask"))
        boxes = [_box_corners(label["boxes"], size) for label, size in zip(inputs["labels"], sizes)]
        losses = []
        for loss, index in zip(self.fgd_losses, self.distilled):
            real = real_cells(sizes, canvas, teacher_maps[index])
            losses.append(loss(student_maps[index], teacher_maps[index], boxes, canvas, real))
        return {**added, "fgd": torch.stack(losses).sum()}

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save the losses as well."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_file(self.fgd_losses.state_dict(), Path(output_dir) / LOSS_FILE)

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with the losses of the checkpoint's run.

        Raises:
            FileNotFoundError: If that run had none.
        """
        if checkpoint is not None:
            if not (Path(checkpoint) / LOSS_FILE).is_file():
                raise FileNotFoundError(
                    f"{checkpoint} must hold {LOSS_FILE}, got none: it comes from a run without distillation. Load "
                    "its model as the student of a new run."
                )
            self.fgd_losses.load_state_dict(load_file(Path(checkpoint) / LOSS_FILE))
        super()._load_optimizer_and_scheduler(checkpoint)


class DistillationTrainer(DistillationMixin, UniPerceiverV2Trainer):
    """``UniPerceiverV2Trainer`` with a teacher, given as ``teacher`` and ``fgd``; see `DistillationMixin`."""


def _image_encoder(model: Any) -> ImageEncoder:
    return model.base_model.image_encoder


def _distilled_maps(settings: FGDSettings, num_levels: int, num_teacher_levels: int) -> list[int]:
    """Return the indices of the distilled maps; F_L is behind the levels."""
    if num_levels != num_teacher_levels:
        raise ValueError(
            "Student and teacher must have one `num_feature_levels` to have levels of equal strides, got "
            f"{num_levels} and {num_teacher_levels}."
        )
    levels = range(num_levels) if settings.levels is None else settings.levels
    if not set(levels) <= set(range(num_levels)) or len(set(levels)) < len(levels):
        raise ValueError(f"`levels` must be different ones of 0 to {num_levels - 1}, got {tuple(levels)}.")
    distilled = [*levels, num_levels] if settings.last_map else [*levels]
    if not distilled:
        raise ValueError("`levels` must not be empty without `last_map`: there is nothing to distil.")
    return distilled


def _has_boxes(inputs: Mapping[str, Any]) -> bool:
    labels = inputs.get("labels")
    return isinstance(labels, list) and all("boxes" in label for label in labels)


def _box_corners(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Turn cxcywh in [0, 1] of an image into xyxy in its pixels, ``(n, 4)``.

    Fractions of an image do not give whole pixels back exactly, and a hair more would be one more cell.
    """
    return (cxcywh_to_xyxy(boxes.float()) * image_size[[1, 0, 1, 0]]).round(decimals=2)
