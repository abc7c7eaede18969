"""What a study found: means and spreads over seeds, as a table, a picture and a sentence on what they cannot tell."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from transformers_upv2.studies.arms import Study
from transformers_upv2.studies.settings import StudyPaths

METRICS = {
    "detection/box_ap": "box AP",
    "proposals/box_ap": "proposal AP",
    "proposals/box_ar100": "proposal AR@100",
    "classification/top1": "top-1",
    "retrieval/image_to_text_r1": "I→T R@1",
    "retrieval/text_to_image_r1": "T→I R@1",
    "captioning/bleu4": "BLEU-4",
    "captioning/cider": "CIDEr",
    "probe/accuracy": "probe top-1",
}
"""The columns: those of the paper's tables, CIDEr, class-agnostic proposals and the linear probe."""
SIGNIFICANCE = 0.05
NARROWEST_PANEL = 0.01
"""Figures that the table rounds to 0.000 must not fill a panel."""


@dataclass(frozen=True)
class StudyTable:
    """All figures of a study.

    Attributes:
        name: Key of ``STUDIES``.
        study: The study.
        seeds: Of the runs.
        values: Figures of each row, keys of ``METRICS``, ``(seeds,)``; nan where the arm lacks the task.
        seconds: Longest run.
    """

    name: str
    study: Study
    seeds: tuple[int, ...]
    values: dict[str, dict[str, np.ndarray]]
    seconds: float


def read_table(name: str, study: Study, paths: StudyPaths, seeds: Sequence[int]) -> StudyTable:
    """Read the figures of all runs of a study."""
    values: dict[str, dict[str, np.ndarray]] = {}
    longest = 0.0
    for row, arm in study.arms.items():
        runs = [json.loads(paths.metrics(arm.name, seed).read_text()) for seed in seeds]
        values[row] = {key: np.array([run.get(key, math.nan) for run in runs]) for key in METRICS}
        longest = max(longest, *(run["seconds/training"] + run["seconds/evaluation"] for run in runs))
    return StudyTable(name, study, tuple(seeds), values, longest)


def cannot_be_told_apart(table: StudyTable) -> str:
    """Say for each metric which rows do not differ from the reference, by Welch's t-test over the seeds."""
    reference = table.values[table.study.reference]
    parts = []
    for key, title in METRICS.items():
        others = {
            row: values[key]
            for row, values in table.values.items()
            if row != table.study.reference and not np.isnan([values[key], reference[key]]).any()
        }
        alike = [row for row, values in others.items() if not differ(values, reference[key])]
        if others:
            parts.append(f"in {title} {', '.join(f'“{row}”' for row in alike) if alike else 'none'}")
    number = len(table.seeds)
    return (
        f"Rows that {number} seed{'s' if number > 1 else ''} cannot tell apart from “{table.study.reference}” "
        f"(Welch's t-test, p ≥ {SIGNIFICANCE}): {'; '.join(parts)}."
    )


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether two samples have different means, by Welch's t-test; equal constants do not differ."""
    if len(first) < 2:
        return False
    if first.std() == 0 and second.std() == 0:
        return bool(first[0] != second[0])
    return bool(stats.ttest_ind(first, second, equal_var=False).pvalue < SIGNIFICANCE)


def format_table(table: StudyTable) -> str:
    """Make the Markdown: table, sentence, picture."""
    keys = [key for key in METRICS if any(not np.isnan(values[key]).all() for values in table.values.values())]
    lines = [
        f"## {table.study.title}",
        "",
        f"`upv2 study {table.name}`, seeds {', '.join(map(str, table.seeds))}: mean ± standard deviation on the demo "
        f"world's test split; the longest run took {table.seconds:.0f} s.",
        "",
        f"| | {' | '.join(METRICS[key] for key in keys)} |",
        f"|---|{'---|' * len(keys)}",
    ]
    for row, values in table.values.items():
        lines.append(f"| {row} | {' | '.join(_cell(values[key]) for key in keys)} |")
    lines += ["", cannot_be_told_apart(table)]
    if table.study.finding:
        lines += ["", f"The paper, in its own setting: {table.study.finding}"]
    return "\n".join([*lines, "", f"![{table.study.title}]({table.name}.png)", ""])


def write_table(table: StudyTable, folder: Path) -> None:
    """Write ``NAME.md`` and ``NAME.png``."""
    (folder / f"{table.name}.md").write_text(format_table(table), encoding="utf-8")
    draw_table(table, folder / f"{table.name}.png")


def draw_table(table: StudyTable, path: Path) -> None:
    """Draw a panel a metric: every seed a dot, the mean a bar, the reference's mean a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    keys = [key for key in METRICS if any(not np.isnan(values[key]).all() for values in table.values.values())]
    rows = list(table.values)
    figure = Figure(figsize=(2.6 * len(keys) + 2.5, 0.35 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for panel, key in zip(panels, keys):
        for height, row in enumerate(rows):
            values = table.values[row][key]
            is_reference = row == table.study.reference
            panel.barh(height, np.mean(values), color="#4477aa" if is_reference else "#bbccdd", height=0.7)
            panel.plot(values, [height] * len(values), "o", color="#222222", markersize=3)
        panel.axvline(np.mean(table.values[table.study.reference][key]), color="#4477aa", linewidth=0.8)
        panel.set_title(METRICS[key], fontsize=9)
        panel.tick_params(labelsize=8)
        panel.set_yticks(range(len(rows)), rows)
        panel.set_xlim(0, max(panel.get_xlim()[1], NARROWEST_PANEL))
    panels[0].invert_yaxis()
    figure.suptitle(table.study.title, fontsize=10)
    figure.savefig(path, dpi=110)


def _cell(values: np.ndarray) -> str:
    if np.isnan(values).all():
        return "-"
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0.0:.3f}"
