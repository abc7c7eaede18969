"""Box and mask AP, counted by pycocotools from the reader's own annotation file."""

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from transformers_upv2.data.annotation_geometry import clip_box
from transformers_upv2.data.coco_instances import CocoInstances, drawable_mask, read_instances
from transformers_upv2.evaluation.evaluator import (
    TaskEvaluator,
    find_labels,
    image_inputs,
    iterate_batches,
    prediction_mode,
)
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2TaskModel,
)

CocoResult = dict[str, Any]

STAT_NAMES = (
    "ap",
    "ap50",
    "ap75",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar1",
    "ar10",
    "ar100",
    "ar_small",
    "ar_medium",
    "ar_large",
)
"""Our names of the twelve COCO numbers, in pycocotools' order."""


@dataclass(frozen=True)
class DetectionPredictions:
    """Detections in COCO's result format, with the category ids of the annotation file.

    Attributes:
        annotation_file: The file that they are compared with.
        image_ids: The images that were asked about.
        boxes: Results with ``bbox``.
        masks: Results with ``segmentation``, or ``None`` if there are no masks to compare.
        class_agnostic: Whether their categories mean nothing.
    """

    annotation_file: Path
    image_ids: Sequence[int | str]
    boxes: Sequence[CocoResult]
    masks: Sequence[CocoResult] | None = None
    class_agnostic: bool = False


@dataclass
class DetectionEvaluator(TaskEvaluator[DetectionPredictions]):
    """The twelve COCO numbers for boxes, and for masks unless `with_masks` is off.

    Inputs: examples with ``image`` and ``image_id``, a dataset with ``class_names``,
    ``category_ids`` and ``annotation_file``; its classes are found by name among the model's.
    Boxes and masks come from the image processor's post-processing: what a user gets is measured.
    Their scores differ, since a mask's score contains how sure the mask is.

    Attributes:
        with_masks: Whether masks are evaluated, where the annotation file has any.
        top_k: Number of (proposal, class) pairs kept of each image; COCO counts 100.
        class_agnostic: Whether only places count: proposals by their foreground score, objects without their class.
            This measures the proposal network alone.
    """

    task_class: type[UniPerceiverV2TaskModel] | None = UniPerceiverV2ForInstanceSegmentation
    with_masks: bool = True
    top_k: int = 100
    class_agnostic: bool = False

    def __call__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Any,
        **options: Any,
    ) -> dict[str, float]:
        """Predict and score; a bad annotation spoils no image, for the file's annotations are counted as they are."""
        return super().__call__(model, processor, asked_about(dataset), **options)

    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> DetectionPredictions:
        """Detect the objects of every image."""
        view = self.view(model)
        read = processor.image_processor
        labels = [0] if self.class_agnostic else find_labels(view, dataset)
        category_ids: dict[int, int | str] = dict(zip(labels, dataset.category_ids))  # type: ignore[attr-defined]
        image_ids: list[int | str] = []
        boxes: list[CocoResult] = []
        masks: list[CocoResult] = []
        with prediction_mode(view):
            for examples in iterate_batches(dataset, batch_size, "detection", progress):
                outputs = view(**image_inputs(processor, examples, view))
                if self.class_agnostic:
                    outputs["logits"] = outputs.objectness_logits[..., None]
                sizes = [example["image"].size[::-1] for example in examples]
                ids = [example["image_id"] for example in examples]
                options = {"threshold": 0.0, "target_sizes": sizes, "top_k": self.top_k}
                found = read.post_process_object_detection(outputs, **options)
                boxes += write_results(ids, found, category_ids, write_boxes)
                if self.with_masks:
                    found = read.post_process_instances(outputs, **options)
                    masks += write_results(ids, found, category_ids, write_masks)
                image_ids += ids
        return DetectionPredictions(
            annotation_file=dataset.annotation_file,  # type: ignore[attr-defined]
            image_ids=image_ids,
            boxes=boxes,
            masks=masks if self.with_masks else None,
            class_agnostic=self.class_agnostic,
        )

    def join(self, parts: Sequence[DetectionPredictions]) -> DetectionPredictions:
        """Put parts together."""
        masks = [result for part in parts for result in part.masks or ()]
        return DetectionPredictions(
            annotation_file=parts[0].annotation_file,
            image_ids=[image_id for part in parts for image_id in part.image_ids],
            boxes=[result for part in parts for result in part.boxes],
            masks=None if parts[0].masks is None else masks,
            class_agnostic=parts[0].class_agnostic,
        )

    def score(self, predictions: DetectionPredictions) -> dict[str, float]:
        """Return ``box_ap``, ``box_ap50``, ... and the same with ``mask_``.

        As in pycocotools, -1 stands for a number that the annotations do not define, such as
        ``box_ap_large`` without large objects. Where annotations have no mask at all, boxes alone are scored; where
        some have none, those objects are left out of the mask numbers, as crowds are.

        Raises:
            DataError: If the annotation file is missing or malformed.
        """
        truth = read_instances(Path(predictions.annotation_file))
        image_ids, class_agnostic = sorted(set(predictions.image_ids)), predictions.class_agnostic
        metrics = score_results(count_boxes(truth), predictions.boxes, image_ids, "bbox", class_agnostic)
        if predictions.masks is not None and has_masks(truth, image_ids):
            metrics |= score_results(count_masks(truth), predictions.masks, image_ids, "segm", class_agnostic)
        return metrics


def asked_about(dataset: Any) -> Any:
    """Return the data set as an evaluator reads it: one of detection without its annotations."""
    return dataset.without_annotations() if hasattr(dataset, "without_annotations") else dataset


def has_masks(truth: CocoInstances, image_ids: Iterable[int | str]) -> bool:
    """Tell whether an object of these images has a mask, or there is no object that lacks one."""
    asked = set(image_ids)
    objects = [each for each in truth.annotations if each["image_id"] in asked and not each["iscrowd"]]
    return not objects or any(map(drawable_mask, objects))


def count_boxes(truth: CocoInstances) -> COCO:
    """Hand annotations to pycocotools, numbered from 1: it takes an object with the id 0 for none."""
    return _to_coco(truth, [annotation | {"id": i} for i, annotation in enumerate(truth.annotations, start=1)])


def count_masks(truth: CocoInstances) -> COCO:
    """Hand annotations to pycocotools to count masks: an object without one becomes a crowd that fills its box.

    So it is neither missed nor are detections of it wrong.
    """
    annotations = []
    for number, annotation in enumerate(truth.annotations, start=1):
        mask = drawable_mask(annotation)
        if mask is None:
            image = truth.images[annotation["image_id"]]
            left, top, width, height = clip_box(annotation["bbox"], image["width"], image["height"])
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            annotation = annotation | {"iscrowd": 1, "segmentation": [corners]}
        else:
            annotation = annotation | {"segmentation": mask}
        annotations.append(annotation | {"id": number})
    return _to_coco(truth, annotations)


def _to_coco(truth: CocoInstances, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "info": {},  # pycocotools 2.0.10 copies it
        "images": list(truth.images.values()),
        "annotations": annotations,
        "categories": list(truth.categories.values()),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def write_results(
    image_ids: Sequence[int | str],
    found: Iterable[Mapping[str, Tensor]],
    category_ids: Mapping[int, int | str],
    write_places: Callable[[Mapping[str, Tensor]], list[dict[str, Any]]],
) -> list[CocoResult]:
    """Write detections in COCO's result format.

    Args:
        image_ids: Id of each image in the annotation file.
        found: What post-processing gives for each image: ``scores`` and ``labels`` ``(n,)`` and
            ``boxes`` or ``masks``.
        category_ids: The file's category id of each label; detections of other labels are left out.
        write_places: Turns the boxes or masks of one image into ``n`` dicts.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "score": score, **place}
        for image_id, image in zip(image_ids, found, strict=True)
        for label, score, place in zip(
            image["labels"].tolist(), image["scores"].tolist(), write_places(image), strict=True
        )
        if label in category_ids
    ]


def write_boxes(image: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Write ``boxes`` ``(n, 4)`` xyxy as (left, top, width, height)."""
    top_left, bottom_right = image["boxes"].split(2, dim=1)
    boxes = torch.cat([top_left, bottom_right - top_left], dim=1)
    return [{"bbox": box} for box in boxes.tolist()]


def write_masks(image: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Write ``masks`` ``(n, height, width)`` bool as run lengths."""
    pixels = image["masks"].permute(1, 2, 0).cpu().numpy()  # (height, width, n)
    run_lengths = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return [{"segmentation": mask} for mask in run_lengths]


def score_results(
    truth: COCO,
    results: Sequence[CocoResult],
    image_ids: Sequence[int | str],
    iou_type: str,
    class_agnostic: bool = False,
) -> dict[str, float]:
    """Let pycocotools count.

    Args:
        truth: The annotations.
        results: Detections in COCO's result format.
        image_ids: The images that take part, whether or not anything was found in them.
        iou_type: ``"bbox"`` or ``"segm"``.
        class_agnostic: Whether categories are left out of account.

    Returns:
        The numbers of ``STAT_NAMES`` with the prefix ``box_`` or ``mask_``.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
        evaluation = COCOeval(truth, _load_results(truth, results), iou_type)
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.useCats = int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    prefix = {"bbox": "box", "segm": "mask"}[iou_type]
    return {f"{prefix}_{name}": float(value) for name, value in zip(STAT_NAMES, evaluation.stats)}


def _load_results(truth: COCO, results: Sequence[CocoResult]) -> COCO:
    if results:
        return truth.loadRes([dict(result) for result in results])  # it adds keys to its input
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing
