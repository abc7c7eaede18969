"""Several data sets of one task: a label means the same class in all of them, or there is an error."""

import json

import pytest
from PIL import Image

from transformers_upv2.data.class_names import align_classes, require_equal_classes, require_known_classes
from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.image_folder import ImageFolder
from transformers_upv2.training.streams import ShuffledStream


def open_coco(folder, name, categories):
    """One image with one object of each category, given as {id: name}."""
    Image.new("RGB", (20, 20)).save(folder / "0.png")
    content = {
        "images": [{"id": 0, "file_name": "0.png", "width": 20, "height": 20}],
        "annotations": [
            {"id": number, "image_id": 0, "category_id": id_, "bbox": [number, 0, 5, 5]}
            for number, id_ in enumerate(categories)
        ],
        "categories": [{"id": id_, "name": each} for id_, each in categories.items()],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return CocoDetection(folder / f"{name}.json", folder)


def open_folder(folder, *classes):
    for name in classes:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / name / f"{name}.png")
    (folder / "classes.txt").write_text("\n".join(classes))
    return ImageFolder(folder, folder / "classes.txt")


def annotated_names(dataset):
    return [dataset.class_names[each["category_id"]] for each in dataset[0]["annotations"]]


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    first = open_coco(tmp_path, "first", {1: "cat", 2: "dog", 3: "cow"})
    second = open_coco(tmp_path, "second", {1: "dog", 7: "cow", 9: "cat"})
    members = align_classes("detection", {"first": (first, 2.0), "second": (second, 1.0)})
    assert members["first"] == (first, 2.0)
    reordered, weight = members["second"]
    assert (reordered.class_names, weight, len(reordered)) == (first.class_names, 1.0, 1)
    assert annotated_names(reordered) == annotated_names(second) == ["dog", "cow", "cat"]
    assert [each["bbox"] for each in reordered[0]["annotations"]] == [
        each["bbox"] for each in second[0]["annotations"]
    ]
    require_equal_classes("detection", members)


def test_labels_of_images_are_matched_as_well(tmp_path):
    first, second = open_folder(tmp_path / "1", "cat", "dog"), open_folder(tmp_path / "2", "dog", "cat")
    reordered = align_classes("classification", {"first": first, "second": second})["second"]
    assert [(example["image_id"], example["label"]) for example in map(reordered.__getitem__, range(2))] == [
        ("dog/dog.png", 1),
        ("cat/cat.png", 0),
    ]


def test_other_classes_are_an_error_that_names_both_in_short(tmp_path):
    first = open_coco(tmp_path, "first", {n: f"class {n}" for n in range(1000)})
    second = open_coco(tmp_path, "second", {1: "class 1", 7: "car"})
    with pytest.raises(
        DataError, match=r"only in 'x': \['class 0', .*'class 5'\] and 994 more, only in 'y': \['car'\]"
    ) as caught:
        align_classes("detection", {"x": first, "y": second})
    assert len(str(caught.value)) < 500


def test_a_name_for_two_classes_cannot_be_matched_in_another_order(tmp_path):
    first = open_coco(tmp_path, "first", {1: "crane", 2: "crane", 3: "cat"})
    assert align_classes("detection", {"x": first, "y": first}) == {"x": first, "y": first}
    second = open_coco(tmp_path, "second", {1: "cat", 2: "crane", 3: "crane"})
    with pytest.raises(DataError, match=r"'x' has them as \['crane', 'crane', 'cat'\], 'y' as \['cat'"):
        align_classes("detection", {"x": first, "y": second})


def test_streams_of_readers_are_checked(tmp_path):
    first, second = open_folder(tmp_path / "1", "cat", "dog"), open_folder(tmp_path / "2", "dog", "cat")
    with pytest.raises(DataError, match="'classification' must have the same classes in the same order"):
        require_equal_classes("classification", {"x": first, "y": ShuffledStream(second)})
    with pytest.raises(DataError, match="with `align_classes`"):
        align_classes("classification", {"x": first, "y": ShuffledStream(second)})


def test_the_model_must_know_the_classes_in_their_order(tmp_path):
    data = open_coco(tmp_path, "first", {1: "cat", 2: "dog"})
    require_known_classes("detection", {"": data}, ["cat", "dog"])
    require_known_classes("detection", {"": [{"label": 0}]}, ["cat"])  # a data set that does not name its classes
    with pytest.raises(ValueError, match=r"the model has them as \['dog', 'cat'\], the data as \['cat', 'dog'\]"):
        require_known_classes("detection", {"x": (data, 1.0)}, ["dog", "cat"])
    with pytest.raises(ValueError, match=r"only in the model: \[\], only in the data: .*dog.*label_set='detection'\)"):
        require_known_classes("detection", {"": data}, ["cat"])
