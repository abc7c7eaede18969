import json

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from transformers_upv2.evaluation.results import TABLE_6, format_table_6, model_index, write_metrics, write_results

METRICS = {
    "classification/top1": 0.863,
    "detection/box_ap": 0.586,
    "detection/box_ap_large": -1.0,
    "detection/mask_ap": 0.506,
    "captioning/cider": 1.169,
    "retrieval/image_to_text_r1": 0.718,
    "retrieval/flickr30k/text_to_image_r1": 0.738,
}
DATASETS = {
    "classification": ("imagenet-1k", "ImageNet-1k"),
    "detection": ("coco", "COCO val2017"),
    "captioning": ("coco", "COCO Karpathy test"),
    "retrieval": ("coco", "COCO Karpathy test"),
    "retrieval/flickr30k": ("flickr30k", "Flickr30k test"),
}


def test_table_has_the_columns_of_the_paper():
    head, rule, row = format_table_6({"ours": METRICS}, {"ours": 308_000_000}).split("\n")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["ours", "308M", "86.3", "58.6", "50.6", "-", "116.9", "71.8", "-", "-", "73.8"]
    assert head.count("|") == rule.count("|") == row.count("|") == len(TABLE_6) + 3


def test_model_index_is_what_the_hub_reads():
    index = model_index("ours", METRICS, DATASETS)
    name, results = model_index_to_eval_results(index)
    assert name == "ours"
    values = {(r.task_type, r.dataset_name, r.metric_type): r.metric_value for r in results}
    assert values[("image-segmentation", "COCO val2017", "mask_ap")] == 0.506
    assert values[("object-detection", "COCO val2017", "box_ap")] == 0.586
    assert values[("image-text-to-image", "Flickr30k test", "text_to_image_r1")] == 0.738
    assert len(values) == len(METRICS) - 1  # -1 is no number


def test_a_dataset_without_a_name_is_an_error():
    with pytest.raises(ValueError, match=r"entry for 'retrieval/flickr30k' of the metric .* got \['detection'\]"):
        model_index("ours", {"retrieval/flickr30k/text_to_image_r1": 0.5}, {"detection": ("coco", "COCO")})


def test_metrics_are_written_as_json(tmp_path):
    write_metrics(METRICS, tmp_path / "new" / "metrics.json")
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == METRICS


def test_all_forms_are_written_side_by_side(tmp_path):
    write_results(tmp_path / "new", "ours", METRICS, format_table_6({"ours": METRICS}), DATASETS)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == METRICS
    assert (tmp_path / "new" / "table_6.md").read_text() == format_table_6({"ours": METRICS}) + "\n"
    metadata = yaml.safe_load((tmp_path / "new" / "model_index.yaml").read_text())
    assert metadata == {"model-index": model_index("ours", METRICS, DATASETS)}
