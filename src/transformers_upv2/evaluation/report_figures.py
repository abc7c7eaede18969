"""The pictures of a report: loss curves and test images with what was found in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from transformers_upv2.evaluation.drawing import Color, draw_detections

LOSS_PREFIX = "loss/"
_MAX_COLUMNS = 3
_RETRIEVED_SIZE = 256


@dataclass(frozen=True)
class ReportExample:
    """One test image with the answers of the tasks that look at it.

    Attributes:
        image: The image.
        detections: As `draw_detections` takes them.
        caption: The generated caption.
        reference: One of the true captions.
        query: The text that an image was searched for.
        retrieved: The image found first.
        is_right_image: Whether that is the image that `query` describes.
    """

    image: Image.Image
    detections: Sequence[Mapping[str, Any]]
    caption: str
    reference: str
    query: str
    retrieved: Image.Image
    is_right_image: bool


def draw_example(example: ReportExample, colors: Mapping[str, Color]) -> Image.Image:
    """Draw what was found in an example's image."""
    return draw_detections(example.image, example.detections, colors=colors)


def draw_retrieved(example: ReportExample) -> Image.Image:
    """Return the retrieved image at a common size."""
    image = example.retrieved.convert("RGB")
    scale = _RETRIEVED_SIZE / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)))


def draw_losses(loss_history: Sequence[Mapping[str, float]], path: Path) -> bool:
    """Draw one small panel a task: the logged losses and their running mean.

    Args:
        loss_history: Entries with ``step`` and ``loss/<task>``; others are passed over.
        path: The picture to write.

    Returns:
        Whether there was a loss to draw.
    """
    curves = collect_curves(loss_history)
    if not curves:
        return False
    columns = min(len(curves), _MAX_COLUMNS)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    for axes in figure.subplots(rows, columns, squeeze=False).flat[len(curves) :]:
        axes.remove()
    for axes, (task, (steps, losses)) in zip(figure.axes, curves.items(), strict=True):
        axes.plot(steps, losses, color="#2a78d6", alpha=0.3, linewidth=1)
        axes.plot(steps, running_mean(losses), color="#2a78d6", linewidth=1.8)
        axes.set_title(task, fontsize=10, loc="left")
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return True


def collect_curves(
    loss_history: Sequence[Mapping[str, float]],
) -> dict[str, tuple[list[float], list[float]]]:
    """Return the steps and losses of every task, in the order of the tasks' names."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for entry in loss_history:
        for key in entry:
            if key.startswith(LOSS_PREFIX):
                steps, losses = curves.setdefault(key.removeprefix(LOSS_PREFIX), ([], []))
                steps.append(entry["step"])
                losses.append(entry[key])
    return dict(sorted(curves.items()))


def running_mean(values: Sequence[float]) -> np.ndarray:
    """Average each value with those around it, over a tenth of the curve; fewer at the ends."""
    window = np.ones(max(1, len(values) // 10) | 1)  # odd: centered
    sums = np.convolve(np.asarray(values, dtype=float), window, mode="same")
    return sums / np.convolve(np.ones(len(values)), window, mode="same")
