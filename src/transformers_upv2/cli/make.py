"""Verbs that make something to work with: `make-world` and `train`."""

import argparse
from pathlib import Path

from transformers_upv2.cli.common import Verbs, add_verb, names


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    _add_make_world(verbs)
    _add_train(verbs)


def _add_make_world(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "make-world",
        make_world,
        "write the demo world: scenes with boxes, masks, classes, captions and text (extra `demo`)",
        ["upv2 make-world --out runs/world --seed 0"],
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder that is empty or does not exist")
    parser.add_argument("--seed", type=int, default=0, help="everything depends on it (default: %(default)s)")


def make_world(options: argparse.Namespace) -> None:
    """Write the demo world."""
    from transformers_upv2.data.demo_world import make_world as write_world

    write_world(options.out, seed=options.seed)
    print(f"The demo world is in {options.out}; its README.txt says what lies where.")


def _add_train(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "train",
        train,
        "train by a recipe, or go on where a run stopped, and evaluate",
        [
            "upv2 train --config finetune_coco_json --data my_data --out runs/mine --dry-run   # only checks",
            "upv2 train --config finetune_coco_json --data my_data --out runs/mine --preview look   # only draws",
            "upv2 train --config finetune_coco_json --data my_data --out runs/mine --set arguments.max_steps=500",
            "accelerate launch -m transformers_upv2.recipes --config base --data DATA --out runs/base",
        ],
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="a recipe of the package, or a YAML file")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="where the paths of the recipe start")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; a run that stopped goes on")
    parser.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="changes, as arguments.max_steps=100")
    parser.add_argument("--tasks", type=names, help='train only these tasks of the recipe, "detection, retrieval"')
    parser.add_argument("--dry-run", action="store_true", help="check data, memory and updates, and stop")
    parser.add_argument("--preview", metavar="FOLDER", help="draw examples there, as training will see them, and stop")


def train(options: argparse.Namespace) -> None:
    """Run a recipe in this process."""
    from transformers_upv2.recipes.run import main

    arguments = ["--config", options.config, "--data", options.data, "--out", options.out]
    arguments += ["--dry-run"] if options.dry_run else []
    arguments += ["--preview", options.preview] if options.preview else []
    arguments += ["--set", *options.set] if options.set else []
    arguments += ["--tasks", *options.tasks] if options.tasks else []
    main(arguments)
