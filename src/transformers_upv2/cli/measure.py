"""Verbs that describe and measure: `info`, `evaluate` and `study`."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from transformers_upv2.cli.common import (
    DEFAULT_MODEL,
    Verbs,
    add_json_option,
    add_model_argument,
    add_size_option,
    add_verb,
    check_model,
    names,
    positive,
    print_json,
    print_table,
    quiet_libraries,
)

IMAGE_SIZE = (640, 640)
STUDY_NAMES = ("table2", "table3", "table4", "table5", "fgd", "visft", "queries")


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    _add_info(verbs)
    _add_evaluate(verbs)
    _add_study(verbs)


def _add_info(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "info",
        info,
        "show what a model consists of: parameters, memory, multiply-adds of each part",
        ["upv2 info swin-base", "upv2 info model_cards/uniperceiver-v2-tiny --image-size 128 128 --json"],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "model", metavar="PRESET_OR_MODEL", nargs="?", help="a preset, a folder or a repository on the Hub"
    )
    what.add_argument("--preset", metavar="PRESET", help="the same for a preset")
    add_size_option(parser, "image that the multiply-adds are for (default: 640 640)")
    parser.add_argument("--tasks", type=names, help='tasks of the deployed count, "detection, captioning"')
    add_json_option(parser)


def info(options: argparse.Namespace) -> None:
    """Describe a preset or a saved model; no weights are read."""
    quiet_libraries()

    from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
    from transformers_upv2.model.presets import PRESETS
    from transformers_upv2.model_summary import DEPLOYED_TASKS, format_summary, summarize_model, summarize_preset

    height, width = options.image_size or IMAGE_SIZE
    size = (height, width)
    tasks = options.tasks or DEPLOYED_TASKS
    model = options.model or options.preset
    if model in PRESETS:
        summary = summarize_preset(model, size, tasks)
    elif "/" not in model and not Path(model).is_dir():
        raise ValueError(
            f"`PRESET_OR_MODEL` must be one of {sorted(PRESETS)}, a folder or a repository on the Hub, got {model!r}."
        )
    else:
        check_model(model)
        summary = summarize_model(UniPerceiverV2Config.from_pretrained(model), size, tasks)
    if options.json:
        print_json(dataclasses.asdict(summary))
    else:
        print(format_summary(summary))


def _add_evaluate(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "evaluate",
        evaluate,
        "measure a model on data sets in their usual formats",
        [
            "upv2 evaluate model_cards/uniperceiver-v2-tiny --world runs/world --split test",
            "upv2 evaluate runs/photos --detection instances.json --images photos --out metrics.json",
            "upv2 evaluate runs/photos --captions captions.json --images photos --classification imagenet/val --json",
        ],
    )
    add_model_argument(parser)
    parser.add_argument("--world", type=Path, metavar="FOLDER", help="a demo world, for all tasks")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test", help="of the world")
    parser.add_argument("--detection", type=Path, metavar="JSON", help="COCO instances; boxes and masks")
    parser.add_argument("--boxes-only", action="store_true", help="for instances that have no masks")
    parser.add_argument("--captions", type=Path, metavar="JSON", help="COCO captions; captioning and retrieval")
    parser.add_argument("--images", type=Path, default=Path(), metavar="FOLDER", help="where their file names start")
    parser.add_argument("--classification", type=Path, metavar="FOLDER", help="one sub-folder for each class")
    parser.add_argument("--text", type=Path, metavar="FILE", help="a line for each text; language modeling")
    parser.add_argument("--batch-size", type=positive, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the metrics to this file")
    add_json_option(parser)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate on all the data that is given; the model is asked for the data's own class names."""
    quiet_libraries()
    datasets = _open_datasets(options)

    from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Processor
    from transformers_upv2.evaluation.detection import DetectionEvaluator
    from transformers_upv2.evaluation.results import write_metrics
    from transformers_upv2.evaluation.suite import default_evaluators, evaluate_all

    check_model(options.model)
    model = UniPerceiverV2ForMultiTask.from_pretrained(options.model).eval()
    processor = UniPerceiverV2Processor.from_pretrained(options.model)
    for task in ("classification", "detection"):
        _ask_for_classes(model, processor, datasets, task)
    evaluators = default_evaluators() | {"detection": DetectionEvaluator(with_masks=not options.boxes_only)}
    metrics = evaluate_all(model, processor, datasets, evaluators, batch_size=options.batch_size)
    if options.out is not None:
        write_metrics(metrics, options.out)
    if options.json:
        print_json(metrics)
    else:
        print_table(("metric", "value"), list(metrics.items()))


def _open_datasets(options: argparse.Namespace) -> dict[str, Any]:
    """Open the readers of everything that the command line names.

    Raises:
        ValueError: If it names nothing.
    """
    from transformers_upv2.data.coco_detection import CocoDetection
    from transformers_upv2.data.demo_world import open_world
    from transformers_upv2.data.image_captions import ImageCaptions
    from transformers_upv2.data.image_folder import ImageFolder
    from transformers_upv2.data.text_corpus import TextCorpus

    datasets: dict[str, Any] = {}
    if options.world is not None:
        datasets |= getattr(open_world(options.world), options.split)
    if options.detection is not None:
        datasets["detection"] = CocoDetection(options.detection, options.images)
    if options.captions is not None:
        datasets["captioning"] = datasets["retrieval"] = ImageCaptions(options.captions, options.images)
    if options.classification is not None:
        datasets["classification"] = ImageFolder(options.classification)
    if options.text is not None:
        datasets["language_modeling"] = TextCorpus(options.text)
    if not datasets:
        raise ValueError(
            "There must be data to evaluate on, got none. Pass `--world`, `--detection`, `--captions`, "
            "`--classification` or `--text`."
        )
    return datasets


def _ask_for_classes(model: Any, processor: Any, datasets: dict[str, Any], task: str) -> None:
    """Set the label set of a task to the names of its data, unless the model has just these already."""
    if task not in datasets:
        return
    wanted = list(datasets[task].class_names)
    if model.config.label_sets.get(task, {}).get("names") != wanted:
        model.set_labels(wanted, processor.tokenizer, label_set=task)


def _add_study(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "study",
        study,
        "repeat an ablation of the paper in small, on the demo world (extras `demo` and `metrics`)",
        [
            "upv2 study table2",
            "upv2 study table4 --seeds 3 4 5 --out runs/other_seeds",
        ],
    )
    parser.add_argument("name", choices=STUDY_NAMES, help="the paper's table, or a method of its neighbourhood")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="folder (default: %(default)s)")
    parser.add_argument(
        "--encoders",
        default=DEFAULT_MODEL,
        metavar="FOLDER_OR_REPO",
        help="the checkpoint whose encoders are the pretrained ones (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs (default: 0 1 2)")


def study(options: argparse.Namespace) -> None:
    """Run what is missing of a study and print its table."""
    quiet_libraries()

    from transformers_upv2.studies.settings import StudySettings
    from transformers_upv2.studies.study import run_study
    from transformers_upv2.studies.table import format_table

    check_model(options.encoders)
    settings = StudySettings(options.encoders)
    print(format_table(run_study(options.name, options.out, settings, options.seeds)))
    print(f"The table and its picture are in {options.out}.")
