import logging
import os

import pytest
from PIL import Image

from transformers_upv2.data.examples import DataError
from transformers_upv2.data.image_folder import ImageFolder


@pytest.fixture
def folder(tmp_path):
    for name in ("n01/a.JPEG", "n02/b.PNG"):
        save(tmp_path / "images" / name)
    return tmp_path / "images"


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def found(folder):
    dataset = ImageFolder(folder)
    return [(example["label"], example["image_id"]) for example in map(dataset.__getitem__, range(len(dataset)))]


def test_hidden_files_and_folders_do_not_count(folder):
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "n01" / "._a.JPEG").write_bytes(b"no image")
    (folder / "n01" / "folder.jpg").mkdir()
    save(folder / "n02" / ".ipynb_checkpoints" / "b-checkpoint.png")
    (folder / ".ipynb_checkpoints").mkdir()
    assert found(folder) == [(0, "n01/a.JPEG"), (1, "n02/b.PNG")]


def test_links_are_followed_but_in_no_circle(folder, tmp_path):
    save(tmp_path / "elsewhere" / "deep" / "c.png")
    os.symlink(tmp_path / "elsewhere", folder / "n01" / "linked")
    os.symlink(tmp_path / "elsewhere", folder / "n03")
    os.symlink(folder / "n02" / "b.PNG", folder / "n02" / "link.png")
    os.symlink(folder / "n02", folder / "n02" / "circle")
    assert found(folder) == [
        (0, "n01/a.JPEG"),
        (0, "n01/linked/deep/c.png"),
        (1, "n02/b.PNG"),
        (1, "n02/link.png"),
        (2, "n03/deep/c.png"),
    ]


def test_splits_are_not_taken_for_classes(folder, tmp_path):
    for split in ("train", "val"):
        save(tmp_path / "whole" / split / "n01" / "a.png")
    with pytest.raises(DataError, match=r"whole: its sub-folders must be classes, got the splits \['train', 'val'\]"):
        ImageFolder(tmp_path / "whole")
    save(folder / "train" / "a.png")  # a vehicle
    assert ImageFolder(folder).class_names == ["n01", "n02", "train"]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("c.json", b'["n02", "n01"]', ["n02", "n01"]),
        ("c.json", b'{"0": ["n02", "tench"], "1": ["n01", "cock"]}', ["tench", "cock"]),
        ("c.txt", b"\xef\xbb\xbfn02 tench\r\nn01 cock\r\n", ["tench", "cock"]),
    ],
)
def test_classes_files_of_other_kinds(folder, tmp_path, name, content, names):
    (tmp_path / name).write_bytes(content)
    dataset = ImageFolder(folder, tmp_path / name)
    assert dataset.class_names == names
    assert [dataset[index]["image_id"] for index in range(2)] == ["n02/b.PNG", "n01/a.JPEG"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", b'{"n01": 0, "n02": 1}', r"c\.json: a sub-folder must have a text as its name, got 0 for 'n01'"),
        ("c.json", b'{"n01": "a", "n02": null}', "as its name, got None for 'n02'"),
        ("c.json", b'{"n01": "a", "n02": " "}', "as its name, got ' ' for 'n02'"),
        ("c.json", b'[["n01", "a"]]', "must have a text as its name"),
        ("c.json", b'["tench", "cock"]', r"every sub-folder .* must be named, \['n01', 'n02'\] are not"),
        ("c.json", b"3", r"c\.json: the content must be a JSON object, got int"),
        ("c.txt", b"n01 a\nn01 b\nn02 c", r"c\.txt: each sub-folder must be named once, got 'n01' twice"),
        ("c.txt", b"n01 caf\xe9\nn02 b", r"c\.txt: the classes file must be UTF-8, got: .* position 7"),
    ],
)
def test_malformed_classes_files_are_named(folder, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        ImageFolder(folder, tmp_path / name)


def test_part_of_the_classes_may_be_there_and_is_told(folder, tmp_path, caplog):
    (tmp_path / "c.txt").write_text("n03 shark\nn02 tench\nn00 nothing\nn01 cock\n")
    logging.getLogger("transformers_upv2").addHandler(caplog.handler)
    try:
        dataset = ImageFolder(folder, tmp_path / "c.txt")
    finally:
        logging.getLogger("transformers_upv2").removeHandler(caplog.handler)
    assert (dataset.class_names, dataset.labels) == (["tench", "cock"], [0, 1])
    assert "2 of the 4 classes" in caplog.text
    assert "['n00', 'n03']" in caplog.text
