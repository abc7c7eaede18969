"""The four readers of real data formats."""

import json
import resource

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from outside_data import COCO, NEEDS_COCO
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.image_captions import ImageCaptions
from transformers_upv2.data.image_folder import ImageFolder
from transformers_upv2.data.text_corpus import TextCorpus
from transformers_upv2.model.coco_masks import MAX_COORDINATE

NULL = object()
"""Null in the file, where None means that the field is removed."""
SQUARE = [2.0, 2.0, 6.0, 2.0, 6.0, 6.0, 2.0, 6.0]


@pytest.fixture
def coco(tmp_path):
    """A valid instances file as a dict: gaps in the ids, a crowd, an image without annotations."""
    for name in ("a.png", "b.png", "c.png"):
        Image.new("L", (10, 8)).save(tmp_path / name)
    crowd = np.zeros((8, 10), dtype=np.uint8, order="F")
    crowd[1:5, 1:5] = 1
    rle = coco_mask.encode(crowd)
    rle["counts"] = rle["counts"].decode()
    size = {"width": 10, "height": 8}
    return {
        "images": [
            {"id": 7, "file_name": "a.png", **size},
            {"id": 3, "file_name": str(tmp_path / "b.png"), **size},
            {"id": 5, "file_name": "c.png", **size},
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 90,
                "bbox": [2, 2, 4, 4],
                "area": 16,
                "segmentation": [list(SQUARE)],
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 3,
                "category_id": 3,
                "bbox": [1, 1, 4, 4],
                "area": 16,
                "segmentation": rle,
                "iscrowd": 1,
            },
        ],
    }


def read(tmp_path, content, **options):
    (tmp_path / "i.json").write_text(json.dumps(content))
    return CocoDetection(tmp_path / "i.json", tmp_path, **options)


def test_coco_maps_ids_and_keeps_everything(tmp_path, coco):
    dataset = read(tmp_path, coco)
    assert dataset.class_names == ["cat", "zebra"]
    assert dataset.category_ids == [3, 90]
    first, second, third = (dataset[i] for i in range(len(dataset)))
    assert first["annotations"] == [{**coco["annotations"][0], "category_id": 1}]
    assert second["annotations"][0]["iscrowd"] == 1
    assert second["annotations"][0]["segmentation"] == coco["annotations"][1]["segmentation"]
    assert third["annotations"] == []
    assert [x["image_id"] for x in (first, second, third)] == [7, 3, 5]
    assert first["image"].mode == "RGB"


def test_coco_leaves_out_and_counts_images_without_objects(tmp_path, coco):
    dataset = read(tmp_path, coco, skip_images_without_annotations=True)
    assert (len(dataset), dataset.num_skipped) == (1, 2)
    assert read(tmp_path, coco).num_skipped == 0
    coco["annotations"] = []
    with pytest.raises(DataError, match=r"i\.json: `images` must hold .* got 3 in the file, 3 of"):
        read(tmp_path, coco, skip_images_without_annotations=True)


def test_coco_fills_in_what_a_file_may_leave_out(tmp_path, coco):
    coco["annotations"][0]["segmentation"] = [[2, 2, 6, 2, 6, 6]]  # half of its box
    coco["annotations"].append({"image_id": 5, "category_id": 3, "bbox": [1, 1, 3, 2]})
    for field in ("area", "iscrowd"):
        coco["annotations"][0][field] = None
    (tmp_path / "i.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(coco).encode())
    dataset = CocoDetection(tmp_path / "i.json", tmp_path)
    (triangle,), _, (box,) = (dataset[i]["annotations"] for i in range(3))
    assert (triangle["iscrowd"], box["iscrowd"]) == (0, 0)
    assert box["area"] == 6
    expected = coco_mask.area(coco_mask.frPyObjects(triangle["segmentation"], 8, 10)[0])
    assert triangle["area"] == expected != 16


@pytest.mark.parametrize("box", [None, NULL, []])
def test_coco_boxes_that_are_left_out_are_those_of_the_masks(tmp_path, coco, box):
    coco["annotations"][0]["segmentation"] = [[2, 2, 6.5, 2, 6, 6], [3, 3, 4, 3, 4, 7]]
    for number in range(2):
        change(["annotations", number, "bbox"], box)(coco)
    dataset = read(tmp_path, coco)
    (polygons,), (code,), _ = (dataset[i]["annotations"] for i in range(3))
    assert polygons["bbox"] == [2, 2, 4.5, 5]
    assert code["bbox"] == [1, 1, 4, 4]
    del coco["annotations"][0]["segmentation"]
    with pytest.raises(DataError, match=r"annotations\[0\]: `bbox` must be four finite numbers .* got"):
        read(tmp_path, coco)


def test_names_of_images_may_have_the_backslashes_of_windows(tmp_path, coco):
    (tmp_path / "deep" / "down").mkdir(parents=True)
    Image.new("L", (10, 8)).save(tmp_path / "deep" / "down" / "d.png")
    Image.new("L", (10, 8), 255).save(tmp_path / "e\\f.png")
    coco["images"][0]["file_name"], coco["images"][2]["file_name"] = "deep\\down\\d.png", "e\\f.png"
    dataset = read(tmp_path, coco)
    assert all(file.is_file() for file in dataset.image_files())
    assert [dataset[i]["image"].getpixel((0, 0))[0] for i in (0, 2)] == [0, 255]
    captions = write_captions(tmp_path, [{"image_id": 1, "caption": "a dog"}], "deep\\down\\d.png")
    assert captions[0]["image"].size == (10, 8)


def change(path, value):
    def apply(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        if value is None:
            del content[last]
        else:
            content[last] = None if value is NULL else value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["images"], None, r"i\.json must have the keys .* missing \['images'\]"),
        (["images", 0, "width"], None, r"images\[0\] must have the keys .* missing \['width'\]"),
        (["images", 1, "id"], 7, r"images\[1\]: `id` must be unique, got 7 twice"),
        (["categories", 0, "id"], 3, r"categories\[1\]: `id` must be unique, got 3 twice"),
        (["annotations", 1, "category_id"], 4, r"annotations\[1\]: `category_id` .* \[3, 90\], got 4"),
        (["annotations", 1, "image_id"], 4, r"annotations\[1\]: `image_id` must be .* got 4"),
        (["annotations", 0, "bbox"], [1, 2, 3], r"annotations\[0\]: `bbox` .* got \[1, 2, 3\]"),
        (["annotations", 0, "bbox", 2], float("nan"), r"annotations\[0\]: `bbox` must be four finite"),
        (["annotations", 0, "segmentation"], [[1, 2, 3, 4, 5, 6, 7]], r"annotations\[0\]: `segmentation` must be a"),
        (["annotations", 0, "segmentation"], [1, 1, 5, 1, 5, 5], r"`segmentation` must .* got \[1, 1, 5, 1, 5, 5\]"),
        (
            ["annotations", 1, "segmentation", "size"],
            [4, 4],
            r"annotations\[1\]: `segmentation` must have the image's `size` \[8, 10\].* got \[4, 4\]",
        ),
        (
            ["annotations", 1, "segmentation", "counts"],
            None,
            r"annotations\[1\]: `segmentation` must have the keys",
        ),
        (
            ["annotations", 1, "segmentation", "counts"],
            [5, 5],
            r"annotations\[1\]: .* add up to height x width = 80, got the sum 10",
        ),
        (["annotations", 1, "segmentation", "counts"], [100, -20], r"annotations\[1\]: .* got the sum 80"),
        (["annotations", 1, "segmentation", "counts"], "55", r"annotations\[1\]: .* got the sum 10"),
        (["annotations", 1, "segmentation", "counts"], "a b", r"annotations\[1\]: .* 'a b' is no compressed"),
        (
            ["annotations", 0, "segmentation", 0, 1],
            float("nan"),
            r"annotations\[0\]: .* finite numbers .*, got \[\[2",
        ),
        (
            ["annotations", 0, "segmentation", 0, 1],
            float("inf"),
            r"annotations\[0\]: .* finite numbers .*, got \[\[2",
        ),
        (["annotations", 0, "segmentation", 0, 1], 1e9, r"annotations\[0\]: .* up to 100000, got \[\[2"),
        (["annotations", 0, "segmentation", 0, 1], -1e30, r"annotations\[0\]: .* up to 100000, got \[\[2"),
        (["annotations", 0, "segmentation", 0, 1], 10**400, r"annotations\[0\]: .* up to 100000, got \[\[2"),
        (["annotations", 0, "bbox", 2], 10**400, r"annotations\[0\]: `bbox` must be four finite"),
        (["annotations", 0, "area"], 10**400, r"annotations\[0\]: `area` must be a number"),
        (["images", 0, "width"], 10**400, r"images\[0\]: `width` must be a whole number of pixels up to 100000"),
        (["images", 0, "width"], 1e30, r"images\[0\]: `width` must be a whole number of pixels up to 100000"),
        (["annotations", 1, "segmentation", "size"], [10**9, 10**9], r"annotations\[1\]: .* got \[1000000000"),
        (["annotations", 1, "segmentation", "counts"], [10**18], r"annotations\[1\]: .* got the sum 1000000000"),
        (
            ["annotations", 0, "segmentation", 0, 1],
            "2",
            r"annotations\[0\]: .* finite numbers .*, got \[\[2",
        ),
        (["annotations", 0, "iscrowd"], "no", r"annotations\[0\]: `iscrowd` must be a number, got 'no'"),
        (["annotations", 0, "iscrowd"], -1, r"annotations\[0\]: `iscrowd` must be 0 or 1, got -1"),
        (["annotations", 0, "image_id"], [7], r"annotations\[0\]: `image_id` must be .* got \[7\]"),
        (["annotations"], {}, r"i\.json: `annotations` must be a list, got dict"),
        (
            ["images", 0, "width"],
            "10",
            r"images\[0\]: `width` must be a whole number .* got '10'",
        ),
        (
            ["images", 0, "width"],
            NULL,
            r"images\[0\]: `width` must be a whole number .* got None",
        ),
        (["images", 0, "file_name"], NULL, r"images\[0\]: `file_name` must be a text, got None"),
        (["images", 1, "id"], "3", r"images\[1\]: `id` must be an integer, or a text in all .* got '3' after 7"),
        (["categories", 0, "name"], 3, r"categories\[0\]: `name` must be a text, got 3"),
    ],
)
def test_coco_names_file_and_field_of_a_malformed_entry(tmp_path, coco, path, value, message):
    change(path, value)(coco)
    with pytest.raises(DataError, match=message):
        read(tmp_path, coco)


def test_coco_far_corners_are_drawn_without_gigabytes(tmp_path, coco):
    """The farthest that are allowed; a file without areas draws its masks when it is read."""
    far = MAX_COORDINATE
    coco["annotations"][0]["segmentation"] = [[2, 2, far, 2, far, far, 2, far]]
    coco["annotations"][0]["bbox"] = [2, 2, 1e30, 1e30]
    del coco["annotations"][0]["area"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dataset = read(tmp_path, coco)
    (found,) = dataset[0]["annotations"]
    assert (found["bbox"], found["area"]) == ([2, 2, 8, 6], 48)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_coco_file_must_be_json(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: the annotation file must exist"):
        CocoDetection(tmp_path / "none.json", tmp_path)
    (tmp_path / "i.json").write_text("{")
    with pytest.raises(DataError, match=r"i\.json: the annotation file must be JSON"):
        CocoDetection(tmp_path / "i.json", tmp_path)


@pytest.mark.parametrize("box", [[10, 2, 4, 4], [-5, 2, 5, 4], [2, 2, 0, 4], [2, 2, 3, -1]])
def test_coco_annotation_outside_the_image_is_an_error_of_its_example(tmp_path, coco, box):
    coco["annotations"][0]["bbox"] = box
    dataset = read(tmp_path, coco)
    with pytest.raises(DataError, match=r"annotation 1 of image 7: `bbox` must have an area .* got"):
        dataset[0]
    assert dataset[1]["image_id"] == 3


def test_coco_polygon_of_two_points_is_an_error_of_its_example(tmp_path, coco):
    coco["annotations"][0]["segmentation"].append([2, 2, 6, 6])
    dataset = read(tmp_path, coco)
    with pytest.raises(DataError, match=r"i\.json: annotation 1 of image 7: .* three points, got \[2, 2, 6, 6\]"):
        dataset[0]
    assert dataset[1]["image_id"] == 3


def test_coco_ids_of_images_may_be_texts(tmp_path, coco):
    for each in coco["images"]:
        each["id"] = f"photo {each['id']}"
    for each in coco["annotations"]:
        each["image_id"] = f"photo {each['image_id']}"
    dataset = read(tmp_path, coco, excluded_image_ids={"photo 5"})
    assert [dataset[i]["image_id"] for i in range(len(dataset))] == ["photo 7", "photo 3"]
    assert dataset[0]["annotations"][0]["bbox"] == [2, 2, 4, 4]


def test_coco_mask_outside_the_image_is_an_error_of_its_example(tmp_path, coco):
    coco["annotations"][0] |= {"bbox": [-4, 2, 6, 4], "segmentation": [[-4, 2, -2, 2, -3, 6]]}
    with pytest.raises(DataError, match="annotation 1 of image 7: `segmentation` must have an area"):
        read(tmp_path, coco)[0]


def test_coco_annotation_partly_outside_is_cut(tmp_path, coco):
    coco["annotations"][0] |= {"bbox": [8, 2, 4, 4], "segmentation": [[8, 2, 12, 2, 12, 6, 8, 6]]}
    (annotation,) = read(tmp_path, coco)[0]["annotations"]
    assert annotation["bbox"] == [8, 2, 2, 4]
    assert annotation["area"] == 8
    assert max(annotation["segmentation"][0][::2]) == 10


def test_coco_exif_frame_is_the_files_own(tmp_path, coco):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path, coco)[0]["image"].size == (10, 8)
    coco["images"][0] |= {"width": 8, "height": 10}
    coco["annotations"][0]["segmentation"] = [SQUARE]
    assert read(tmp_path, coco)[0]["image"].size == (8, 10)


@pytest.mark.skipif(not COCO.is_dir(), reason=NEEDS_COCO)
def test_real_coco_files_are_read_as_they_are():
    images = COCO / "images" / "train2017"
    dataset = CocoDetection(COCO / "annotations" / "instances_train2017.json", images)
    assert (len(dataset), len(dataset.class_names), max(dataset.category_ids)) == (160, 80, 90)
    for index in range(0, 160, 8):
        example = dataset[index]
        assert all(
            x + w <= example["image"].width + 1e-6 and y + h <= example["image"].height + 1e-6
            for x, y, w, h in (annotation["bbox"] for annotation in example["annotations"])
        )
    captions = ImageCaptions(COCO / "annotations" / "captions_train2017.json", images)
    assert len(captions[0]["captions"]) == 5
    assert len(captions) + captions.num_skipped in (80, 160)


def write_captions(tmp_path, annotations, name="a.png"):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": name}, {"id": 2, "file_name": "b.png"}]
    content = {"images": images, "annotations": annotations}
    (tmp_path / "c.json").write_text(json.dumps(content))
    return ImageCaptions(tmp_path / "c.json", tmp_path)


def test_captions_are_grouped_and_images_without_any_counted(tmp_path):
    annotations = [{"image_id": 1, "caption": " one\n"}, {"image_id": 1, "caption": "two"}]
    dataset = write_captions(tmp_path, annotations)
    assert (len(dataset), dataset.num_skipped) == (1, 1)
    assert dataset[0]["captions"] == ["one", "two"]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 1, "caption": " "}, r"c\.json: annotations\[0\]: `caption` .* got ' '"),
        ({"image_id": 1}, r"c\.json: annotations\[0\] must have .* missing \['caption'\]"),
        ({"image_id": 9, "caption": "x"}, r"c\.json: annotations\[0\]: `image_id` .* got 9"),
        ({"image_id": [1], "caption": "x"}, r"c\.json: annotations\[0\]: `image_id` .* got \[1\]"),
    ],
)
def test_malformed_captions_are_named(tmp_path, annotation, message):
    with pytest.raises(DataError, match=message):
        write_captions(tmp_path, [annotation])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": 1.5, "annotations": []}, r"c\.json: `images` must be a list, got float"),
        ({"images": [], "annotations": None}, r"c\.json: `annotations` must be a list, got NoneType"),
        ({"images": [{"id": 1, "file_name": 3}], "annotations": []}, r"images\[0\]: `file_name` .* a text, got 3"),
    ],
)
def test_malformed_caption_files_are_named(tmp_path, content, message):
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        ImageCaptions(tmp_path / "c.json", tmp_path)


def test_captions_must_caption_something(tmp_path):
    with pytest.raises(DataError, match=r"c\.json: `annotations` .* got none for 2 images"):
        write_captions(tmp_path, [])


@pytest.fixture
def class_folders(tmp_path):
    for name, number in (("n02", 2), ("n01", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (4, 4)).save(tmp_path / "images" / name / f"{i}.JPEG")
        (tmp_path / "images" / name / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_folders_are_classes(class_folders):
    dataset = ImageFolder(class_folders)
    assert dataset.class_names == ["n01", "n02"]
    assert [dataset[i]["label"] for i in range(len(dataset))] == [0, 1, 1]
    assert dataset[2]["image_id"] == "n02/1.JPEG"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "n02 tench, Tinca tinca\nn01\tgoldfish\n", ["tench, Tinca tinca", "goldfish"]),
        ("c.txt", "n02\nn01\n", ["n02", "n01"]),
        ("c.txt", "\nn02 tench\n \n\nn01 goldfish\n\n", ["tench", "goldfish"]),
        ("c.json", '{"n02": "tench", "n01": "goldfish"}', ["tench", "goldfish"]),
    ],
)
def test_classes_file_orders_and_names(class_folders, tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    dataset = ImageFolder(class_folders, tmp_path / name)
    assert dataset.class_names == expected
    assert [dataset[i]["label"] for i in range(3)] == [0, 0, 1]


def test_image_folder_errors(class_folders, tmp_path):
    (tmp_path / "c.txt").write_text("n02\nn03\n")
    with pytest.raises(DataError, match=r"c\.txt: every sub-folder of .* must be named, \['n01'\] are not"):
        ImageFolder(class_folders, tmp_path / "c.txt")
    with pytest.raises(DataError, match=r"none\.txt: the classes file must exist"):
        ImageFolder(class_folders, tmp_path / "none.txt")
    with pytest.raises(DataError, match="none: `folder` must be a folder"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(DataError, match=r"n01: there must be one sub-folder per class, got none"):
        ImageFolder(class_folders / "n01")
    (class_folders / "n01" / "0.JPEG").unlink()
    with pytest.raises(DataError, match="n01: a class must have at least one image, got none"):
        ImageFolder(class_folders)


def test_text_corpus_reads_lines_of_all_files(tmp_path):
    (tmp_path / "a.txt").write_text("first é\n\n second\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("third", encoding="utf-8")
    corpus = TextCorpus([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert [corpus[i]["text"] for i in range(len(corpus))] == ["first é", "second", "third"]
    assert corpus.num_skipped == 1
    with pytest.raises(IndexError, match=r"`index` must be in \[0, 3\), got 3"):
        corpus[3]


def test_text_corpus_errors(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\n")
    with pytest.raises(DataError, match=r"`files` must hold at least one line with text, got .*a\.txt"):
        TextCorpus(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"none\.txt: the text file must exist"):
        TextCorpus(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_bytes(b"one\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"a\.txt: the line at byte 4 must be UTF-8"):
        TextCorpus(tmp_path / "a.txt")[1]
