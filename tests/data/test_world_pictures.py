"""Objects, backgrounds and scenes of the demo world, measured on what is drawn."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from transformers_upv2.data.world_backgrounds import REGION_SHARES, photograph_region
from transformers_upv2.data.world_objects import (
    CLASS_NAMES,
    COLORS,
    DIGIT_NAMES,
    ObjectPainter,
    tight_slices,
)
from transformers_upv2.data.world_scenes import (
    IMAGE_SIZE,
    MAX_SCALE,
    MIN_SCALE,
    Scene,
    ScenePainter,
    draw_scale,
)


@pytest.fixture(scope="module")
def painters():
    return {split: ScenePainter(split) for split in ("train", "val", "test")}


@pytest.fixture(scope="module")
def scenes(painters) -> list[Scene]:
    return [painters["test"].draw_scene(np.random.default_rng([5, i])) for i in range(180)]


def nearest_color(pixels: np.ndarray) -> str:
    """The color of most of the pixels, ``(pixels, 3)``, by direction only (not brightness)."""
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], dtype=float)
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    cosines = (pixels / (np.linalg.norm(pixels, axis=1, keepdims=True) + 1e-6)) @ palette.T
    sure = cosines.max(axis=1) > 0.97
    return names[np.bincount(cosines.argmax(axis=1)[sure], minlength=len(names)).argmax()]


@pytest.mark.parametrize("class_name", CLASS_NAMES)
@pytest.mark.parametrize("scale", [MIN_SCALE, 0.4, MAX_SCALE])
def test_an_object_has_its_size_and_its_color(painters, class_name, scale):
    for i, color in enumerate(COLORS):
        rng = np.random.default_rng(i)
        drawn = painters["train"].objects.draw(class_name, color, scale, IMAGE_SIZE, rng)
        assert abs(max(drawn.mask.shape) - scale * IMAGE_SIZE) <= 1.5
        assert tight_slices(drawn.mask) == tuple(slice(0, side) for side in drawn.mask.shape)
        pixels = drawn.paint[drawn.coverage == 1]
        assert nearest_color(pixels) == color


def test_shapes_of_different_classes_differ(painters):
    """Mean masks of two classes overlap less than two masks of one class do."""
    means = []
    for name in CLASS_NAMES:
        masks = []
        for i in range(12):
            rng = np.random.default_rng(i)
            mask = painters["train"].objects.draw(name, "red", 0.5, IMAGE_SIZE, rng).mask
            masks.append(np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize((24, 24))))
        means.append(np.mean(masks, axis=0).ravel() / 255)
    distance = np.abs(np.array(means)[:, None] - np.array(means)[None]).mean(axis=2)
    assert distance[~np.eye(len(means), dtype=bool)].min() > 0.1


def test_splits_share_no_digit_image():
    digits = {}
    for split in ("train", "val", "test"):
        painter = ObjectPainter(split)
        for name in DIGIT_NAMES:
            assert len(painter._digits[name]) >= 20
            digits[split, name] = {image.tobytes() for image in painter._digits[name]}
    for name in DIGIT_NAMES:
        assert digits["train", name].isdisjoint(digits["val", name] | digits["test", name])
        assert digits["val", name].isdisjoint(digits["test", name])


@pytest.mark.parametrize("shape", [(40, 101), (101, 40)])
def test_splits_share_no_part_of_a_photograph(shape):
    numbered = Image.fromarray(np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape))
    parts = [np.asarray(photograph_region(numbered, split)).ravel() for split in REGION_SHARES]
    assert len(np.concatenate(parts)) == len(np.unique(np.concatenate(parts))) == 40 * 101


def test_sizes_span_one_to_six_and_most_are_middling():
    rng = np.random.default_rng(0)
    scales = np.array([draw_scale(rng) for _ in range(4000)])
    assert (scales.min(), scales.max()) == (MIN_SCALE, MAX_SCALE)
    assert pytest.approx(6) == MAX_SCALE / MIN_SCALE
    assert (scales < 0.18).mean() < 0.2
    assert ((scales > 0.2) & (scales < 0.5)).mean() > 0.5


def test_scenes_keep_the_rules_of_number_size_and_occlusion(scenes):
    objects = [item for scene in scenes for item in scene.objects]
    assert {len(scene.objects) for scene in scenes} == {2, 3, 4, 5, 6}
    scales = np.array([item.drawn.scale for item in objects])
    assert (scales.min(), scales.max()) == (MIN_SCALE, MAX_SCALE)
    assert (scales < 0.18).mean() < 0.2
    hidden = np.array([1 - item.visible.sum() / item.drawn.mask.sum() for item in objects])
    assert (hidden > 0.2).mean() == pytest.approx(0.3, abs=0.03)
    assert hidden.max() <= 0.55
    assert np.bincount([CLASS_NAMES.index(o.drawn.class_name) for o in objects]).min() > 30


def test_scenes_are_unambiguous(scenes):
    for scene in scenes:
        kinds = [(item.drawn.class_name, item.drawn.color_name) for item in scene.objects]
        assert len(set(kinds)) == len(kinds)
        assert sum(item.visible.astype(int) for item in scene.objects).max() == 1
        areas = [item.box[2] * item.box[3] for item in scene.objects]
        assert areas == sorted(areas, reverse=True)
        assert all(large >= 1.3 * small for large, small in pairwise(areas[:3]))


def test_masks_are_where_the_color_is(scenes):
    """Of the visible part most pixels that have any strong color have the object's."""
    right = [
        nearest_color(scene.pixels[item.visible].astype(float)) == item.drawn.color_name
        for scene in scenes
        for item in scene.objects
    ]
    assert np.mean(right) > 0.99


def test_single_images_show_one_main_object(painters):
    for i, name in enumerate(CLASS_NAMES):
        pixels = painters["val"].draw_single(name, np.random.default_rng([3, i]))
        again = painters["val"].draw_single(name, np.random.default_rng([3, i]))
        assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        np.testing.assert_array_equal(pixels, again)
