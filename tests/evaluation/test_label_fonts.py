"""Labels in any script, and no longer than the picture is wide."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from transformers_upv2.evaluation import label_fonts
from transformers_upv2.evaluation.drawing import draw_detections
from transformers_upv2.evaluation.label_fonts import can_write, fit_label


def draw(label: str) -> np.ndarray:
    box = {"xmin": 10, "ymin": 60, "xmax": 160, "ymax": 200}
    image = Image.new("RGB", (512, 512), "gray")
    return np.asarray(draw_detections(image, [{"label": label, "score": 0.5, "box": box}]))


@pytest.mark.parametrize(("one", "other"), [("é", "ü"), ("кот", "сон"), ("λ", "π")])
def test_letters_beyond_ascii_can_be_told_apart(one: str, other: str) -> None:
    pytest.importorskip("matplotlib")
    assert (draw(one) != draw(other)).any()


def test_ascii_keeps_pillows_own_font() -> None:
    text, font = fit_label("sofa 50%", 20, 500)
    assert text == "sofa 50%"
    assert font.getname() == ImageFont.load_default(20).getname()


def test_without_any_font_accents_are_dropped_and_the_rest_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ImageFont.load_default(20)
    monkeypatch.setattr(label_fonts, "_fonts", lambda size: [default])
    assert not can_write(default, "é")
    assert fit_label("très 猫 50%", 20, 500)[0] == "tres ? 50%"


@pytest.mark.parametrize("label", ["a very long label that nobody would type " * 3, "W" * 300])
def test_a_long_label_is_shortened_and_keeps_its_score(label: str) -> None:
    text, font = fit_label(f"{label} 76%", 20, 400)
    assert font.getlength(text) <= 400
    assert text.startswith(label[:10])
    assert text.endswith("... 76%")


def test_a_long_label_without_a_score_is_shortened() -> None:
    assert fit_label("a long label", 20, 60)[0].endswith("...")


def test_a_long_label_begins_inside_the_picture() -> None:
    drawn = draw("W" * 300)
    fill = (drawn == drawn[60 - 10, 20]).all(axis=2)
    assert not fill[:, -1].any()
