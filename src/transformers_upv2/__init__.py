"""Uni-Perceiver v2 for the Hugging Face ecosystem: one model, one checkpoint, no task heads.

Importing the package registers its classes and pipelines with transformers and does nothing else.
"""

import importlib
from typing import Any

from transformers_upv2.model.configuration_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2DecoderConfig,
    UniPerceiverV2ProposalConfig,
)
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
)
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.pretrained_upv2 import UniPerceiverV2PreTrainedModel
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.model.registration import register
from transformers_upv2.model.tasks import TASKS
from transformers_upv2.version import __version__

# Training pulls in `datasets` and more through transformers' Trainer, so it is loaded when first asked for.
_TRAINING = {
    "DistillationMixin": "transformers_upv2.training.distillation",
    "DistillationTrainer": "transformers_upv2.training.distillation",
    "FGDLoss": "transformers_upv2.training.fgd_loss",
    "FGDSettings": "transformers_upv2.training.distillation",
    "inherit_parts": "transformers_upv2.training.inheritance",
    "TaskBalancedAdamW": "transformers_upv2.training.optimizer",
    "UnmixedTaskSampler": "transformers_upv2.training.sampler",
    "MultiTaskTrainer": "transformers_upv2.training.trainer",
    "MultiTaskTrainingArguments": "transformers_upv2.training.arguments",
    "UniPerceiverV2Trainer": "transformers_upv2.training.upv2_trainer",
    "UniPerceiverV2TrainingArguments": "transformers_upv2.training.arguments",
}

__all__ = [
    "TASKS",
    "ImageEncoding",
    "UniPerceiverV2Config",
    "UniPerceiverV2DecoderConfig",
    "UniPerceiverV2ForConditionalGeneration",
    "UniPerceiverV2ForImageClassification",
    "UniPerceiverV2ForImageTextRetrieval",
    "UniPerceiverV2ForInstanceSegmentation",
    "UniPerceiverV2ForMaskedLM",
    "UniPerceiverV2ForMultiTask",
    "UniPerceiverV2ForObjectDetection",
    "UniPerceiverV2ForZeroShotImageClassification",
    "UniPerceiverV2ForZeroShotObjectDetection",
    "UniPerceiverV2ImageProcessor",
    "UniPerceiverV2Model",
    "UniPerceiverV2PreTrainedModel",
    "UniPerceiverV2Processor",
    "UniPerceiverV2ProposalConfig",
    "__version__",
    *_TRAINING,
]

register()


def __getattr__(name: str) -> Any:
    if name not in _TRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_TRAINING[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_TRAINING])
