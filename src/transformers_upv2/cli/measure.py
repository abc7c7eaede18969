"""Verbs that describe and measure: `info` and `study`."""

import argparse
import dataclasses
from pathlib import Path

from transformers_upv2.cli.common import (
    DEFAULT_MODEL,
    Verbs,
    add_json_option,
    add_size_option,
    add_verb,
    check_model,
    names,
    print_json,
    quiet_libraries,
)

IMAGE_SIZE = (640, 640)
STUDY_NAMES = ("table2", "table3", "table4", "table5", "fgd", "visft", "queries")


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    _add_info(verbs)
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


def _add_study(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "study",
        study,
        "repeat an ablation of the paper in small, on the demo world (extras `demo` and `metrics`, `visft` for ViSFT)",
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
