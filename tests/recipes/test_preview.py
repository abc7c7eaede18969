"""The preview shows examples of every data set of images as they are, and as training augments them."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from transformers_upv2.data.augmentation import RandomFlip
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.evaluation.drawn_examples import draw_example, join_pictures
from transformers_upv2.recipes.preview import NUM_AUGMENTED, NUM_EXAMPLES, draw_previews
from transformers_upv2.recipes.recipe import Recipe, read_recipe
from transformers_upv2.recipes.run import main

NUM_IMAGES = 12
SIZE = 384


@pytest.fixture
def data(tmp_path):
    """Images of noise, each with one object, in COCO's format."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(NUM_IMAGES):
        pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 32), 0).save(tmp_path / "images" / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 48, "height": 32} for n in range(NUM_IMAGES)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2 + n, 4, 20, 10]} for n in range(NUM_IMAGES)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    return tmp_path


def cells(file):
    page = Image.open(file).convert("RGB")
    step = SIZE + 8
    return [
        [
            np.asarray(page.crop((left, top, left + SIZE, top + SIZE)))
            for left in range(0, page.width + 8, step)
            if left < page.width
        ]
        for top in range(0, page.height + 8, step)
        if top < page.height
    ]


def test_rows_are_examples_as_they_are_and_as_they_are_augmented(data, tmp_path, capsys):
    out = tmp_path / "look"
    flips = "transforms.detection=[{name: flip}]"
    main(
        [
            *("--config", "finetune_coco_json", "--data", str(data), "--out", str(tmp_path / "run")),
            *("--preview", str(out), "--set", flips),
        ]
    )
    assert capsys.readouterr().out == f"picture: {out / 'detection_own.png'}\n"
    assert not (tmp_path / "run").exists()
    rows = cells(out / "detection_own.png")
    assert (len(rows), {len(row) for row in rows}) == (NUM_EXAMPLES, {1 + NUM_AUGMENTED})
    reader = CocoDetection(data / "train.json", data / "images")
    flip = RandomFlip(1.0)
    flipped = []
    for number, row in enumerate(rows):
        example = reader[2 * number]  # from all over the data
        as_it_is = np.asarray(draw_example(example, reader.class_names))
        mirrored = np.asarray(draw_example(flip(example, np.random.default_rng(0)), reader.class_names))
        assert np.array_equal(row[0], as_it_is)
        for cell in row[1:]:
            flipped.append(np.array_equal(cell, mirrored))
            assert flipped[-1] or np.array_equal(cell, as_it_is)
    assert 0 < sum(flipped) < len(flipped)


def test_bad_examples_are_replaced_and_all_bad_is_an_error(data, tmp_path):
    recipe = read_recipe("finetune_coco_json", ["transforms={}"])
    (data / "images" / "0.png").unlink()
    (file,) = draw_previews(recipe, data, tmp_path / "look")
    assert [len(row) for row in cells(file)] == [1] * NUM_EXAMPLES
    for image in (data / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match="at most `max_bad_samples`"):
        list(draw_previews(recipe, data, tmp_path / "look"))


def test_streams_begin_at_their_start_and_text_alone_has_no_picture(tmp_path):
    (tmp_path / "a.txt").write_text("a text\n")
    rows = []
    for level in range(3):
        Image.new("RGB", (24, 24), (50 * level,) * 3).save(tmp_path / "image.png")
        rows.append({"image": (tmp_path / "image.png").read_bytes(), "text": f"number {level}"})
    rows[1]["image"] = b"damaged"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    data = {
        "language_modeling": {"books": {"reader": "text_corpus", "files": "a.txt"}},
        "captioning": {"web": {"reader": "image_text_shards", "files": "0.parquet"}},
    }
    recipe = Recipe(model={}, data=data)
    (file,) = draw_previews(recipe, tmp_path, tmp_path / "look")
    assert file == tmp_path / "look" / "captioning_web.png"
    expected = [
        [draw_example({"image": Image.new("RGB", (24, 24), (50 * n,) * 3), "captions": [f"number {n}"]})]
        for n in (0, 2)
    ]
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(join_pictures(expected)))
