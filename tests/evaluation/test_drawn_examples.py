"""Pictures of training examples show the image, its objects where they are, and its texts whole."""

import numpy as np
from PIL import Image

from transformers_upv2.evaluation.drawing import class_colors
from transformers_upv2.evaluation.drawn_examples import draw_example, join_pictures
from transformers_upv2.model.coco_masks import encode_mask

NAMES = ["cat", "sofa"]


def gray(width=64, height=64):
    return Image.new("RGB", (width, height), (128, 128, 128))


def test_objects_are_drawn_where_they_are_in_the_color_of_their_class():
    mask = np.zeros((64, 64), dtype=bool)
    mask[40:56, 8:24] = True
    annotations = [
        {"category_id": 1, "bbox": [8, 40, 16, 16], "segmentation": encode_mask(mask)},
        {"category_id": 0, "bbox": [32, 8, 24, 24]},
    ]
    picture = np.asarray(draw_example({"image": gray(), "annotations": annotations}, NAMES, size=256)).astype(int)
    colors = class_colors(NAMES)
    inside = picture[4 * 48, 4 * 16]  # in the middle of the mask: gray, tinted
    assert np.abs(inside - (0.6 * 128 + 0.4 * np.array(colors["sofa"]))).max() < 12
    assert (picture[4 * 20, 4 * 44] == 128).all()  # a box without a mask is not tinted
    for name, (left, top, right, bottom) in (("sofa", (8, 40, 24, 56)), ("cat", (32, 8, 56, 32))):
        close = np.abs(picture - colors[name]).max(axis=-1) < 60
        rows, columns = np.nonzero(close[:, 4 * left - 4 : 4 * right + 4])
        assert abs(rows.max() - 4 * bottom) <= 4
        assert abs(columns.max() + 4 * left - 4 - 4 * right) <= 4
        assert top < 64  # its upper side may lie under the label


def test_classes_and_whole_captions_stand_below():
    plain = draw_example({"image": gray()}, size=128)
    assert plain.size == (128, 128)
    labeled = draw_example({"image": gray(), "label": 1}, NAMES, size=128)
    other = draw_example({"image": gray(), "label": 0}, NAMES, size=128)
    assert labeled.size == other.size == (128, 152)
    assert np.asarray(labeled)[128:].min() < 64
    assert (np.asarray(labeled) != np.asarray(other)).any()
    captions = ["a cat", "a cat that sleeps on a sofa in the sun of a long afternoon"]
    assert draw_example({"image": gray(), "captions": captions}, size=128).height == 128 + (1 + 4) * 24


def test_images_keep_their_proportions():
    picture = np.asarray(draw_example({"image": gray(64, 16)}, size=128))
    assert (picture[:32] == 128).all()
    assert (picture[33:] == 255).all()


def test_a_page_has_all_pictures_side_by_side():
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    red, green, blue = (Image.new("RGB", (10, 10 + 5 * number), color) for number, color in enumerate(colors))
    page = join_pictures([[red, green], [blue]])
    assert page.size == (28, 15 + 8 + 20)
    assert [page.getpixel(place) for place in ((0, 0), (18, 14), (9, 42))] == colors
