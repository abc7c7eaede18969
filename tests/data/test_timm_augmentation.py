import random

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_upv2.data.timm_augmentation import TimmAugmentation


@pytest.fixture
def example():
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "label": 3}


def test_the_generator_decides_and_global_generators_stay(example):
    augment = TimmAugmentation(32)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    results = [augment(example, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    pixels = [np.asarray(result["image"]) for result in results]
    assert (pixels[0] == pixels[1]).all()
    assert (pixels[0] != pixels[2]).any()
    assert {result["label"] for result in results} == {3}
    assert {result["image"].size for result in results} == {(32, 32)}


def test_each_part_can_be_turned_off(example):
    flat = {"image": Image.new("RGB", (50, 50), (200, 30, 120))}
    plain = TimmAugmentation(32, auto_augment=None, color_jitter=0.0, erasing_probability=0.0, flip_probability=0.0)
    assert np.ptp(np.asarray(plain(flat, np.random.default_rng(0))["image"]), axis=(0, 1)).max() == 0
    erased = TimmAugmentation(32, auto_augment=None, color_jitter=0.0, erasing_probability=1.0)
    changed = np.asarray(erased(flat, np.random.default_rng(0))["image"]) != (200, 30, 120)
    assert 0.02 * 1024 < changed.any(axis=2).sum() < 0.4 * 1024
