"""What a person should know of annotated objects before training: what few look at, and what tools get wrong."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.recipes.data_checks import unwrap

MANY_CLASSES = 12
"""Of more classes than this, only the most and the least frequent are listed."""
Annotations = Sequence[Mapping[str, Any]]


def describe_objects(reader: Any) -> Iterator[str]:
    """Count the objects of every class, and what is suspect about boxes.

    Args:
        reader: A data set; only one with annotated objects has remarks.

    Yields:
        Remarks for a person.
    """
    reader = unwrap(reader)
    if not isinstance(reader, CocoDetection):
        return
    as_in_file = [reader.read_annotations(index, as_in_file=True) for index in range(len(reader))]
    objects = [[each for each in annotations if not each["iscrowd"]] for annotations in as_in_file]
    yield from _describe_classes(reader.class_names, objects)
    if without := sum(not each for each in objects):
        yield f"{without} images show no object: they teach what is none"
    if crowds := sum(len(annotations) for annotations in as_in_file) - reader.num_objects:
        yield f"{crowds} regions have `iscrowd` 1 and are not learned; some tools write it with every mask"
    yield from _describe_boxes(reader, as_in_file)


def describe_shared_images(reader: Any, members: Mapping[str, Any]) -> Iterator[str]:
    """Say how many images to evaluate on are in the training data of the same task."""
    readers = [unwrap(member[0] if isinstance(member, tuple) else member) for member in members.values()]
    trained = {
        os.path.abspath(file) for each in readers if hasattr(each, "image_files") for file in each.image_files()
    }
    if hasattr(reader, "image_files"):
        shared = sum(os.path.abspath(file) in trained for file in reader.image_files())
        if shared:
            yield f"{shared} of its {len(reader)} images are in the training data as well and tell nothing of new ones"


def _describe_classes(names: Sequence[str], objects: Sequence[Annotations]) -> Iterator[str]:
    counts = Counter(dict.fromkeys(range(len(names)), 0))
    counts.update(each["category_id"] for annotations in objects for each in annotations)
    listed = [f"{names[label]} {count}" for label, count in counts.most_common() if count]
    if len(listed) > MANY_CLASSES:
        half = MANY_CLASSES // 2
        listed = [*listed[:half], "...", *listed[-half:]]
    yield f"objects of each class: {', '.join(listed)}"
    if unused := [names[label] for label, count in counts.items() if not count]:
        yield f"{len(unused)} of {len(names)} classes have no object: {', '.join(map(repr, unused[:MANY_CLASSES]))}"


def _describe_boxes(reader: CocoDetection, as_in_file: Sequence[Annotations]) -> Iterator[str]:
    """Count what is cut, what is too small to be seen, and images that cannot be used."""
    bad: list[str] = []
    cut = small = 0
    for index, annotations in enumerate(as_in_file):
        try:
            usable = reader.read_annotations(index)
        except DataError as error:
            bad.append(str(error))
            continue
        for before, after in zip(annotations, usable, strict=True):
            cut += max(abs(old - new) for old, new in zip(before["bbox"], after["bbox"])) >= 1
            small += min(after["bbox"][2:]) < 1
    if bad:
        yield f"{len(bad)} images have an annotation that cannot be used; in training others replace them: {bad[0]}"
    if cut:
        yield f"{cut} boxes reach out of their image and are cut; `bbox` must be [left, top, width, height]"
    if small:
        yield f"{small} boxes are less than a pixel wide or high; `bbox` must be in pixels of the image"
