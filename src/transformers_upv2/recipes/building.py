"""From a recipe to data sets, model, processor and trainer."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.integrations import get_available_reporting_integrations

from transformers_upv2.data.augmentation import ColorJitter, Compose, LargeScaleJitter, RandomFlip
from transformers_upv2.data.class_names import align_classes
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import Transform
from transformers_upv2.data.image_captions import ImageCaptions
from transformers_upv2.data.image_folder import ImageFolder
from transformers_upv2.data.image_text_shards import ImageTextShards
from transformers_upv2.data.karpathy_captions import KarpathyCaptions, karpathy_image_ids
from transformers_upv2.data.text_corpus import TextCorpus
from transformers_upv2.data.timm_augmentation import TimmAugmentation
from transformers_upv2.evaluation.evaluator import Evaluator
from transformers_upv2.evaluation.suite import default_evaluators
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.presets import PRETRAINED_PARTS
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.recipes.data_checks import check_datasets
from transformers_upv2.recipes.recipe import Recipe, Tree
from transformers_upv2.training.arguments import UniPerceiverV2TrainingArguments
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer

Datasets = dict[str, dict[str, Any]]
PATHS = ("annotation_file", "image_folder", "folder", "classes_file", "files", "split_file", "exclude_karpathy")
"""Arguments of readers that lie below the data folder."""


class DropMasks:
    """Leave boxes alone, as in the paper's ablations without instance segmentation."""

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:  # noqa: ARG002
        """Remove the segmentations."""
        annotations = [{k: v for k, v in each.items() if k != "segmentation"} for each in example["annotations"]]
        return {**example, "annotations": annotations}


def open_coco_detection(
    annotation_file: str,
    image_folder: str,
    skip_images_without_annotations: bool = False,
    exclude_karpathy: str | None = None,
) -> CocoDetection:
    """Open COCO instances, without the held-out images of a Karpathy split file if one is given."""
    excluded = () if exclude_karpathy is None else karpathy_image_ids(exclude_karpathy)
    return CocoDetection(annotation_file, image_folder, skip_images_without_annotations, excluded)


READERS: dict[str, Callable[..., Any]] = {
    "coco_detection": open_coco_detection,
    "coco_captions": ImageCaptions,
    "karpathy_captions": KarpathyCaptions,
    "image_folder": ImageFolder,
    "image_text_shards": ImageTextShards,
    "text_corpus": TextCorpus,
}
TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "large_scale_jitter": LargeScaleJitter,
    "flip": RandomFlip,
    "color_jitter": ColorJitter,
    "timm": TimmAugmentation,
    "drop_masks": DropMasks,
}


def open_reader(options: Tree, root: Path) -> Any:
    """Open one data set.

    Args:
        options: ``reader`` and its arguments.
        root: Where relative paths start; addresses such as ``https://...`` stay as they are.

    Raises:
        ValueError: If there is no such reader.
        DataError: If the data is missing or malformed.
    """
    arguments = {
        key: _below(root, value) if key in PATHS else value for key, value in options.items() if key != "weight"
    }
    name = arguments.pop("reader", None)
    return _call(_lookup(READERS, name, "reader"), arguments, f"the reader {name!r}")


def _below(root: Path, value: Any) -> Any:
    """Put one path or several below a folder."""
    if isinstance(value, list):
        return [_below(root, each) for each in value]
    return value if "://" in value else str(root / value)


def open_training_data(recipe: Recipe, root: Path) -> Datasets:
    """Open the data sets of all tasks; where weights are given, as ``{name: (dataset, weight)}``.

    Raises:
        DataError: If data is missing or malformed, or the data sets of a task have different classes.
    """
    opened: Datasets = {}
    for task, members in recipe.data.items():
        opened[task] = {}
        for name, options in members.items():
            reader = open_reader(options, root)
            opened[task][name] = (reader, float(options["weight"])) if "weight" in options else reader
        opened[task] = align_classes(task, opened[task])
    return opened


def open_evaluation_data(recipe: Recipe, root: Path) -> dict[str, Any]:
    """Open the data sets to evaluate on."""
    return {name: open_reader(options, root) for name, options in recipe.evaluation.items()}


def build_transforms(recipe: Recipe) -> dict[str, Transform]:
    """Build the augmentation of every task that has one."""
    return {
        task: Compose([_build_transform(dict(step)) for step in steps]) for task, steps in recipe.transforms.items()
    }


def _build_transform(options: Tree) -> Transform:
    name = options.pop("name", None)
    return _call(_lookup(TRANSFORMS, name, "transform"), options, f"the transform {name!r}")


def build_config(model: Tree) -> UniPerceiverV2Config:
    """Return the config of a model that starts from a preset."""
    return UniPerceiverV2Config.preset(model["preset"], **model.get("config", {}))


def pretrained_parts(model: Tree) -> Mapping[str, str]:
    """Return where the parts of a model that starts from a preset come from."""
    return model.get("parts", PRETRAINED_PARTS[model["preset"]])


def build_model(recipe: Recipe, datasets: Mapping[str, Mapping[str, Any]]) -> tuple[UniPerceiverV2ForMultiTask, Any]:
    """Build or load model and processor, and give the model the data's class names.

    Returns:
        The model and the processor.
    """
    source = recipe.model
    processor: Any
    if "checkpoint" in source:
        model = UniPerceiverV2ForMultiTask.from_pretrained(source["checkpoint"])
        processor = UniPerceiverV2Processor.from_pretrained(source["checkpoint"], **recipe.processor)
    else:
        config = build_config(source)
        tokenizer = AutoTokenizer.from_pretrained(source["tokenizer"])
        # the preset's are those of roberta-base
        for name in ("bos_token_id", "pad_token_id", "eos_token_id", "mask_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        model = UniPerceiverV2ForMultiTask.from_pretrained_parts(**pretrained_parts(source), config=config)
        processor = UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(**recipe.processor), tokenizer)
    for task, members in datasets.items():
        member = next(iter(members.values()))
        reader = member[0] if isinstance(member, tuple) else member
        if hasattr(reader, "class_names"):
            model.set_labels(reader.class_names, processor.tokenizer, label_set=task)
    return model, processor


def build_arguments(options: Tree, out: Path) -> UniPerceiverV2TrainingArguments:
    """Return the training arguments of a run that writes to ``out``.

    Raises:
        ValueError: If there is no such argument.
    """
    return _call(UniPerceiverV2TrainingArguments, options | {"output_dir": str(out)}, "`arguments`")


def check_reporting(arguments: UniPerceiverV2TrainingArguments) -> None:
    """Check that what shows the curves is installed.

    Raises:
        ImportError: If it is not.
    """
    wanted: Any = arguments.report_to  # a list, once the arguments are read
    missing = sorted(set(wanted) - set(get_available_reporting_integrations()))
    if missing:
        raise ImportError(
            f"`report_to` must name what is installed, got {wanted}, of which {missing} are not. Install "
            f'them, as with `pip install {missing[0]}`, or train without curves: `--set "arguments.report_to=[]"`.'
        )


def build_evaluators(recipe: Recipe) -> dict[str, Evaluator]:
    """Return the evaluator of every task, with the recipe's options."""
    evaluators = default_evaluators()
    return evaluators | {
        task: _call(type(evaluators[task]), options, f"the evaluator of {task!r}")
        for task, options in recipe.evaluators.items()
    }


def build_trainer(recipe: Recipe, root: Path, out: Path) -> UniPerceiverV2Trainer:
    """Put everything together.

    Args:
        recipe: The recipe.
        root: The data folder.
        out: Where checkpoints and the final model go.
    """
    arguments = build_arguments(recipe.arguments, out)
    datasets = open_training_data(recipe, root)
    evaluation, evaluators = open_evaluation_data(recipe, root), build_evaluators(recipe)
    check_datasets(datasets, evaluation, evaluators)
    check_reporting(arguments)
    model, processor = build_model(recipe, datasets)
    return UniPerceiverV2Trainer(
        model=model,
        args=arguments,
        train_dataset=datasets,
        eval_dataset=evaluation,
        evaluators=evaluators,
        processing_class=processor,
        transforms=build_transforms(recipe),
    )


def _call(function: Callable[..., Any], options: Mapping[str, Any], what: str) -> Any:
    """Call with options from a recipe.

    Raises:
        ValueError: If there is no such option, or one is missing; the message says which there are.
    """
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        known = list(inspect.signature(function).parameters)
        near = [match for name in options if name not in known for match in get_close_matches(name, known, 1)]
        hint = f"Did you mean {near}?" if near else f"There are {known}."
        raise ValueError(f"The options of {what} in the recipe must be right, got: {error}. {hint}") from error
    return function(**options)


def _lookup(table: Mapping[str, Callable[..., Any]], name: Any, what: str) -> Callable[..., Any]:
    if name not in table:
        raise ValueError(f"`{what}` must be one of {sorted(table)}, got {name!r}. Correct the recipe.")
    return table[name]
