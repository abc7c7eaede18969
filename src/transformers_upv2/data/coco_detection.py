"""Read object detection and instance segmentation data in COCO's instances JSON format.

Format: https://cocodataset.org/#format-data. Works on the file as it is: category ids with gaps,
crowd regions, images without annotations, polygons and run-length codes.
"""

import math
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from transformers_upv2.data.annotation_geometry import Placement, clip_box
from transformers_upv2.data.examples import DataError, DetectionExample, load_image
from transformers_upv2.data.json_files import index_by_id, read_json, require_keys


class CocoDetection(Dataset[DetectionExample]):
    """Images with boxes, masks and classes from a COCO instances JSON file.

    The file's structure is checked once, here. Geometry is checked when an example is loaded: an
    annotation partly outside its image is cut, one wholly outside or without an area is a
    ``DataError`` for that example, so that training can count and replace it.

    Boxes and masks refer to the frame that the file's ``width`` and ``height`` state, which for
    EXIF-rotated photographs may be the stored or the shown one (see ``load_image``).

    Attributes:
        class_names: Names of the classes, in the order of the file's category ids.
        category_ids: The file's own category id of each class; they may have gaps.
        annotation_file: The JSON file.
        num_skipped: How many images were left out for lack of annotations.
        num_excluded: How many images were left out on demand.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        skip_images_without_annotations: bool = False,
        excluded_image_ids: Collection[int] = (),
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
        content = read_json(self.annotation_file)
        require_keys(content, ("images", "annotations", "categories"), str(self.annotation_file))

        categories = index_by_id(content["categories"], ("name",), self._where("categories"))
        self.category_ids = sorted(categories)
        self.class_names = [categories[id_]["name"] for id_ in self.category_ids]
        images = index_by_id(content["images"], ("file_name", "width", "height"), self._where("images"))
        self._annotations = self._group_annotations(content["annotations"], images)
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

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> DetectionExample:
        entry = self._images[index]
        size = (entry["width"], entry["height"])
        annotations = [self._cut_annotation(annotation, size) for annotation in self._annotations[entry["id"]]]
        image = load_image(self.image_folder / entry["file_name"], annotated_size=size)
        return {"image": image, "image_id": entry["id"], "annotations": annotations}

    def _where(self, field: str) -> str:
        return f"{self.annotation_file}: {field}"

    def _group_annotations(
        self, annotations: list[Any], images: dict[int, dict[str, Any]]
    ) -> dict[int, list[dict[str, Any]]]:
        """Check every annotation and collect them by image, with ``category_id`` as our label."""
        label_of = {id_: label for label, id_ in enumerate(self.category_ids)}
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for number, annotation in enumerate(annotations):
            where = self._where(f"annotations[{number}]")
            require_keys(annotation, ("image_id", "category_id", "bbox"), where)
            image = images.get(annotation["image_id"])
            if image is None:
                raise DataError(
                    f"{where}: `image_id` must be the id of an image in the file, got {annotation['image_id']!r}."
                )
            if annotation["category_id"] not in label_of:
                raise DataError(
                    f"{where}: `category_id` must be one of the file's categories "
                    f"{self.category_ids}, got {annotation['category_id']!r}."
                )
            check_box(annotation["bbox"], where)
            check_segmentation(annotation.get("segmentation"), image, where)
            by_image[image["id"]].append(
                {
                    **annotation,
                    "category_id": label_of[annotation["category_id"]],
                    "iscrowd": int(annotation.get("iscrowd", 0)),
                    "area": annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
                }
            )
        return by_image

    def _cut_annotation(self, annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        """Return the annotation cut to its image.

        Not stated in the paper, chosen here: real files have boxes that reach a fraction of a pixel
        over the edge; where it is less than one pixel, mask and area stay as they are.
        """
        box = annotation["bbox"]
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


def check_box(box: object, where: str) -> None:
    """Check that a COCO box is four finite numbers."""
    if (
        not isinstance(box, list)
        or len(box) != 4
        or not all(isinstance(x, int | float) and math.isfinite(x) for x in box)
    ):
        raise DataError(f"{where}: `bbox` must be four finite numbers [left, top, width, height], got {box!r}.")


def check_segmentation(segmentation: object, image: dict[str, Any], where: str) -> None:
    """Check that a segmentation is absent, polygons, or a run-length code of the image's size."""
    if segmentation is None:
        return
    if isinstance(segmentation, dict):
        require_keys(segmentation, ("size", "counts"), f"{where}: `segmentation`")
        size = [image["height"], image["width"]]
        if list(segmentation["size"]) != size:
            raise DataError(
                f"{where}: `segmentation` must have the image's `size` {size} (height, width), "
                f"got {segmentation['size']}."
            )
        return
    if not isinstance(segmentation, list) or not all(
        isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation
    ):
        raise DataError(
            f"{where}: `segmentation` must be a run-length code or a list of polygons "
            "[x1, y1, x2, y2, ...] of at least three points each."
        )
