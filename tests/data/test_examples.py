import numpy as np
import pytest
from PIL import Image, ImageOps

from transformers_upv2.data.examples import DataError, load_image
from transformers_upv2.data.json_files import require_keys
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor

ROTATED_90 = 6  # EXIF orientation: stored on its side


def save(path, size=(8, 4), mode="RGB", orientation=None):
    pixels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0])
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(pixels).convert(mode).save(path, exif=exif)
    return pixels


def test_grey_files_become_rgb(tmp_path):
    pixels = save(tmp_path / "grey.png", mode="L")
    image = load_image(tmp_path / "grey.png")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 1], pixels)


def test_transparency_is_composed_as_the_image_processor_does(tmp_path):
    pixels = np.zeros((4, 8, 4), dtype=np.uint8)
    pixels[:, :4] = (90, 60, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    image = np.asarray(load_image(tmp_path / "clear.png", (8, 4)))
    np.testing.assert_array_equal(image[:, :4], pixels[:, :4, :3])
    np.testing.assert_array_equal(image[:, 4:], np.full((4, 4, 3), 255))
    processor = UniPerceiverV2ImageProcessor(do_resize=False, do_normalize=False, do_rescale=False, size_divisor=1)
    seen = processor(str(tmp_path / "clear.png"), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(image.transpose(2, 0, 1), seen)


@pytest.mark.parametrize(("annotated_size", "turned"), [(None, True), ((4, 8), True), ((8, 4), False)])
def test_exif_rotation_follows_the_annotated_frame(tmp_path, annotated_size, turned):
    pixels = save(tmp_path / "rotated.png", orientation=ROTATED_90)
    image = load_image(tmp_path / "rotated.png", annotated_size)
    expected = np.rot90(pixels, -1) if turned else pixels
    np.testing.assert_array_equal(np.asarray(image)[..., 0], expected)
    # whoever gets the image must not find a rotation left to apply
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image))[..., 0], expected)


def test_size_of_neither_frame_is_an_error(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: `width` and `height` .* \(8, 4\), got \(9, 9\)"):
        load_image(tmp_path / "a.png", (9, 9))


def test_missing_broken_and_truncated_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jpg: the image file must exist"):
        load_image(tmp_path / "none.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg: the image file must be readable, but got"):
        load_image(tmp_path / "broken.jpg")
    save(tmp_path / "whole.jpg", size=(64, 64))
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg: the image file must be readable.*truncated"):
        load_image(tmp_path / "cut.jpg")


def test_require_keys_names_what_is_missing():
    with pytest.raises(DataError, match=r"x must have the keys \['a', 'b'\], missing \['b'\]"):
        require_keys({"a": 1}, ("a", "b"), "x")
    with pytest.raises(DataError, match="x must be a JSON object, got list"):
        require_keys([], ("a",), "x")
