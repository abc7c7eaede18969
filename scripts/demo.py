"""Show and train the model: `make demo`.

First the shipped tiny checkpoint is evaluated on the demo world's test split; then a model is trained for a few
minutes with the same code from pretrained parts: the image and text encoders of the shipped checkpoint, as the paper's
joint training starts from pretrained encoders; the unified decoder starts from random weights and learns text alone
before it meets images. Everything lands in runs/demo: metrics.json (the shipped checkpoint), short_training.json (the
short run), report.md and report.html, and the short run's model in runs/demo/model.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from tiny_recipe import ROOT, RUNS, SHIPPED, evaluators, save_folder
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Processor
from transformers_upv2.data.demo_world import World, WorldSizes
from transformers_upv2.evaluation.reference_scores import blind_baselines, ceilings
from transformers_upv2.evaluation.report import HEADLINE_METRICS, write_report
from transformers_upv2.evaluation.report_figures import ReportExample
from transformers_upv2.evaluation.suite import evaluate_all
from transformers_upv2.studies.world_model import load_folder, prepare_world

DEMO = RUNS / "demo"
# The test split is that of the full world; a few minutes of training need fewer training images.
SIZES = WorldSizes(scenes=(2500, 100, 300), classification=(2500, 100, 600), text=(8000, 500, 500))
# Two processes on two slow cores make about 100 updates a minute; the time to perceive all images counts as well.
STEPS_PER_MINUTE = 70
NUM_EXAMPLES = 12


def train_for(minutes: float, out: Path) -> None:
    """Train from pretrained parts, the shipped image side among them, in two processes with one thread each."""
    steps = round(minutes * STEPS_PER_MINUTE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [str(ROOT / "scripts" / "train_tiny.py"), "--out", str(out), "--world", str(DEMO / "world")]
    command += ["--encoders", str(SHIPPED), "--text-steps", str(steps // 4), "--locked-steps", str(steps)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def collect_examples(folder: Path, world: World) -> list[ReportExample]:
    """Ask the stock pipelines about a few test images."""
    dataset = world.test["captioning"]
    scenes = [dataset[index] for index in range(NUM_EXAMPLES)]
    images = [scene["image"] for scene in scenes]
    segment = pipeline("image-segmentation", model=folder)
    caption = pipeline("image-captioning", model=folder)
    search = pipeline("image-text-retrieval", model=folder)
    files = sorted(world.paths.scenes("test").glob("*.jpg"))
    search.build_index(files, batch_size=16)
    examples = []
    for image, scene, found, text in zip(images, scenes, segment(images, threshold=0.4), caption(images)):
        query = scene["captions"][0]
        best = Image.open(search(query, top_k=1)[0]["image"]).convert("RGB")
        examples.append(
            ReportExample(
                image=image,
                detections=found,
                caption=text[0]["generated_text"],
                reference=query,
                query=query,
                retrieved=best,
                is_right_image=best.tobytes() == image.tobytes(),
            )
        )
    return examples


def print_table(runs: Mapping[str, Mapping[str, float]]) -> None:
    """Print the main metrics of all runs side by side."""
    print("\n" + f"{'':38s}" + "".join(f"{title:>16s}" for title in runs))
    for key in HEADLINE_METRICS:
        print(f"{key:38s}" + "".join(f"{run.get(key, float('nan')):16.3f}" for run in runs.values()))


def write_json(path: Path, values: Mapping[str, float]) -> None:
    """Write metrics, rounded to what they can tell."""
    path.write_text(json.dumps({key: round(value, 4) for key, value in values.items()}, indent=2) + "\n")


def evaluate(model: UniPerceiverV2ForMultiTask, processor: UniPerceiverV2Processor, world: World) -> dict[str, float]:
    """Run every evaluator on the test split."""
    return evaluate_all(model, processor, world.test, evaluators(), batch_size=50)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training (default: 5)")
    options = parser.parse_args()
    logging.set_verbosity_error()
    started = time.time()
    print("1/4  The demo world")
    world = prepare_world(DEMO / "world", SIZES)
    print("2/4  The shipped checkpoint on the test split")
    model, processor = load_folder(SHIPPED)
    shipped = evaluate(model, processor, world)
    write_json(DEMO / "metrics.json", shipped)
    blind = blind_baselines(model, processor, world.test, world.train, evaluators())
    best = ceilings(shipped, world.test["captioning"])
    write_json(DEMO / "baselines.json", blind)
    write_json(DEMO / "ceilings.json", best)
    examples = collect_examples(SHIPPED, world)
    print_table({"blind": blind, "shipped": shipped, "ceiling": best})
    print(f"3/4  Training from pretrained parts for about {options.minutes:g} minutes")
    short_run = DEMO / "short_run"
    shutil.rmtree(short_run, ignore_errors=True)
    train_for(options.minutes, short_run)
    model, processor = load_folder(short_run / "locked" / "final")
    shutil.rmtree(DEMO / "model", ignore_errors=True)
    save_folder(model, processor, DEMO / "model")
    print("4/4  The short run on the test split")
    short = evaluate(model, processor, world)
    write_json(DEMO / "short_training.json", short)
    history = json.loads((short_run / "locked" / "history.json").read_text())["log_history"]
    runs = {"short training": short, "shipped checkpoint": shipped}
    write_report(DEMO, runs, blind, best, history, examples)
    print_table({"blind": blind, "short run": short, "shipped": shipped, "ceiling": best})
    print(f"\nDone in {(time.time() - started) / 60:.1f} minutes. Open {DEMO / 'report.html'}")


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    main()
