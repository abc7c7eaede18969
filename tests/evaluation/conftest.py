"""A processor, a small COCO file and detectors that know its annotations."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from heart_models import CATEGORY_IDS, CLASS_NAMES, HeartModel, ListDataset, gray_image

from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["a red circle above the big blue square.", "two small green stars on a dark background"])


@pytest.fixture(scope="session")
def processor(tokenizer):
    image_processor = UniPerceiverV2ImageProcessor(
        size={"longest_edge": 128},
        pad_size={"height": 128, "width": 128},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer)


@pytest.fixture
def coco_dataset(tmp_path):
    """Five images of other shapes: boxes and masks, a crowd, an image without annotations."""
    rng = np.random.default_rng(0)
    sizes = [(128, 128), (128, 96), (64, 128), (64, 64), (128, 128)]
    images, annotations, examples = [], [], []
    for number, (width, height) in enumerate(sizes):
        image_id = 100 + number
        images.append({"id": image_id, "width": width, "height": height, "file_name": "none"})
        own = []
        for _ in range(0 if number == 2 else 4):
            x, y = rng.integers(0, width // 8 - 2) * 8, rng.integers(0, height // 8 - 2) * 8
            w = rng.integers(1, (width - x) // 8 + 1) * 8
            h = rng.integers(1, (height - y) // 8 + 1) * 8
            x, y, w, h = (int(value) for value in (x, y, w, h))
            own.append(
                {
                    "id": len(annotations) + len(own) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[rng.integers(3)],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        annotations += own
        labeled = [each | {"category_id": CATEGORY_IDS.index(each["category_id"])} for each in own]
        examples.append(
            {
                "image": gray_image(number, (width, height)),
                "image_id": image_id,
                "annotations": labeled,
            }
        )
    crowd = {
        "id": 999,
        "image_id": 104,
        "category_id": 7,
        "bbox": [0, 0, 128, 64],
        "area": 128 * 64,
        "iscrowd": 1,
        "segmentation": {"counts": [0, *[64] * 255, 64], "size": [128, 128]},
    }
    annotations.append(crowd)
    categories = [{"id": i, "name": name} for i, name in zip(CATEGORY_IDS, CLASS_NAMES)]
    file = tmp_path / "instances.json"
    content = {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return ListDataset(examples, class_names=CLASS_NAMES, category_ids=CATEGORY_IDS, annotation_file=file)


@pytest.fixture
def make_perfect_detector(coco_dataset):
    """A detector that knows the annotations; `spoil(answer, number)` may change its answers."""

    def make(spoil=lambda answer, number: answer):
        def answer(number):
            example = coco_dataset[number]
            width, height = example["image"].size
            scale = 128 / max(width, height)
            logits = torch.full((20, 3), -9.0)
            boxes = torch.full((20, 4), 0.5)
            masks = torch.full((20, 32, 32), -9.0)
            for slot, annotation in enumerate(example["annotations"]):
                x, y, w, h = annotation["bbox"]
                logits[slot, annotation["category_id"]] = 3.0
                boxes[slot] = torch.tensor([(x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
                x0, y0, x1, y1 = (int(v * scale / 4) for v in (x, y, x + w, y + h))
                masks[slot, y0:y1, x0:x1] = 9.0
            size = torch.tensor([round(height * scale), round(width * scale)])
            known = {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}
            return spoil(known, number) | {"image_sizes": size}

        return HeartModel(answer)

    return make
