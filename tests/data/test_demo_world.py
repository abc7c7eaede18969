import hashlib

import numpy as np
import pytest
from mask_tools import mask_box
from PIL import Image

from transformers_upv2.data.demo_world import WorldSizes, make_world, open_world
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.world_objects import CLASS_NAMES
from transformers_upv2.model.coco_masks import decode_segmentation

TINY = WorldSizes(scenes=(3, 2, 2), classification=(13, 12, 12), text=(20, 5, 5))


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """The digest of each file of the tiny world of seed 0."""
    return digests(make_world(tmp_path_factory.mktemp("tiny"), 0, TINY, progress=False).root)


def test_the_seed_decides_every_byte(tmp_path, tiny_files):
    first = tiny_files
    assert digests(make_world(tmp_path / "b", 0, TINY, progress=False).root) == first
    other = digests(make_world(tmp_path / "c", 1, TINY, progress=False).root)
    assert first["scenes/train/000000.jpg"] != other["scenes/train/000000.jpg"]
    assert first["text/train.txt"] != other["text/train.txt"]


def test_a_picture_does_not_depend_on_the_others(tiny_files, world):
    few = tiny_files
    many = digests(world.paths.root)
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 7 + 37
    assert all(few[name] == many[name] for name in pictures)


def test_an_unfinished_world_is_never_at_its_place(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers_upv2.data.demo_world.write_tokenizer", fail)
    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "world", 0, TINY, progress=False)
    assert not (tmp_path / "world").exists()
    monkeypatch.undo()
    make_world(tmp_path / "world", 0, TINY, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_make_world_overwrites_nothing(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"`out` must be a new or an empty folder, got .* with"):
        make_world(tmp_path, 0, TINY, progress=False)


def test_open_world_needs_a_complete_world(tmp_path):
    with pytest.raises(DataError, match="none: `path` must be a folder that `upv2 make-world` wrote"):
        open_world(tmp_path / "none")


def test_readers_agree_on_the_classes(world):
    assert world.class_names == list(CLASS_NAMES)
    for reader in (world.train, world.val, world.test):
        assert reader["classification"].class_names == world.class_names
        assert reader["detection"].class_names == world.class_names
    ids = np.array(world.train["detection"].category_ids)
    assert (np.diff(ids) > 1).all()
    labels = [world.train["classification"][i]["label"] for i in range(24)]
    np.testing.assert_array_equal(np.bincount(labels), np.full(12, 2))


def test_boxes_areas_and_masks_agree(world):
    dataset = world.val["detection"]
    for index in range(len(dataset)):
        for annotation in dataset[index]["annotations"]:
            mask = decode_segmentation(annotation["segmentation"], (128, 128))
            assert mask_box(mask) == annotation["bbox"]
            assert mask.sum() == annotation["area"]


def test_splits_share_no_picture(world):
    pixels = [Image.open(path).tobytes() for path in sorted(world.paths.root.rglob("*.jpg"))]
    assert len(set(pixels)) == len(pixels)


def test_the_readme_says_what_it_is(world):
    readme = world.paths.readme.read_text()
    assert "upv2 make-world --out DIR --seed 0" in readme
    assert "(40, 20, 100) scenes" in readme
