import itertools

import numpy as np
import pytest
from PIL import Image

from transformers_upv2.evaluation import drawing
from transformers_upv2.evaluation.drawing import CROWDED, MIN_LONG_SIDE, class_colors, draw_detections

BOX = {"xmin": 40, "ymin": 60, "xmax": 160, "ymax": 200}


def noise(size=(MIN_LONG_SIDE, MIN_LONG_SIDE)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def changed(image, drawn):
    return (np.asarray(image) != np.asarray(drawn)).any(axis=2)


def test_nothing_found_changes_nothing():
    assert not changed(noise(), draw_detections(noise(), [])).any()


def test_only_the_edge_and_the_label_of_a_box_change():
    image = noise()
    difference = changed(image, draw_detections(image, [{"label": "cat", "score": 0.5, "box": BOX}]))
    inside = difference[70:190, 50:150]
    assert not inside.any()
    assert difference[60:200, 40].all()
    assert difference[60, 40:160].all()
    near = difference[30:205, 35:165]
    assert near.sum() == difference.sum()


def test_mask_tints_its_inside_and_lets_the_image_shine_through():
    image = noise()
    mask = np.zeros((MIN_LONG_SIDE, MIN_LONG_SIDE), dtype=bool)
    mask[100:150, 60:140] = True
    drawn = draw_detections(image, [{"label": "cat", "score": 0.5, "box": BOX}], masks=[mask])
    difference = changed(image, drawn)
    assert difference[105:145, 65:135].mean() > 0.99
    assert not difference[155:190, 50:150].any()
    before, after = (np.asarray(x)[105:145, 65:135, 0].ravel() for x in (image, drawn))
    assert np.corrcoef(before, after)[0, 1] > 0.99
    assert after.mean() > before.mean() + 20  # the first color is red


def test_segments_without_a_box_are_drawn_around_their_mask():
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 32, 32))
    image = Image.new("RGB", (64, 64), "gray")
    drawn = np.asarray(draw_detections(image, [{"label": "cat", "score": None, "mask": mask}]))
    assert drawn.shape == (MIN_LONG_SIDE, MIN_LONG_SIDE, 3)
    assert (drawn[128 + 20, 128] != 128).any()
    assert (drawn[400, 400] == 128).all()


def test_small_images_grow_and_large_ones_stay():
    detections = [{"label": "cat", "score": 0.5, "box": {"xmin": 5, "ymin": 5, "xmax": 20, "ymax": 9}}]
    assert draw_detections(noise((64, 32)), detections).size == (512, 256)
    assert draw_detections(noise((800, 600)), detections).size == (800, 600)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    """Twice the same box: nearly twice as many label pixels as once."""
    image = Image.new("RGB", (MIN_LONG_SIDE, MIN_LONG_SIDE), (1, 2, 3))
    color = {"cat": (250, 0, 250)}
    count = [
        (
            np.asarray(draw_detections(image, [{"label": "cat", "score": 0.5, "box": BOX}] * n, colors=color))
            == color["cat"]
        )
        .all(axis=2)
        .sum()
        for n in (0, 1, 2)
    ]
    edges = 4 * (120 + 140)
    assert count[2] - edges > 1.5 * (count[1] - edges) > 0


def test_a_label_far_from_its_box_is_led_to_it(monkeypatch):
    image = noise()
    monkeypatch.setattr(drawing, "_find_place", lambda *_: (400, 400, 480, 420))
    difference = changed(image, draw_detections(image, [{"label": "cat", "score": 0.5, "box": BOX}]))
    assert difference[300, 280]  # half way from the box's corner (160, 200) to the label's
    assert not difference[250:350, 170:240].all(axis=0).any()


def test_crowded_images_get_more_room():
    image = noise((640, 420))
    box = {"xmin": 40, "ymin": 60, "xmax": 60, "ymax": 80}
    found = [{"label": "cat", "score": 0.5, "box": box}] * (CROWDED + 1)
    assert draw_detections(image, found[:CROWDED]).size == (640, 420)
    drawn = draw_detections(image, found)
    assert drawn.size == (1280, 840)
    enlarged = image.resize(drawn.size, Image.Resampling.BICUBIC)
    assert changed(enlarged, drawn).mean() < 0.05


def test_detections_at_the_border_stay_drawable():
    box = {"xmin": -5, "ymin": -5, "xmax": 900, "ymax": 700}
    assert draw_detections(noise(), [{"label": "a very long name of a class", "score": 1.0, "box": box}])


@pytest.mark.parametrize("side", [0, 0.5, 1, 2.5])
def test_boxes_smaller_than_their_outline_stay_drawable(side):
    image = noise()
    box = {"xmin": 100.3, "ymin": 90.7, "xmax": 100.3 + side, "ymax": 90.7 + side}
    assert changed(image, draw_detections(image, [{"label": "cat", "box": box}]))[91, 100]


def test_classes_have_colors_far_apart():
    colors = np.array(list(class_colors(str(i) for i in range(16)).values()))
    distances = np.abs(colors[:, None] - colors[None]).sum(axis=2) + 1000 * np.eye(16)
    assert distances.min() > 40


def test_wrong_number_of_masks_is_an_error():
    with pytest.raises(ValueError, match="got 0 for 1"):
        draw_detections(noise(), [{"label": "cat", "score": 0.5, "box": BOX}], masks=[])


def test_letters_with_accents_are_readable_and_not_boxes():
    def draw(label):
        box = {"xmin": 5, "ymin": 60, "xmax": 90, "ymax": 90}
        picture = draw_detections(
            Image.new("RGB", (100, 100)), [{"label": label, "box": box}], colors={label: (255, 0, 0)}
        )
        return np.asarray(picture)

    accents = [draw(f"p{letter}tal") for letter in "\u00e9\u00e0\u00f1"]
    unknown = draw("p\U0010fffftal")
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations([*accents, unknown], 2))
