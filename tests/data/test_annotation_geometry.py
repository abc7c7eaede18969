import numpy as np
import pytest
from mask_tools import mask_box
from pycocotools import mask as coco_mask

from transformers_upv2.data.annotation_geometry import Placement, clip_box, clip_polygon
from transformers_upv2.model.coco_masks import decode_segmentation, encode_mask, run_lengths


def disk(width, height, center, radius):
    y, x = np.mgrid[:height, :width] + 0.5
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def test_clip_box():
    assert clip_box([-1, 2, 4, 20], 10, 8) == [0, 2, 3, 6]
    assert clip_box([12, 2, 4, 4], 10, 8)[2] == 0


def random_polygon(rng, points=9):
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = rng.uniform(10, 40, points)
    return 32 + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize("seed", range(10))
def test_clip_polygon_covers_what_lies_inside(seed):
    """Its raster equals the raster of the whole polygon, cut afterwards."""
    points = random_polygon(np.random.default_rng(seed)) + 30  # within 0 .. 102
    clipped = clip_polygon(points, 64.0, 64.0)
    whole = coco_mask.decode(coco_mask.frPyObjects([points.ravel().tolist()], 128, 128))[:64, :64]
    part = coco_mask.decode(coco_mask.frPyObjects([clipped.ravel().tolist()], 64, 64))
    assert clipped.min() >= 0
    assert clipped.max() <= 64
    assert np.mean(whole != part) < 0.012


def test_clip_polygon_outside_leaves_nothing():
    assert len(clip_polygon(np.array([[70.0, 1], [80, 1], [75, 9]]), 64.0, 64.0)) == 0


def test_masks_survive_encoding():
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    np.testing.assert_array_equal(decode_segmentation(encode_mask(mask), (7, 9)), mask)
    runs = coco_mask.decode(coco_mask.frPyObjects({"size": [2, 2], "counts": [1, 3]}, 2, 2))
    np.testing.assert_array_equal(decode_segmentation({"size": [2, 2], "counts": [1, 3]}, (2, 2)), runs)
    assert mask_box(disk(20, 10, (8, 5), 3)) == [5, 2, 6, 6]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("kind", ["polygon", "rle"])
@pytest.mark.parametrize(("scale", "shift"), [((2.0, 2.0), (-30, -11)), ((0.5, 0.6), (0, 0))])
def test_a_moved_mask_is_the_mask_of_the_moved_disk(mirrored, kind, scale, shift):
    size, new_size, center, radius = (60, 50), (64, 48), np.array([22.0, 27.0]), 14.0
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    rim = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    segmentation = [rim.ravel().tolist()] if kind == "polygon" else encode_mask(disk(*size, center, radius))
    annotation = {
        "bbox": [8.0, 13.0, 28.0, 28.0],
        "area": 615.0,
        "segmentation": segmentation,
        "category_id": 4,
    }
    moved = Placement(size, new_size, scale, shift, mirrored).move_annotation(annotation)

    middle = np.array([size[0] - center[0] if mirrored else center[0], center[1]])
    y, x = np.mgrid[: new_size[1], : new_size[0]] + 0.5
    source = (np.stack([x, y], axis=-1) - shift) / scale
    expected = ((source - middle) ** 2).sum(axis=-1) <= radius**2
    mask = decode_segmentation(moved["segmentation"], new_size[::-1])
    iou = (mask & expected).sum() / (mask | expected).sum()
    assert iou > 0.95
    assert moved["area"] == mask.sum()
    np.testing.assert_allclose(moved["bbox"], mask_box(expected), atol=1.01)
    assert moved["category_id"] == 4
    assert annotation["bbox"] == [8.0, 13.0, 28.0, 28.0]


def test_annotations_that_leave_the_frame_are_dropped():
    placement = Placement((50, 50), (20, 20), shift=(-30, 0))
    annotation = {"bbox": [0, 0, 20, 10], "area": 200}
    assert placement.move_annotation(annotation) is None
    inside = placement.move_annotation({"bbox": [25, 5, 10, 10], "area": 100, "segmentation": []})
    assert (inside["bbox"], inside["area"]) == ([0, 5, 5, 10], 50)
    hollow = {**annotation, "bbox": [0, 0, 40, 40], "segmentation": encode_mask(disk(50, 50, (9, 9), 5))}
    assert placement.move_annotation(hollow) is None


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for size in ((1, 1), (8, 10), (300, 400)):
        for _ in range(20):
            shape = rng.integers(1, 30)
            mask = np.kron(rng.random(np.ceil(np.array(size) / shape).astype(int)) > 0.5, np.ones((shape, shape)))
            mask = np.asfortranarray(mask[: size[0], : size[1]], dtype=np.uint8)
            flat = mask.flatten("F")
            starts = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))  # where a run of another value starts
            expected = np.diff(np.concatenate([[0], starts])).tolist()
            code = coco_mask.encode(mask)["counts"]
            assert run_lengths(code) == run_lengths(code.decode()) == expected
