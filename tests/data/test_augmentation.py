import time

import numpy as np
import pytest
from mask_tools import mask_box
from PIL import Image
from scipy import ndimage

from transformers_upv2.data.augmentation import (
    ColorJitter,
    Compose,
    LargeScaleJitter,
    RandomFlip,
)
from transformers_upv2.model.coco_masks import decode_segmentation, encode_mask


@pytest.fixture
def example():
    """Six bright rectangles on black, each with its own red level, as RLE and polygons in turn."""
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    annotations = []
    for i in range(6):
        left, top, width, height = 6 + 40 * (i % 3), 8 + 45 * (i // 3), 22 + i, 30 - 2 * i
        pixels[top : top + height, left : left + width] = (100 + 25 * i, 255, 255)
        mask = pixels[..., 0] == 100 + 25 * i
        right, bottom = left + width, top + height
        polygon = [[left, top, right, top, right, bottom, left, bottom]]
        annotations.append(
            {
                "id": i,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "category_id": i,
                "segmentation": encode_mask(mask) if i % 2 else polygon,
            }
        )
    return {"image": Image.fromarray(pixels), "image_id": 1, "annotations": annotations}


def assert_annotations_fit_the_pixels(example):
    """Inside a mask are its color's pixels and outside none, but for a rim blurred by resizing."""
    red = np.asarray(example["image"])[..., 0].astype(int)
    for annotation in example["annotations"]:
        mask = decode_segmentation(annotation["segmentation"], example["image"].size[::-1])
        has_color = np.abs(red - (100 + 25 * annotation["id"])) <= 3
        assert has_color[ndimage.binary_erosion(mask, iterations=2)].all()
        far = ~ndimage.binary_dilation(mask, iterations=2)
        assert (has_color & far).mean() < 0.01  # rims of brighter rectangles
        assert annotation["area"] == mask.sum()
        np.testing.assert_allclose(annotation["bbox"], mask_box(mask), atol=1.01)


@pytest.mark.parametrize("seed", range(8))
def test_large_scale_jitter_moves_image_boxes_and_masks_alike(example, seed):
    transform = LargeScaleJitter((128, 112), (0.6, 2.5))
    moved = transform(example, np.random.default_rng(seed))
    assert moved["image"].height <= 128
    assert moved["image"].width <= 112
    assert_annotations_fit_the_pixels(moved)
    assert len(example["annotations"]) == 6


def test_large_scale_jitter_fills_its_range(example):
    transform = LargeScaleJitter((96, 128), (0.5, 2.0))
    results = [transform(example, np.random.default_rng(seed)) for seed in range(60)]
    widths = np.array([result["image"].width for result in results])
    assert (widths == 128).mean() == pytest.approx(0.5, abs=0.2)
    assert widths.min() < 75
    assert min(len(result["annotations"]) for result in results) < 6
    corners = {result["annotations"][0]["bbox"][0] for result in results if result["annotations"]}
    assert len(corners) > 20


def test_slivers_are_dropped_but_crowds_stay(example):
    strict = LargeScaleJitter((96, 128), (2.0, 2.0), min_visible=1.0)
    moved = strict(example, np.random.default_rng(1))
    width, height = moved["image"].size
    for annotation in moved["annotations"]:
        whole = example["annotations"][annotation["id"]]["bbox"]
        np.testing.assert_allclose(annotation["bbox"][2:], [2 * whole[2], 2 * whole[3]])
    loose = LargeScaleJitter((96, 128), (2.0, 2.0), min_visible=0.0)
    crowds = [{**annotation, "iscrowd": 1} for annotation in example["annotations"]]
    parts = loose(example, np.random.default_rng(1))["annotations"]
    kept = strict({**example, "annotations": crowds}, np.random.default_rng(1))["annotations"]
    assert len(kept) == len(parts) > len(moved["annotations"])
    assert (width, height) == (128, 96)


def test_flip_twice_is_nothing(example):
    flip = RandomFlip(1.0)
    rng = np.random.default_rng(0)
    once = flip(example, rng)
    assert_annotations_fit_the_pixels(once)
    assert once["annotations"][0]["bbox"][0] == 128 - 6 - 22
    twice = flip(once, rng)
    np.testing.assert_array_equal(np.asarray(twice["image"]), np.asarray(example["image"]))
    for new, old in zip(twice["annotations"], example["annotations"]):
        np.testing.assert_allclose(new["bbox"], old["bbox"])
    assert RandomFlip(0.0)(example, rng) is example


def test_color_jitter_keeps_hues_and_geometry(example):
    orange = {"image": Image.new("RGB", (4, 4), (200, 100, 20))}
    seen = set()
    for seed in range(20):
        red, green, blue = ColorJitter(0.2)(orange, np.random.default_rng(seed))["image"].getpixel((0, 0))
        assert red > green > blue
        seen.add((red, green, blue))
    assert len(seen) > 15
    jittered = ColorJitter()(example, np.random.default_rng(0))
    assert jittered["annotations"] is example["annotations"]


def test_compose_is_a_pure_function_of_the_generator(example):
    transform = Compose([LargeScaleJitter((96, 96)), RandomFlip(), ColorJitter()])
    first, again, other = (transform(example, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first["image"].tobytes() == again["image"].tobytes()
    assert first["annotations"] == again["annotations"]
    assert first["image"].tobytes() != other["image"].tobytes()
    image_only = transform({"image": example["image"], "label": 3}, np.random.default_rng(3))
    assert image_only["image"].tobytes() == first["image"].tobytes()
    assert image_only["label"] == 3


def test_transforms_are_fast(example):
    transform = Compose([LargeScaleJitter((128, 128), (0.5, 2.0)), ColorJitter()])
    times = []
    for seed in range(30):
        start = time.process_time()
        transform(example, np.random.default_rng(seed))
        times.append(time.process_time() - start)
    assert np.median(times) < 0.004


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`scale_range` must be .* got \(2, 1\)"):
        LargeScaleJitter((8, 8), (2, 1))
    with pytest.raises(ValueError, match=r"`canvas_size` must be positive, got \(0, 8\)"):
        LargeScaleJitter((0, 8))
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\], got 2"):
        RandomFlip(2)
    with pytest.raises(ValueError, match=r"`strength` must be in \[0, 1\), got 1"):
        ColorJitter(1)
