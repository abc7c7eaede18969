"""Means, spreads and what seeds cannot tell apart."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from transformers_upv2.studies.arms import ARMS, STUDIES, Arm, Study
from transformers_upv2.studies.settings import StudyPaths, StudySettings
from transformers_upv2.studies.table import (
    METRICS,
    StudyTable,
    cannot_be_told_apart,
    differ,
    draw_table,
    format_table,
    read_table,
    write_table,
)

STUDY = Study("Which is best", {"good": Arm("g"), "same": Arm("s"), "blind": Arm("b", ("detection",))}, "good")
FIGURES = {"g": [0.80, 0.82, 0.81], "s": [0.79, 0.83, 0.80], "b": [0.10, 0.12, 0.11]}


@pytest.fixture
def table(tmp_path):
    paths = StudyPaths(tmp_path)
    for arm, values in FIGURES.items():
        for seed, value in enumerate(values):
            metrics = {"detection/box_ap": value, "seconds/training": 10 + seed, "seconds/evaluation": 1}
            if arm != "b":
                metrics["captioning/cider"] = 2 * value
            paths.run(arm, seed).mkdir(parents=True)
            paths.metrics(arm, seed).write_text(json.dumps(metrics))
    return read_table("mine", STUDY, paths, range(3))


def test_rows_show_mean_and_spread_and_a_dash_where_a_task_was_not_trained(table):
    text = format_table(table)
    assert "| | box AP | CIDEr |" in text
    mean, spread = np.mean(FIGURES["g"]), np.std(FIGURES["g"], ddof=1)
    assert f"| good | {mean:.3f} ± {spread:.3f} | {2 * mean:.3f} ± {2 * spread:.3f} |" in text
    assert "| blind | 0.110 ± 0.010 | - |" in text
    assert "the longest run took 13 s" in text


def test_the_sentence_names_rows_that_do_not_differ_from_the_reference(table):
    sentence = cannot_be_told_apart(table)
    assert "in box AP “same”;" in sentence  # and not "blind"
    assert "in CIDEr “same”." in sentence


def test_one_seed_tells_nothing_apart(table, tmp_path):
    sentence = cannot_be_told_apart(read_table("mine", STUDY, StudyPaths(tmp_path), [0]))
    assert sentence.startswith("Rows that 1 seed cannot tell apart")
    assert "in box AP “same”, “blind”" in sentence


def test_difference_is_that_of_welch():
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.normal(0, 1, 3), rng.normal(2, 1, 3)
        assert differ(first, second) == (stats.ttest_ind(first, second, equal_var=False).pvalue < 0.05)
    assert not differ(np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    assert differ(np.array([1.0, 1.0]), np.array([2.0, 2.0]))
    assert not differ(np.array([1.0]), np.array([2.0]))  # one seed tells nothing


def test_table_and_picture_are_written(table, tmp_path):
    write_table(table, tmp_path)
    assert "![Which is best](mine.png)" in (tmp_path / "mine.md").read_text()
    with Image.open(tmp_path / "mine.png") as picture:
        assert min(picture.size) > 100


def test_figures_that_are_nearly_zero_are_drawn_so(tmp_path):
    rows = {row: {key: np.full(3, np.nan) for key in METRICS} for row in STUDY.arms}
    rows["good"]["detection/box_ap"] = np.array([0, 0, 1e-4])
    draw_table(StudyTable("mine", STUDY, (0, 1, 2), rows, 1.0), tmp_path / "mine.png")
    with Image.open(tmp_path / "mine.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert 0 < (pixels == (0x44, 0x77, 0xAA)).all(axis=-1).mean() < 0.01  # the bar


def test_every_arm_has_one_name_and_every_reference_is_a_row():
    arms = [arm for study in STUDIES.values() for arm in study.arms.values()]
    assert len({arm.name for arm in arms}) == len(ARMS)
    assert all(ARMS[arm.name] == arm for arm in arms)  # what shares a name is the same
    for study in STUDIES.values():
        assert study.reference in study.arms


def test_a_folder_has_one_size(tmp_path):
    paths = StudyPaths(tmp_path / "studies")
    paths.keep_settings(StudySettings("encoders", updates_per_task=3))
    paths.keep_settings(StudySettings("encoders", updates_per_task=3))
    assert paths.read_settings() == StudySettings("encoders", updates_per_task=3)
    with pytest.raises(ValueError, match="Choose another folder"):
        paths.keep_settings(StudySettings("encoders", updates_per_task=4))
