import json

import pytest
from PIL import Image

from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.karpathy_captions import KarpathyCaptions, karpathy_image_ids

PLACES = {  # id -> (split, where the image really lies)
    9: ("train", "train2014/COCO_train2014_000000000009.jpg"),
    25: ("restval", "train2017/000000000025.jpg"),
    30: ("test", "val2017/000000000030.jpg"),
    42: ("val", "COCO_val2014_000000000042.jpg"),
}


@pytest.fixture
def split_file(tmp_path):
    images = []
    for image_id, (split, place) in PLACES.items():
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (image_id,) * 3).save(path.with_suffix(".png"))
        path.with_suffix(".png").rename(path)
        part = "train2014" if split == "train" else "val2014"
        sentences = [{"raw": f"caption {n} of {image_id}. ", "tokens": []} for n in range(5)]
        name = f"COCO_{part}_{image_id:012}.jpg"
        images.append(
            {
                "filepath": part,
                "filename": name,
                "cocoid": image_id,
                "split": split,
                "sentences": sentences,
                "imgid": 1,
            }
        )
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    return file


def test_every_layout_of_the_images_is_found(split_file):
    dataset = KarpathyCaptions(split_file, split_file.parent, ("train", "restval", "val", "test"))
    examples = [dataset[i] for i in range(len(dataset))]
    assert [example["image_id"] for example in examples] == list(PLACES)
    assert [example["image"].getpixel((0, 0))[0] for example in examples] == list(PLACES)
    assert examples[1]["captions"] == [f"caption {n} of 25." for n in range(5)]


def test_training_takes_restval(split_file):
    assert len(KarpathyCaptions(split_file, split_file.parent)) == 2
    assert karpathy_image_ids(split_file) == {30, 42}
    assert karpathy_image_ids(split_file, ["test"]) == {30}


def test_flickr_has_neither_folders_nor_ids_of_coco(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1000.jpg")
    image = {"filename": "1000.jpg", "imgid": 4, "split": "test", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "flickr.json").write_text(json.dumps({"images": [image]}))
    with pytest.raises(DataError, match=r"flickr\.json: it must be the split file of COCO"):
        karpathy_image_ids(tmp_path / "flickr.json")
    (example,) = [KarpathyCaptions(tmp_path / "flickr.json", tmp_path, ["test"])[0]]
    assert (example["image_id"], example["captions"]) == (4, ["a dog"])


@pytest.mark.parametrize("raw", [None, " ", ""])
def test_an_image_with_a_caption_without_words_is_a_bad_example(split_file, raw):
    content = json.loads(split_file.read_text())
    content["images"][0]["sentences"][3]["raw"] = raw
    split_file.write_text(json.dumps(content))
    dataset = KarpathyCaptions(split_file, split_file.parent)
    with pytest.raises(DataError, match=rf"dataset_coco.json: image 9: `raw` must be a text with words, got {raw!r}"):
        dataset[0]
    assert dataset[1]["image_id"] == 25


def test_test_images_are_kept_out_of_detection(tmp_path, split_file):
    images = [{"id": i, "width": 8, "height": 8, "file_name": f"{i}.jpg"} for i in (9, 30, 42, 77)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    dataset = CocoDetection(tmp_path / "instances.json", tmp_path, excluded_image_ids=karpathy_image_ids(split_file))
    assert [image["id"] for image in dataset._images] == [9, 77]
    assert (dataset.num_excluded, dataset.num_skipped) == (2, 0)
    with pytest.raises(DataError, match="got 4 in the file, 4 of them left out"):
        CocoDetection(tmp_path / "instances.json", tmp_path, excluded_image_ids=[9, 30, 42, 77])


def test_malformed_files_are_named(tmp_path, split_file):
    for wrong in ("testing", ["val", "testing"]):
        with pytest.raises(DataError, match=r"must be some of \['restval', .* 'val'\], got \['testing'\]"):
            KarpathyCaptions(split_file, tmp_path, wrong)
        with pytest.raises(DataError, match=r"got \['testing'\]"):
            karpathy_image_ids(split_file, wrong)
    file = tmp_path / "bad.json"
    good = {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "x"}], "cocoid": 1}
    for bad, message in (
        ({**good, "sentences": []}, r"images\[0\]: `sentences` must hold at least one caption"),
        ({**good, "sentences": [{}]}, r"images\[0\]: sentences must have the keys \['raw'\]"),
        ({k: v for k, v in good.items() if k != "cocoid"}, r"images\[0\] must have the key 'cocoid' or 'imgid'"),
        ({**good, "cocoid": [1]}, r"images\[0\] must have .* with an integer, got \[1\]"),
        ({**good, "filename": 7}, r"images\[0\]: `filename` must be a text, got 7"),
        ({**good, "filepath": [7]}, r"images\[0\]: `filepath` must be a text, got \[7\]"),
        ({**good, "split": ["train"]}, r"images\[0\]: `split` must be a text, got \['train'\]"),
        ({**good, "split": "val"}, r"there must be images in the splits \('train', 'restval'\), got none"),
        ({**good, "sentences": 2}, r"images\[0\]: `sentences` must be a list, got int"),
        ({"filename": "a.jpg"}, r"missing \['split', 'sentences'\]"),
    ):
        file.write_text(json.dumps({"images": [bad]}))
        with pytest.raises(DataError, match=message):
            KarpathyCaptions(file, tmp_path)
    file.write_text(json.dumps({"images": 1.5}))
    with pytest.raises(DataError, match=r"bad\.json: `images` must be a list, got float"):
        KarpathyCaptions(file, tmp_path)


def test_one_split_may_be_given_by_its_name(split_file):
    dataset = KarpathyCaptions(split_file, split_file.parent, "restval")
    (example,) = [dataset[index] for index in range(len(dataset))]
    assert example["image_id"] == 25  # and not also those of "val", a part of the word
    assert karpathy_image_ids(split_file, "restval") == {25}


def test_an_image_is_listed_once(split_file):
    """Or captioning would be measured on one of its entries alone."""
    content = json.loads(split_file.read_text())
    content["images"].append(content["images"][0])
    split_file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="an image must be listed once, with all its captions, got 9 twice"):
        KarpathyCaptions(split_file, split_file.parent)
    assert len(KarpathyCaptions(split_file, split_file.parent, ["val"])) == 1
