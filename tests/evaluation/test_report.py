import base64
import re

import numpy as np
import pytest
from PIL import Image

from transformers_upv2.evaluation.report import FILES_FOLDER, HEADLINE_METRICS, write_report
from transformers_upv2.evaluation.report_figures import ReportExample, collect_curves, draw_losses, running_mean

SHIPPED = {key: 0.5 + index / 100 for index, key in enumerate(HEADLINE_METRICS)} | {"detection/box_ap_large": -1.0}
SHORT = dict.fromkeys(HEADLINE_METRICS, 0.25)
HISTORY = [
    {"step": step, "epoch": 0.1, "loss/detection": 60 / step, "loss/captioning": 3 - step / 100}
    for step in range(1, 60)
] + [{"step": 60, "loss/retrieval": 2.0, "train_runtime": 12.0}]


def example(caption="a red circle <above> a square"):
    box = {"xmin": 10, "ymin": 10, "xmax": 50, "ymax": 40}
    return ReportExample(
        image=Image.new("RGB", (64, 64), "gray"),
        detections=[{"label": "circle", "score": 0.9, "box": box}],
        caption=caption,
        reference="a circle",
        query="the only star",
        retrieved=Image.new("RGB", (64, 48), "blue"),
        is_right_image=False,
    )


@pytest.fixture
def report(tmp_path):
    write_report(
        tmp_path / "new" / "folder",
        {"shipped checkpoint": SHIPPED, "short training": SHORT},
        baselines=dict.fromkeys(HEADLINE_METRICS, 0.0),
        ceilings=dict.fromkeys(HEADLINE_METRICS, 1.0),
        loss_history=HISTORY,
        examples=[example(), example("second")],
    )
    return tmp_path / "new" / "folder"


def test_both_forms_have_every_key_value_and_text(report):
    for name in ("report.md", "report.html"):
        text = (report / name).read_text(encoding="utf-8")
        for key, value in SHIPPED.items():
            assert key in text
            assert value == -1 or f"{value:.3f}" in text
        for part in ("shipped checkpoint", "short training", "blind baseline", "ceiling", "0.250"):
            assert part in text
        for part in ("second", "a circle", "the only star", "another image"):
            assert part in text


def test_main_metrics_stand_first_in_their_order(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    places = [text.index(f"`{key}`") for key in HEADLINE_METRICS]
    assert places == sorted(places)
    assert text.index("`detection/box_ap_large`") > places[-1]


def test_undefined_numbers_are_dashes(report):
    [line] = [x for x in (report / "report.md").read_text(encoding="utf-8").splitlines() if "box_ap_large" in x]
    assert "-1" not in line
    assert line.count("\u2013") == 4


def test_pictures_of_the_markdown_exist_and_the_page_needs_none(report):
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (report / "report.md").read_text(encoding="utf-8"))
    assert len(linked) == 5
    for path in linked:
        assert path.startswith(FILES_FOLDER)
        Image.open(report / path).verify()
    page = (report / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 5
    embedded = [base64.b64decode(source.split("base64,")[1]) for source in sources]
    assert embedded == [(report / path).read_bytes() for path in linked]
    assert "<above>" not in page
    assert len(page) < 500_000


@pytest.mark.parametrize(("value", "full"), [(0.2, 0), (0.6, 5), (1.0, 10), (0.1, 0), (1.3, 10)])
def test_bar_is_the_way_from_baseline_to_ceiling(tmp_path, value, full):
    write_report(tmp_path, {"run": {"a/b": value}}, {"a/b": 0.2}, {"a/b": 1.0})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "█" * full + "░" * (10 - full) in text
    assert f"width:{full * 10}%" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_metric_without_baseline_has_no_bar(tmp_path):
    write_report(tmp_path, {"run": {"a/b": 0.4}}, {}, {})
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0.400" in text
    assert "░" not in text
    assert "Losses" not in text


def test_report_without_metrics_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="`metrics` must hold at least one"):
        write_report(tmp_path, {}, {}, {})


def test_curves_are_the_logged_losses():
    curves = collect_curves(HISTORY)
    assert list(curves) == ["captioning", "detection", "retrieval"]
    steps, losses = curves["detection"]
    assert steps == list(range(1, 60))
    assert losses == [60 / step for step in steps]
    assert curves["retrieval"] == ([60], [2.0])


def test_losses_are_drawn_without_a_display(tmp_path):
    assert not draw_losses([{"step": 1, "train_runtime": 3.0}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert draw_losses(HISTORY, tmp_path / "losses.png")
    pixels = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB"))
    assert (pixels != 255).any(axis=2).mean() > 0.01


def test_running_mean_keeps_lines_and_length():
    line = np.arange(50.0)
    np.testing.assert_allclose(running_mean(line)[5:-5], line[5:-5])
    assert len(running_mean([3.0])) == 1
    assert np.std(running_mean(np.resize([0.0, 1.0], 100))) < 0.1
