"""One readable report of a run, as Markdown and as a single HTML page.

Every metric stands between what a blind guess reaches and the best there is, so that a number
says how much of the way was gone.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from transformers_upv2.evaluation.drawing import Color, class_colors
from transformers_upv2.evaluation.report_figures import (
    ReportExample,
    draw_example,
    draw_losses,
    draw_retrieved,
)

HEADLINE_METRICS = (
    "detection/box_ap",
    "detection/mask_ap",
    "classification/top1",
    "captioning/bleu4",
    "captioning/cider",
    "retrieval/text_to_image_r1",
    "retrieval/image_to_text_r1",
    "language_modeling/masked_accuracy",
)
"""The metrics that stand first, in this order."""

FILES_FOLDER = "report_files"
_BAR_LENGTH = 10
_EXPLANATION = (
    "The bar shows how far a value has come from the blind baseline (empty) to the ceiling (full). "
    "A dash means that a number is not defined here, such as AP of large objects without any."
)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; margin-bottom: 1.5rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td:first-child { font-family: ui-monospace, monospace; font-size: .9em; }
.bar { background: #e6e6e6; border-radius: 3px; height: 7px; min-width: 90px; }
.bar div { background: #2a78d6; border-radius: 3px; height: 7px; }
.examples { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.examples figure { margin: 0; padding: .7rem; border: 1px solid #ddd; border-radius: 6px; }
img { max-width: 100%; height: auto; }
figcaption p { margin: .4rem 0; }
figcaption img { max-width: 45%; }
""".strip()


@dataclass(frozen=True)
class _Row:
    """One metric of all runs.

    Attributes:
        key: Such as ``detection/box_ap``.
        baseline: The blind baseline's value, if there is one.
        values: The value of each run, ``None`` where it was not measured.
        ceiling: The best value there is, if known.
    """

    key: str
    baseline: float | None
    values: Sequence[float | None]
    ceiling: float | None

    def progress(self, value: float | None) -> float | None:
        """Return how far `value` is on the way from baseline to ceiling, in [0, 1]."""
        floor, top = _defined(self.baseline), _defined(self.ceiling)
        value = _defined(value)
        if floor is None or top is None or value is None or top <= floor:
            return None
        return min(max((value - floor) / (top - floor), 0.0), 1.0)


def write_report(
    out: Path,
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, float],
    ceilings: Mapping[str, float],
    loss_history: Sequence[Mapping[str, float]] = (),
    examples: Sequence[ReportExample] = (),
) -> None:
    """Write ``report.md`` with its pictures beside it, and ``report.html`` that holds everything.

    Args:
        out: Folder of the report, made if it is missing.
        metrics: Title of each run, such as ``"shipped checkpoint"``, and its metrics under keys
            such as ``detection/box_ap``. The runs stand side by side.
        baselines: The blind baselines under the same keys.
        ceilings: The ceilings under the same keys.
        loss_history: ``trainer.state.log_history``: entries with ``step`` and ``loss/<task>``.
        examples: Test images with everything that was found in them.

    Raises:
        ValueError: If there is no metric.
    """
    rows = _make_rows(metrics, baselines, ceilings)
    if not rows:
        raise ValueError("`metrics` must hold at least one run with one metric, got none.")
    folder = out / FILES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    has_losses = draw_losses(loss_history, folder / "losses.png")
    colors = class_colors(sorted({d["label"] for e in examples for d in e.detections}))
    for index, example in enumerate(examples):
        _save_example(folder, index, example, colors)
    parts = _Parts(list(metrics), rows, folder, has_losses, examples)
    (out / "report.md").write_text(_markdown(parts), encoding="utf-8")
    (out / "report.html").write_text(_html(parts), encoding="utf-8")


@dataclass(frozen=True)
class _Parts:
    """Everything that both forms of the report show."""

    titles: Sequence[str]
    rows: Sequence[_Row]
    folder: Path
    has_losses: bool
    examples: Sequence[ReportExample]

    @property
    def tables(self) -> list[tuple[str, list[_Row]]]:
        headline = [row for row in self.rows if row.key in HEADLINE_METRICS]
        others = [row for row in self.rows if row.key not in HEADLINE_METRICS]
        titled = [("Main metrics", headline), ("All other metrics", others)]
        return [(title, rows) for title, rows in titled if rows]


def _make_rows(
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, float],
    ceilings: Mapping[str, float],
) -> list[_Row]:
    keys = dict.fromkeys(HEADLINE_METRICS)
    for run in metrics.values():
        keys |= dict.fromkeys(run)
    return [
        _Row(key, baselines.get(key), [run.get(key) for run in metrics.values()], ceilings.get(key))
        for key in keys
        if any(key in run for run in metrics.values())
    ]


def _save_example(folder: Path, index: int, example: ReportExample, colors: Mapping[str, Color]) -> None:
    pictures: dict[str, Image.Image] = {
        f"example_{index}.jpg": draw_example(example, colors),
        f"retrieved_{index}.jpg": draw_retrieved(example),
    }
    for name, picture in pictures.items():
        picture.save(folder / name, quality=85)


def _defined(value: float | None) -> float | None:
    return None if value == -1 else value  # pycocotools' sign for "no such objects"


def _number(value: float | None) -> str:
    value = _defined(value)
    return "\u2013" if value is None else f"{value:.3f}"


def _markdown(parts: _Parts) -> str:
    lines = ["# Evaluation report", "", _EXPLANATION, ""]
    for title, rows in parts.tables:
        columns = ["metric", "blind baseline", *parts.titles, "ceiling"]
        lines += [f"## {title}", "", _markdown_line(columns)]
        lines += [_markdown_line(["---", *["---:"] * (len(columns) - 1)])]
        for row in rows:
            values = [f"{_number(value)} {_text_bar(row.progress(value))}" for value in row.values]
            cells = [f"`{row.key}`", _number(row.baseline), *values, _number(row.ceiling)]
            lines.append(_markdown_line(cells))
        lines.append("")
    if parts.has_losses:
        lines += ["## Losses", "", f"![loss of every task]({FILES_FOLDER}/losses.png)", ""]
    if parts.examples:
        lines += ["## Test images", ""]
    for index, example in enumerate(parts.examples):
        lines += [
            f"![detections]({FILES_FOLDER}/example_{index}.jpg)",
            "",
            f"- caption: {example.caption}",
            f"- reference: {example.reference}",
            f"- retrieved for “{example.query}” ({_verdict(example)}):",
            "",
            f"![retrieved]({FILES_FOLDER}/retrieved_{index}.jpg)",
            "",
        ]
    return "\n".join(lines)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text_bar(progress: float | None) -> str:
    if progress is None:
        return ""
    full = round(progress * _BAR_LENGTH)
    return "█" * full + "░" * (_BAR_LENGTH - full)


def _html(parts: _Parts) -> str:
    sections = [f"<h1>Evaluation report</h1><p>{html.escape(_EXPLANATION)}</p>"]
    sections += [_html_table(title, parts.titles, rows) for title, rows in parts.tables]
    if parts.has_losses:
        picture = _embed(parts.folder / "losses.png", "loss of every task")
        sections.append(f"<h2>Losses</h2>{picture}")
    if parts.examples:
        figures = (_html_example(parts.folder, i, e) for i, e in enumerate(parts.examples))
        sections.append(f'<h2>Test images</h2><div class="examples">{"".join(figures)}</div>')
    body = "\n".join(sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Evaluation report</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _html_table(title: str, run_titles: Sequence[str], rows: Sequence[_Row]) -> str:
    head = "".join(
        f"<th>{html.escape(column)}</th>" for column in ("metric", "blind baseline", *run_titles, "ceiling")
    )
    lines = []
    for row in rows:
        values = [f"{_number(value)}{_html_bar(row.progress(value))}" for value in row.values]
        cells = [html.escape(row.key), _number(row.baseline), *values, _number(row.ceiling)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<h2>{title}</h2><table><tr>{head}</tr>{''.join(lines)}</table>"


def _html_bar(progress: float | None) -> str:
    if progress is None:
        return ""
    return f'<div class="bar"><div style="width:{progress:.0%}"></div></div>'


def _html_example(folder: Path, index: int, example: ReportExample) -> str:
    return (
        f"<figure>{_embed(folder / f'example_{index}.jpg', 'detections')}<figcaption>"
        f"<p><b>caption</b> {html.escape(example.caption)}</p>"
        f"<p><b>reference</b> {html.escape(example.reference)}</p>"
        f"<p><b>retrieved</b> for “{html.escape(example.query)}”, {_verdict(example)}:</p>"
        f"{_embed(folder / f'retrieved_{index}.jpg', 'retrieved')}</figcaption></figure>"
    )


def _verdict(example: ReportExample) -> str:
    return "the right image" if example.is_right_image else "another image"


def _embed(path: Path, text: str) -> str:
    kind = {".jpg": "jpeg", ".png": "png"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{text}" src="data:image/{kind};base64,{data}">'
