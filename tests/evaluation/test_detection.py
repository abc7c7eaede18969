import copy
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.evaluation.detection import (
    STAT_NAMES,
    DetectionEvaluator,
    DetectionPredictions,
)


def evaluate(model, processor, dataset, batch_size=2, **options):
    evaluator = DetectionEvaluator(task_class=None, **options)
    return evaluator(model, processor, dataset, batch_size=batch_size, progress=False)


def shift_and_confuse(answer, number):
    """Move boxes and masks a little, add false detections, vary the scores."""
    rng = torch.Generator().manual_seed(number)
    answer["pred_boxes"] += 0.02 * torch.rand(20, 4, generator=rng)
    answer["logits"] += torch.randn(20, 3, generator=rng)
    answer["pred_masks"] = answer["pred_masks"].roll(1, dims=-1)
    return answer


def test_perfect_detector_has_ap_one(coco_dataset, processor, make_perfect_detector, capsys):
    metrics = evaluate(make_perfect_detector(), processor, coco_dataset)
    for prefix in ("box", "mask"):
        for name in ("ap", "ap50", "ap75", "ar100"):
            assert metrics[f"{prefix}_{name}"] == pytest.approx(1.0), name
    assert set(metrics) == {f"{p}_{name}" for p in ("box", "mask") for name in STAT_NAMES}
    assert capsys.readouterr().out == ""


def test_absent_sizes_are_minus_one(coco_dataset, processor, make_perfect_detector):
    content = json.loads(coco_dataset.annotation_file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["area"] < 96**2]
    coco_dataset.annotation_file.write_text(json.dumps(content))
    metrics = evaluate(make_perfect_detector(), processor, coco_dataset)
    assert metrics["box_ap_large"] == -1


def test_all_numbers_equal_pycocotools_on_hand_written_results(coco_dataset, processor, make_perfect_detector):
    """The reference converts boxes in numpy and maps category ids by itself."""
    model = make_perfect_detector(shift_and_confuse)
    metrics = evaluate(model, processor, coco_dataset)
    results = []
    for number, example in enumerate(coco_dataset):
        width, height = example["image"].size
        answer = model.answer(number)
        scores = 1 / (1 + np.exp(-answer["logits"].numpy().astype(np.float64)))
        for proposal, (cx, cy, w, h) in enumerate(answer["pred_boxes"].numpy()):
            x0, x1 = np.clip([cx - w / 2, cx + w / 2], 0, 1) * width
            y0, y1 = np.clip([cy - h / 2, cy + h / 2], 0, 1) * height
            for label, category_id in enumerate([3, 7, 20]):
                results.append(
                    {
                        "image_id": 100 + number,
                        "category_id": category_id,
                        "score": float(scores[proposal, label]),
                        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                    }
                )
    truth = COCO(str(coco_dataset.annotation_file))
    reference = COCOeval(truth, truth.loadRes(results), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    ours = [metrics[f"box_{name}"] for name in STAT_NAMES]
    np.testing.assert_allclose(ours, reference.stats, atol=1e-6)
    assert 0.1 < metrics["box_ap"] < 0.95
    assert 0.1 < metrics["mask_ap"] < 0.95


def test_class_agnostic_counts_places_by_foreground_score(coco_dataset, processor, make_perfect_detector):
    """All categories one in the file, all objects one class in the results: pycocotools' own count."""

    def confuse(answer, number):
        answer = shift_and_confuse(answer, number)
        rng = torch.Generator().manual_seed(1000 + number)
        answer["objectness_logits"] = torch.randn(20, generator=rng)
        return answer

    model = make_perfect_detector(confuse)
    metrics = evaluate(model, processor, coco_dataset, with_masks=False, class_agnostic=True)
    results = []
    for number, example in enumerate(coco_dataset):
        width, height = example["image"].size
        answer = model.answer(number)
        scores = answer["objectness_logits"].double().sigmoid()
        for score, (cx, cy, w, h) in zip(scores.tolist(), answer["pred_boxes"].numpy(), strict=True):
            x0, x1 = np.clip([cx - w / 2, cx + w / 2], 0, 1) * width
            y0, y1 = np.clip([cy - h / 2, cy + h / 2], 0, 1) * height
            box = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
            results.append({"image_id": 100 + number, "category_id": 7, "score": score, "bbox": box})
    content = json.loads(coco_dataset.annotation_file.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 7
    coco_dataset.annotation_file.write_text(json.dumps(content))
    truth = COCO(str(coco_dataset.annotation_file))
    reference = COCOeval(truth, truth.loadRes(results), "bbox")
    reference.evaluate()
    reference.accumulate()
    reference.summarize()
    np.testing.assert_allclose([metrics[f"box_{name}"] for name in STAT_NAMES], reference.stats, atol=1e-6)
    assert 0.05 < metrics["box_ap"] < 0.95


def test_batch_size_changes_nothing(coco_dataset, processor, make_perfect_detector):
    model = make_perfect_detector(shift_and_confuse)
    one = evaluate(model, processor, coco_dataset, batch_size=1)
    assert one == evaluate(model, processor, coco_dataset, batch_size=5)


def test_masks_are_written_at_the_original_size(coco_dataset, processor, make_perfect_detector):
    predictions = DetectionEvaluator(None).predict(make_perfect_detector(), processor, coco_dataset, progress=False)
    sizes = {m["image_id"]: tuple(m["segmentation"]["size"]) for m in predictions.masks}
    assert sizes == {e["image_id"]: e["image"].size[::-1] for e in coco_dataset if e["annotations"]}


def test_detections_inside_a_crowd_are_not_counted_against_the_model(coco_dataset, processor, make_perfect_detector):
    def add_in_crowd(answer, number):
        if number == 4:
            answer["logits"][19, 1] = 8.0
            answer["pred_boxes"][19] = torch.tensor([0.5, 0.25, 0.9, 0.1])
        return answer

    metrics = evaluate(make_perfect_detector(add_in_crowd), processor, coco_dataset)
    assert metrics["box_ap"] == pytest.approx(1.0)


def test_images_without_detections_count(coco_dataset):
    image_ids = [example["image_id"] for example in coco_dataset]
    nothing = DetectionPredictions(coco_dataset.annotation_file, image_ids, [], [])
    metrics = DetectionEvaluator(None).score(nothing)
    assert metrics["box_ap"] == metrics["mask_ap"] == 0


def test_only_asked_images_count(coco_dataset, processor, make_perfect_detector):
    part = copy.copy(coco_dataset)
    del part[3:]
    assert evaluate(make_perfect_detector(), processor, part)["box_ap"] == pytest.approx(1.0)


def rewrite(dataset, change):
    """Change every annotation of the file, called as ``change(number, annotation)``."""
    content = json.loads(dataset.annotation_file.read_text())
    for number, annotation in enumerate(content["annotations"]):
        change(number, annotation)
    dataset.annotation_file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda number, annotation: annotation.update(id=number),
        lambda number, annotation: annotation.update(id=7),
        lambda number, annotation: annotation.pop("id"),
        lambda number, annotation: annotation.pop("area"),
        lambda number, annotation: annotation.update(area=None),
        lambda number, annotation: annotation["iscrowd"] or annotation.pop("iscrowd"),
        lambda number, annotation: annotation["iscrowd"] or annotation.update(iscrowd=None),
    ],
    ids=["ids from 0", "equal ids", "no ids", "no area", "null area", "no iscrowd", "null iscrowd"],
)
def test_what_a_file_may_leave_out_changes_no_number(coco_dataset, processor, make_perfect_detector, change):
    expected = evaluate(make_perfect_detector(shift_and_confuse), processor, coco_dataset)
    rewrite(coco_dataset, change)
    assert evaluate(make_perfect_detector(shift_and_confuse), processor, coco_dataset) == expected


def test_text_ids_of_images_change_no_number(coco_dataset, processor, make_perfect_detector):
    expected = evaluate(make_perfect_detector(shift_and_confuse), processor, coco_dataset)
    content = json.loads(coco_dataset.annotation_file.read_text())
    for image in content["images"]:
        image["id"] = f"photo {image['id']}"
    for each in [*content["annotations"], *coco_dataset]:
        each["image_id"] = f"photo {each['image_id']}"
    coco_dataset.annotation_file.write_text(json.dumps(content))
    assert evaluate(make_perfect_detector(shift_and_confuse), processor, coco_dataset) == expected


def test_boxes_alone_are_scored_alone(coco_dataset, processor, make_perfect_detector):
    rewrite(coco_dataset, lambda number, annotation: annotation.pop("segmentation"))
    metrics = evaluate(make_perfect_detector(), processor, coco_dataset)
    assert metrics["box_ap"] == pytest.approx(1.0)
    assert "mask_ap" not in metrics


@pytest.mark.parametrize("segmentation", [None, [], [[8, 8, 16, 16]]])
def test_an_object_without_a_mask_is_left_out_of_the_mask_numbers(
    coco_dataset, processor, make_perfect_detector, segmentation
):
    """It is neither missed, where nothing is found, nor are detections of it wrong."""

    def find_all_but_one(answer, number):
        if number == 0:
            answer["logits"][1] = -9.0
        return answer

    rewrite(coco_dataset, lambda number, annotation: number in (0, 1) and annotation.update(segmentation=segmentation))
    for spoil in (find_all_but_one, lambda answer, number: answer):
        metrics = evaluate(make_perfect_detector(spoil), processor, coco_dataset)
        assert metrics["mask_ap"] == pytest.approx(1.0)
    rewrite(
        coco_dataset, lambda number, annotation: number > 0 and annotation.update(segmentation=[[0, 0, 1, 0, 0, 1]])
    )
    assert evaluate(make_perfect_detector(), processor, coco_dataset)["mask_ap"] < 0.5
    assert metrics["box_ap"] == pytest.approx(1.0)


def test_classes_are_found_by_name(coco_dataset, processor, make_perfect_detector):
    """A file with some of the model's classes, in another order, is scored as one with all of them."""
    content = json.loads(coco_dataset.annotation_file.read_text())
    content["annotations"] = [each for each in content["annotations"] if each["category_id"] != 3]
    coco_dataset.annotation_file.write_text(json.dumps(content))
    model = make_perfect_detector(shift_and_confuse)
    expected = evaluate(model, processor, coco_dataset)
    assert 0.1 < expected["box_ap"] < 0.95
    new_ids = {7: 2, 20: 1}
    content["categories"] = [{"id": 1, "name": "star"}, {"id": 2, "name": "square"}]
    for each in content["annotations"]:
        each["category_id"] = new_ids[each["category_id"]]
    coco_dataset.annotation_file.write_text(json.dumps(content))
    coco_dataset.class_names, coco_dataset.category_ids = ["star", "square"], [1, 2]
    assert evaluate(model, processor, coco_dataset) == expected


def test_a_bad_annotation_spoils_no_image(coco_dataset, processor, make_perfect_detector, tmp_path):
    """The file's own reader refuses to cut a box outside its image, pycocotools counts it as missed."""
    content = json.loads(coco_dataset.annotation_file.read_text())
    for image, example in zip(content["images"], coco_dataset, strict=True):
        image["file_name"] = f"{image['id']}.png"
        example["image"].save(tmp_path / image["file_name"])
    content["annotations"][0]["bbox"] = [500, 500, 10, 10]
    coco_dataset.annotation_file.write_text(json.dumps(content))
    reader = CocoDetection(coco_dataset.annotation_file, tmp_path)
    with pytest.raises(DataError, match="annotation 1 of image 100"):
        reader[0]
    metrics = evaluate(make_perfect_detector(), processor, reader)
    assert metrics == evaluate(make_perfect_detector(), processor, coco_dataset)
    assert 0.5 < metrics["box_ap"] < 1
