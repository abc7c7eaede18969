"""What the page asks: one perception, any number of questions."""

import numpy as np
import pytest
from PIL import Image

from tiny_models import CLASS_NAMES
from transformers_upv2.answers import Answers, Perceived, draw, read_labels


@pytest.fixture(scope="module")
def answers(model_folder, image_folder):
    return Answers(model_folder, image_folder)


@pytest.fixture
def image(image_folder):
    return Image.open(image_folder / "2.png")


def test_an_image_is_perceived_once_for_all_questions(answers, image):
    passes = []
    hook = answers.writer.model.image_encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    perceived = answers.perceive(image)
    for labels in (CLASS_NAMES, ["something else"], [*CLASS_NAMES, "something else"]):
        answers.detect(perceived, labels)
    answers.caption(perceived)
    answers.search(perceived)
    hook.remove()
    assert len(passes) == 1


def test_detections_have_boxes_and_masks_of_the_original_image(answers, image):
    perceived = answers.perceive(image)
    found = answers.detect(perceived, CLASS_NAMES, threshold=0.0)
    assert 0 < len(found) <= 50
    assert {item["label"] for item in found} <= set(CLASS_NAMES)
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)
    for item in found:
        box = item["box"]
        assert 0 <= box["xmin"] <= box["xmax"] <= image.width
        assert 0 <= box["ymin"] <= box["ymax"] <= image.height
        assert item["mask"].shape == (image.height, image.width)
    assert answers.detect(perceived, [], threshold=0.0) == []
    black = Perceived(Image.new("RGB", image.size), perceived.encoding)
    picture = draw(black, found, CLASS_NAMES)
    assert picture.width / picture.height == pytest.approx(image.width / image.height, abs=0.02)
    assert np.asarray(picture).any()
    assert not np.asarray(draw(black, [], CLASS_NAMES)).any()


def test_boxes_and_masks_of_a_turned_photograph_are_upright(answers, image, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = image.convert("RGB").resize((120, 80))
    photo.save(tmp_path / "turned.png", exif=exif)
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    perceived = answers.perceive(Image.open(tmp_path / "turned.png"))
    assert perceived.image.size == (80, 120)
    found = answers.detect(perceived, CLASS_NAMES, threshold=0.0)
    expected = answers.detect(answers.perceive(upright), CLASS_NAMES, threshold=0.0)
    assert [item["box"] for item in found] == [item["box"] for item in expected]
    assert found[0]["mask"].shape == (120, 80)


def test_a_score_does_not_depend_on_the_other_labels(answers, image):
    perceived = answers.perceive(image)
    alone = answers.detect(perceived, ["hat"], threshold=0.0)
    together = [
        item for item in answers.detect(perceived, ["hat", "a dark night"], threshold=0.0) if item["label"] == "hat"
    ]
    assert len(together) > 0
    for item, other in zip(together, alone):
        assert item["score"] == pytest.approx(other["score"], abs=1e-5)
        assert 0 <= item["score"] <= 1


def test_caption_continues_its_beginning(answers, image):
    perceived = answers.perceive(image)
    expected = answers.writer.generate(**answers.processor(images=image, return_tensors="pt"), max_new_tokens=30)
    assert answers.caption(perceived) == answers.processor.post_process_image_text_to_text(expected)[0].strip()
    assert answers.caption(perceived, "two small").startswith("two small")


def test_search_by_text_and_by_image(answers, image_folder, image):
    found = answers.search("a red circle", top_k=2)
    assert len(found) == 2
    similar = answers.search(answers.perceive(image))
    assert similar[0]["image"] == str(image_folder / "2.png")
    assert similar[0]["score"] == pytest.approx(1, abs=1e-4)


def test_the_index_is_kept_and_renewed(model_folder, image_folder, tmp_path):
    path = tmp_path / "index.safetensors"
    Answers(model_folder, image_folder, path)
    written = path.read_bytes()
    again = Answers(model_folder, image_folder, path)
    assert path.read_bytes() == written
    assert len(again.retrieval.index) == 3


def test_search_without_a_folder_is_an_error(model_folder):
    answers = Answers(model_folder)
    assert answers.known_labels == [*CLASS_NAMES[::-1], "tree"]
    with pytest.raises(ValueError, match="`images` must name a folder to search in, got None"):
        answers.search("a hat")


def test_labels_are_read_from_text():
    assert read_labels(" cat, sofa,,cat\nred ball ,") == ["cat", "sofa", "red ball"]
    assert read_labels(" ") == []


def test_a_label_keeps_its_color_whatever_else_is_found():
    black = Perceived(Image.new("RGB", (64, 64)), None)
    box = {"xmin": 30, "ymin": 30, "xmax": 60, "ymax": 60}
    first, second = ({"label": name, "score": 0.5, "box": box} for name in CLASS_NAMES[:2])
    second["box"] = {"xmin": 2, "ymin": 2, "xmax": 9, "ymax": 9}
    alone, both = (np.asarray(draw(black, found, CLASS_NAMES)) for found in ([first], [second, first]))
    assert (alone[400, 230:500] == both[400, 230:500]).all()
    reversed_names = np.asarray(draw(black, [first], CLASS_NAMES[::-1]))
    assert (alone[400, 230:500] != reversed_names[400, 230:500]).any()
