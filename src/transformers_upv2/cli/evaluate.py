"""The verb `evaluate`: data in its usual formats goes in, the field's metrics come out."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_upv2.cli.common import (
    Verbs,
    add_json_option,
    add_model_argument,
    add_verb,
    check_model,
    positive,
    print_json,
    print_table,
    quiet_libraries,
)

Datasets = dict[str, Any]
"""A data set under each task's name, or under the task and a name, such as ``retrieval/flickr30k``."""


@dataclass(frozen=True)
class Source:
    """Data that an option of `upv2 evaluate` names.

    Args:
        places: What the option takes: files and folders.
        help: What they are, and what is measured on them.
        open: From all options and these places to the data sets.
        has_splits: Whether ``--split`` chooses a part of it.
    """

    places: tuple[str, ...]
    help: str
    open: Callable[..., Datasets]
    has_splits: bool = False


def _open_world(options: argparse.Namespace, folder: Path) -> Datasets:
    from transformers_upv2.data.demo_world import open_world

    return dict(getattr(open_world(folder), options.split))


def _open_classification(options: argparse.Namespace, folder: Path) -> Datasets:
    from transformers_upv2.data.image_folder import ImageFolder

    return {"classification": ImageFolder(folder, options.class_names)}


def _open_detection(_: argparse.Namespace, file: Path, images: Path) -> Datasets:
    from transformers_upv2.data.coco_detection import CocoDetection

    return {"detection": CocoDetection(file, images)}


def _open_captions(_: argparse.Namespace, file: Path, images: Path) -> Datasets:
    from transformers_upv2.data.image_captions import ImageCaptions

    return dict.fromkeys(("captioning", "retrieval"), ImageCaptions(file, images))


def _open_karpathy_coco(options: argparse.Namespace, file: Path, images: Path) -> Datasets:
    from transformers_upv2.data.karpathy_captions import KarpathyCaptions

    return dict.fromkeys(("captioning", "retrieval"), KarpathyCaptions(file, images, [options.split]))


def _open_karpathy_flickr30k(options: argparse.Namespace, file: Path, images: Path) -> Datasets:
    opened = _open_karpathy_coco(options, file, images)
    return {f"{task}/flickr30k": dataset for task, dataset in opened.items()}


def _open_text(_: argparse.Namespace, file: Path) -> Datasets:
    from transformers_upv2.data.text_corpus import TextCorpus

    return {"language_modeling": TextCorpus(file)}


SOURCES = {
    "world": Source(("FOLDER",), "a demo world, for all tasks", _open_world, has_splits=True),
    "classification": Source(("FOLDER",), "one sub-folder for each class, as ImageNet's", _open_classification),
    "detection": Source(("JSON", "IMAGES"), "COCO instances and their images; boxes, masks if any", _open_detection),
    "captions": Source(("JSON", "IMAGES"), "COCO captions and their images; captioning and retrieval", _open_captions),
    "karpathy_coco": Source(
        ("JSON", "IMAGES"),
        "Karpathy's dataset_coco.json and the folder of COCO's image folders; captioning and retrieval",
        _open_karpathy_coco,
        has_splits=True,
    ),
    "karpathy_flickr30k": Source(
        ("JSON", "IMAGES"),
        "Karpathy's dataset_flickr30k.json and its images; captioning and retrieval",
        _open_karpathy_flickr30k,
        has_splits=True,
    ),
    "text": Source(("FILE",), "a line for each text; language modeling", _open_text),
}
"""What can be evaluated on; the key is the option's name."""


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_verbs(verbs: Verbs) -> None:
    """Add the verb of this file."""
    parser = add_verb(
        verbs,
        "evaluate",
        evaluate,
        "measure a model on data sets in their usual formats",
        [
            "upv2 evaluate model_cards/uniperceiver-v2-tiny --world runs/world --captions-per-image 1",
            "upv2 evaluate runs/photos --detection val.json photos --out runs/photos/val",
            "upv2 evaluate runs/base --classification imagenet/val --class-names LOC_synset_mapping.txt --json",
            "upv2 evaluate runs/base --karpathy-coco dataset_coco.json coco --fold-size 1000   # COCO 5k and 1k",
            "upv2 evaluate runs/base --karpathy-flickr30k dataset_flickr30k.json flickr30k-images",
        ],
    )
    add_model_argument(parser)
    for name, source in SOURCES.items():
        places = source.places
        parser.add_argument(_option(name), type=Path, nargs=len(places), metavar=places, help=source.help)
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="of world and Karpathy (default: test)"
    )
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classification folders, such as n01440764: a line with folder and name for each, or JSON",
    )
    parser.add_argument(
        "--captions-per-image",
        type=positive,
        default=5,
        metavar="N",
        help="how many take part in retrieval, the first ones (default: 5, the field's protocol)",
    )
    parser.add_argument(
        "--fold-size",
        type=positive,
        metavar="N",
        help="search also in folds of N images and average; 1000 is COCO's 1k protocol",
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="write metrics.json, table_6.md in the paper's columns, and model_index.yaml for the model card",
    )
    add_json_option(parser)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate on all the data that is given; the model is asked for the data's class names where it knows others."""
    quiet_libraries()
    datasets, titles = _open_sources(options)
    check_model(options.model)

    from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Processor
    from transformers_upv2.evaluation.results import format_table_6, write_results
    from transformers_upv2.evaluation.suite import evaluate_all
    from transformers_upv2.model_summary import summarize_model

    model = UniPerceiverV2ForMultiTask.from_pretrained(options.model).eval()
    processor = UniPerceiverV2Processor.from_pretrained(options.model)
    for task in ("classification", "detection"):
        _ask_for_classes(model, processor, datasets, task)
    metrics = evaluate_all(model, processor, datasets, _evaluators(options), batch_size=options.batch_size)
    name = Path(options.model).resolve().name
    table = format_table_6({name: metrics}, {name: summarize_model(model.config).counts.one_ffn})
    measured_on = ", ".join(dict.fromkeys(readable for _, readable in titles.values()))
    table += f"\n\nThe columns are those of the paper's Table 6; measured on: {measured_on}."
    if options.out is not None:
        write_results(options.out, name, metrics, table, titles)
    if options.json:
        print_json(metrics)
    else:
        print_table(("metric", "value"), list(metrics.items()))
        print(f"\n{table}")


def _open_sources(options: argparse.Namespace) -> tuple[Datasets, dict[str, tuple[str, str]]]:
    """Open everything that the command line names.

    Returns:
        The data sets, and what a model card calls each: an id and a readable name.

    Raises:
        ValueError: If it names nothing, two data sets for the same numbers, or options without their data.
    """
    if options.class_names is not None and options.classification is None:
        raise ValueError(f"`--class-names` needs `--classification FOLDER`, got only {options.class_names}.")
    datasets: Datasets = {}
    titles: dict[str, tuple[str, str]] = {}
    for name, source in SOURCES.items():
        places = getattr(options, name)
        if places is None:
            continue
        opened = source.open(options, *places)
        double = sorted(datasets.keys() & opened.keys())
        if double:
            raise ValueError(
                f"There must be one data set for {double}, got `{_option(name)}` as a second. Run them one by one."
            )
        datasets |= opened
        titles |= dict.fromkeys(opened, _title(places[0], options.split if source.has_splits else None))
    if not datasets:
        known = ", ".join(f"`{_option(name)}`" for name in SOURCES)
        raise ValueError(f"There must be data to evaluate on, got none. Pass one or more of {known}.")
    _check_fold_size(options.fold_size, datasets)
    return datasets, titles


def _check_fold_size(fold_size: int | None, datasets: Datasets) -> None:
    """Refuse folds that cannot be filled, before hours of encoding."""
    num_images = min((len(data) for key, data in datasets.items() if key.startswith("retrieval")), default=0)
    if fold_size is not None and num_images < fold_size:
        raise ValueError(
            f"`--fold-size` must be at most the number of images for retrieval, got {fold_size} for {num_images}."
        )


def _title(place: Path, split: str | None) -> tuple[str, str]:
    """Return id and readable name of data by the last two parts of its path; a card tells no more of one's disk."""
    parts = place.resolve().with_suffix("").parts[-2:]
    return "-".join(parts), "/".join(parts) + (f" ({split} split)" if split else "")


def _evaluators(options: argparse.Namespace) -> dict[str, Any]:
    """Return the evaluator of every task, as the options ask for it."""
    from transformers_upv2.evaluation.retrieval import RetrievalEvaluator
    from transformers_upv2.evaluation.suite import default_evaluators

    return default_evaluators() | {
        "retrieval": RetrievalEvaluator(captions_per_image=options.captions_per_image, fold_size=options.fold_size),
    }


def _ask_for_classes(model: Any, processor: Any, datasets: Datasets, task: str) -> None:
    """Set the label set of a task to the names of its data, unless the model's own has them all.

    Among fewer labels than the model's own it would look better than it is.
    """
    from transformers_upv2.evaluation.evaluator import match_class_names

    if task not in datasets:
        return
    wanted = list(datasets[task].class_names)
    try:
        match_class_names(wanted, model.config.label_sets.get(task, {}).get("names", []))
    except ValueError:
        model.set_labels(wanted, processor.tokenizer, label_set=task)
