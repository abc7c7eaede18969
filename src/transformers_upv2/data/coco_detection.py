"""Read object detection and instance segmentation data in COCO's instances JSON format.

Format: https://cocodataset.org/#format-data. Works on the file as it is: category ids with gaps,
crowd regions, images without annotations, polygons and run-length codes.
"""

import copy
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from transformers_upv2.data.annotation_geometry import Placement, clip_box
from transformers_upv2.data.coco_instances import read_instances
from transformers_upv2.data.examples import DataError, DetectionExample, image_path, load_image
from transformers_upv2.model.coco_masks import MIN_POLYGON_NUMBERS


class CocoDetection(Dataset[DetectionExample]):
    """Images with boxes, masks and classes from a COCO instances JSON file.

    The file's structure is checked once, here. Geometry is checked when an example is loaded: an
    annotation partly outside its image is cut, one wholly outside, without an area or with a polygon
    of fewer than three points is a ``DataError`` for that example, so that training can count and
    replace it.

    Boxes and masks refer to the frame that the file's ``width`` and ``height`` state, which for
    EXIF-rotated photographs may be the stored or the shown one (see ``load_image``).

    Attributes:
        class_names: Names of the classes, in the order of the file's category ids.
        category_ids: The file's own category id of each class; they may have gaps.
        annotation_file: The JSON file.
        num_skipped: How many images were left out for lack of annotations.
        num_excluded: How many images were left out on demand.
        num_objects: How many annotations of the other images are no crowds.
        num_masks: How many of these objects have a segmentation.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        skip_images_without_annotations: bool = False,
        excluded_image_ids: Collection[int | str] = (),
    ):
        """Read and check the annotation file.

        Args:
            annotation_file: A COCO instances JSON file.
            image_folder: Where relative ``file_name`` entries start; absolute ones ignore it.
            skip_images_without_annotations: Leave out images that show no annotated object but
                crowds. They are counted in ``num_skipped``.
            excluded_image_ids: Images that are left out and counted in ``num_excluded``, such as those that
                ``karpathy_image_ids`` finds: train2017 holds most images of the caption benchmark's test split.

        Raises:
            DataError: If the file is missing or malformed; the message names file and field.
        """
        self.annotation_file, self.image_folder = Path(annotation_file), Path(image_folder)
        content = read_instances(self.annotation_file)
        self.category_ids = list(content.categories)
        self.class_names = [category["name"] for category in content.categories.values()]
        images = content.images
        label_of = {id_: label for label, id_ in enumerate(self.category_ids)}
        self._annotations: dict[int | str, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content.annotations:
            annotation["category_id"] = label_of[annotation["category_id"]]
            self._annotations[annotation["image_id"]].append(annotation)
        used = {id_: image for id_, image in images.items() if id_ not in excluded_image_ids}
        self.num_excluded = len(images) - len(used)
        self._images = [
            image
            for id_, image in used.items()
            if not skip_images_without_annotations
            or any(not annotation["iscrowd"] for annotation in self._annotations[id_])
        ]
        self.num_skipped = len(used) - len(self._images)
        if not self._images:
            raise DataError(
                f"{self.annotation_file}: `images` must hold at least one usable image, got "
                f"{len(images)} in the file, {self.num_skipped + self.num_excluded} of them left out."
            )

        objects = [
            annotation
            for image in self._images
            for annotation in self._annotations[image["id"]]
            if not annotation["iscrowd"]
        ]
        self.num_objects, self.num_masks = len(objects), sum(bool(each.get("segmentation")) for each in objects)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> DetectionExample:
        entry = self._images[index]
        size = (entry["width"], entry["height"])
        annotations = self.read_annotations(index)
        image = load_image(image_path(self.image_folder, entry["file_name"]), annotated_size=size)
        return {"image": image, "image_id": entry["id"], "annotations": annotations}

    def read_annotations(self, index: int, *, as_in_file: bool = False) -> list[dict[str, Any]]:
        """Return the annotations of an example without reading its image.

        Args:
            index: Of the example.
            as_in_file: Whether they are left uncut and unchecked.

        Raises:
            DataError: If one of them cannot be cut to its image.
        """
        entry = self._images[index]
        annotations = self._annotations[entry["id"]]
        if as_in_file:
            return annotations
        return [self._cut_annotation(annotation, (entry["width"], entry["height"])) for annotation in annotations]

    def without_annotations(self) -> "CocoDetection":
        """Return a data set of the same images that have no annotations, and so no bad ones."""
        images = copy.copy(self)
        images._annotations = defaultdict(list)
        return images

    def image_files(self) -> Iterator[Path]:
        """Yield the file of every image."""
        return (image_path(self.image_folder, entry["file_name"]) for entry in self._images)

    def _cut_annotation(self, annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """Return the annotation cut to its image.

        Not stated in the paper, chosen here: real files have boxes that reach a fraction of a pixel
        over the edge; where it is less than one pixel, mask and area stay as they are.
        """
        box, segmentation = annotation["bbox"], annotation.get("segmentation")
        if isinstance(segmentation, list) and any(len(polygon) < MIN_POLYGON_NUMBERS for polygon in segmentation):
            raise DataError(
                f"{self.annotation_file}: annotation {annotation.get('id')} of image "
                f"{annotation['image_id']}: a polygon of `segmentation` must have at least three points, "
                f"got {min(segmentation, key=len)}. Correct or remove it."
            )
        clipped = clip_box(box, *size)
        if min(clipped[2:]) <= 0:
            raise DataError(
                f"{self.annotation_file}: annotation {annotation.get('id')} of image "
                f"{annotation['image_id']}: `bbox` must have an area inside the image of size "
                f"{size}, got {box}. Correct or remove the annotation."
            )
        if max(abs(old - new) for old, new in zip(box, clipped)) < 1:
            return {**annotation, "bbox": clipped}
        cut = Placement(size, size).move_annotation(annotation)
        if cut is None:
            raise DataError(
                f"{self.annotation_file}: annotation {annotation.get('id')} of image "
                f"{annotation['image_id']}: `segmentation` must have an area inside the image of "
                f"size {size}. Correct or remove the annotation."
            )
        return cut
