"""Run every recipe for two updates of each task on stand-in data, and write peak memory and seconds into its head.

    python scripts/make_standin_data.py --out runs/standin
    python scripts/try_recipes.py --data runs/standin
    python scripts/try_recipes.py --data runs/standin --config large --set "transforms.detection=[{name: flip}]"

Model and image sizes are the recipe's own unless ``--set`` changes them, which the head then says. Since a fresh
machine has no pretrained parts, weights are new and the tokenizer is the stand-in's. Every task is run by ``accelerate
launch`` in processes of its own, on the CPU, in float32, with batches of two.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_upv2.recipes import FOLDER, NAMES
from transformers_upv2.recipes.recipe import read_recipe

TRAIN = Path(__file__).resolve().parent / "train.py"
UPDATES = 2
BATCH_SIZE = 2


@dataclass(frozen=True)
class Trial:
    """What one task of a recipe took.

    Attributes:
        task: The task.
        gibibytes: Largest memory of a process.
        seconds: From start to end, the making of the model included.
    """

    task: str
    gibibytes: float
    seconds: float


def changes_for(name: str, data: Path) -> list[str]:
    """Return the changes that let a recipe run on a fresh machine; they leave its sizes alone."""
    recipe = read_recipe(name)
    arguments = {
        "max_steps": UPDATES,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "bf16": "false",
        "use_cpu": "true",
        "report_to": "[]",
        "batch_sizes": f"{{{', '.join(f'{task}: {BATCH_SIZE}' for task in recipe.data)}}}",
    }
    changes = [*(f"arguments.{key}={value}" for key, value in arguments.items()), "evaluation={}"]
    if "preset" in recipe.model:
        changes += ["model.parts={}", f"model.tokenizer={data / 'tokenizer'}"]
    return changes


def try_task(name: str, task: str, data: Path, changes: Sequence[str]) -> Trial:
    """Run one task of a recipe.

    Raises:
        SystemExit: If it fails; its output has been shown.
    """
    out = data / "runs" / f"{name}-{task}"
    options = ["--config", name, "--data", str(data), "--out", str(out), "--tasks", task, "--set", *changes]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    started = time.time()
    process = subprocess.Popen([*launcher, str(TRAIN), *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{name}: {task} failed; its output stands above.")
    return Trial(task, usage.ru_maxrss / 2**20, time.time() - started)


def write_head(name: str, trials: Sequence[Trial], changes: Sequence[str]) -> None:
    """Write the figures into the comments at the top of a recipe."""
    path = FOLDER / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    peaks = ", ".join(f"{trial.task} {trial.gibibytes:.1f}" for trial in trials)
    seconds = ", ".join(f"{trial.task} {trial.seconds:.0f}" for trial in trials)
    changed = f"; with {' '.join(changes)}" if changes else ""
    figures = {
        "peak memory": f"{peaks} GiB, float32, batches of {BATCH_SIZE}{changed}",
        "seconds": f"{seconds}, on a CPU",
    }
    for key, figure in figures.items():
        text, number = re.subn(rf"^# {key}: .*$", f"# {key}: {figure}", text, count=1, flags=re.MULTILINE)
        if number != 1:
            raise SystemExit(f"{path}: its head must have a line '# {key}: ...', found none.")
    path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what make_standin_data.py wrote")
    parser.add_argument("--config", nargs="+", choices=NAMES, default=list(NAMES), help="default: all recipes")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further changes, such as a size")
    options = parser.parse_args(arguments)
    for name in options.config:
        changes = [*changes_for(name, options.data), *options.set]
        trials = [try_task(name, task, options.data, changes) for task in read_recipe(name).data]
        write_head(name, trials, options.set)
        print(f"{name}: {trials}")


if __name__ == "__main__":
    main()
