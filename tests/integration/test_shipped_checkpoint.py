"""The shipped folder: complete, loaded by every class and stock pipeline, saved again byte for byte."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import transformers_upv2
from transformers_upv2.data.coco_detection import CocoDetection  # noqa: F401  the readers import without the extras

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "model_cards" / "uniperceiver-v2-tiny"
TASK_CLASSES = [name for name in transformers_upv2.__all__ if name.startswith("UniPerceiverV2For")]

PIPELINES = """
import json, sys
import transformers_upv2
from transformers import pipeline

folder, image = sys.argv[1:3]
names = ["star", "heart", "two"]
calls = {
    "object-detection": lambda pipe: pipe(image, threshold=0.3),
    "image-segmentation": lambda pipe: [
        {key: value for key, value in found.items() if key != "mask"} for found in pipe(image, threshold=0.4)
    ],
    "image-classification": lambda pipe: pipe(image),
    "zero-shot-image-classification": lambda pipe: pipe(image, candidate_labels=names),
    "zero-shot-object-detection": lambda pipe: pipe(image, candidate_labels=names, threshold=0.1),
    "image-text-to-text": lambda pipe: pipe(image, text=""),
    "fill-mask": lambda pipe: pipe("a square has<mask> corners ."),
    "feature-extraction": lambda pipe: len(pipe("a red star")[0]),
    "image-feature-extraction": lambda pipe: len(pipe(image)[0]),
}
print(json.dumps({task: call(pipeline(task, model=folder)) for task, call in calls.items()}))
"""


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_folder_is_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "processor_config.json"}
    assert expected | {"README.md", "generation_config.json", "example.jpg"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 30e6


@pytest.mark.parametrize("name", [*TASK_CLASSES, "UniPerceiverV2Model"])
def test_every_class_loads_and_saves_the_same_file(name: str, tmp_path: Path) -> None:
    model, info = getattr(transformers_upv2, name).from_pretrained(FOLDER, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    model.save_pretrained(tmp_path)
    assert digest(tmp_path) == digest(FOLDER)


def test_each_task_presents_its_own_labels() -> None:
    for name, label_set in (("ImageClassification", "classification"), ("ObjectDetection", "detection")):
        model = getattr(transformers_upv2, f"UniPerceiverV2For{name}").from_pretrained(FOLDER)
        assert list(model.config.id2label.values()) == model.config.label_sets[label_set]["names"]
        assert model.config.num_labels == len(model.config.id2label)


@pytest.mark.slow
def test_stock_pipelines_in_a_fresh_process() -> None:
    command = [sys.executable, "-c", PIPELINES, str(FOLDER), str(FOLDER / "example.jpg")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "not supported" not in result.stderr
    answers = json.loads(result.stdout)
    assert answers["object-detection"], "the example holds objects"
    assert {"score", "label", "box"} == set(answers["object-detection"][0])
    assert set(answers["image-segmentation"][0]) == {"score", "label"}
    assert answers["image-text-to-text"][0]["generated_text"].strip()
    assert len(answers["zero-shot-image-classification"]) == 3
    assert answers["feature-extraction"] > 1


def test_results_do_not_depend_on_padding_or_batch_mates() -> None:
    processor = transformers_upv2.UniPerceiverV2Processor.from_pretrained(FOLDER)
    detector = transformers_upv2.UniPerceiverV2ForObjectDetection.from_pretrained(FOLDER).eval()
    image = Image.open(FOLDER / "example.jpg").convert("RGB")
    wide = image.crop((0, 0, 128, 90))
    with torch.no_grad():
        alone = detector(**processor(images=[wide], return_tensors="pt"))
        unpadded = detector(**processor(images=[wide], return_tensors="pt", pad_size=None))
        among_others = detector(**processor(images=[image, wide], return_tensors="pt"))
    for other, row in ((unpadded, 0), (among_others, 1)):
        torch.testing.assert_close(other.logits[row], alone.logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(other.pred_boxes[row], alone.pred_boxes[0], atol=1e-4, rtol=0)
