"""Run a recipe: train, or go on where a run was, evaluate, and save a folder for every pipeline, with a card."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from transformers_upv2.data.examples import DataError
from transformers_upv2.evaluation.results import format_table_6, write_metrics
from transformers_upv2.model.distributed import leave_together
from transformers_upv2.recipes import NAMES
from transformers_upv2.recipes.building import build_trainer
from transformers_upv2.recipes.dry_run import describe_run
from transformers_upv2.recipes.preview import draw_previews
from transformers_upv2.recipes.recipe import Recipe, read_recipe
from transformers_upv2.recipes.run_card import write_card
from transformers_upv2.training.checkpoints import newest_checkpoint
from transformers_upv2.training.upv2_trainer import UniPerceiverV2Trainer


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Train by a recipe.",
        epilog="example: accelerate launch scripts/train.py --config finetune_coco_json --data my_data "
        "--out runs/mine --set arguments.max_steps=500",
    )
    parser.add_argument("--config", required=True, help=f"one of {', '.join(NAMES)}, or a YAML file")
    parser.add_argument("--data", type=Path, required=True, help="folder that the paths of the recipe start from")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; a run that stopped there goes on")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes, as arguments.max_steps=100"
    )
    parser.add_argument("--tasks", nargs="+", help="train only these tasks of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="check data, memory and updates, and stop")
    parser.add_argument(
        "--preview", type=Path, metavar="FOLDER", help="draw examples there, as training will see them, and stop"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are raised."""
    options = parse_arguments(arguments)
    if prepared := prepare(options):
        train(*prepared, options)


def run_script(arguments: Sequence[str] | None = None) -> None:
    """Run the command line for a person: what is wrong with data or settings is said in one message.

    Errors in the middle of training keep their traceback unless they are of the data.
    """
    options = parse_arguments(arguments)
    try:
        prepared = prepare(options)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"train: {error}")
    if prepared is not None:
        try:
            train(*prepared, options)
        except DataError as error:
            sys.exit(f"train: {error}")


def prepare(options: argparse.Namespace) -> tuple[Recipe, UniPerceiverV2Trainer] | None:
    """Read the recipe and build its trainer, or None after ``--dry-run`` or ``--preview``."""
    recipe = read_recipe(options.config, options.set)
    if options.tasks:
        recipe = recipe.restrict(options.tasks)
    if options.dry_run:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        print("\n".join(describe_run(recipe, options.data, options.out, world_size)))
        return None
    if options.preview:
        for file in draw_previews(recipe, options.data, options.preview):
            print(f"picture: {file}")
        return None
    return recipe, build_trainer(recipe, options.data, options.out)


def train(recipe: Recipe, trainer: UniPerceiverV2Trainer, options: argparse.Namespace) -> None:
    """Train from the newest checkpoint or the start, save, evaluate, and write the card."""
    checkpoint = newest_checkpoint(options.out)
    if checkpoint is not None and trainer.is_world_process_zero():
        print(_describe_resume(checkpoint, trainer.args.max_steps), file=sys.stderr)
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # which uploads nothing yet
    prefixed = trainer.evaluate() if trainer.eval_dataset else {}
    metrics = {key.removeprefix("eval_"): value for key, value in prefixed.items() if "/" in key}
    if trainer.is_world_process_zero():
        if metrics:
            write_metrics(metrics, options.out / "metrics.json")
            print(format_table_6({options.config: metrics}))
            print(f"\nmodel and processor: {options.out}; all numbers: {options.out / 'metrics.json'}")
        since = f" since {Path(checkpoint).name}" if checkpoint else ""
        took = f"{trained.metrics['train_runtime'] / 60:.1f} minutes{since}"
        print(write_card(recipe, options.data, trainer, metrics, took))
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    leave_together()


def _describe_resume(checkpoint: str, max_steps: int) -> str:
    done = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
    left = "nothing is left to train" if done >= max_steps else "training goes on there"
    return f"{checkpoint}: {done} of {max_steps} updates are done, {left}. To begin anew, name another `--out`."
