"""Batches hold what the model's forward takes, and depend on nothing but their examples."""

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.training.collator import UniPerceiverV2Collator

CAPTIONS = ["a red star", "there is a star in the middle of it", "one star", "a photograph", "the star is red"]
TEXT = "two yellow stars lie on a dark table and a blue circle is far behind them"


@pytest.fixture(scope="module")
def processor():
    image_processor = UniPerceiverV2ImageProcessor(
        size={"longest_edge": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, size_divisor=32
    )
    return UniPerceiverV2Processor(image_processor, train_tokenizer([*CAPTIONS, TEXT] * 3))


def image(width=64, height=48):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def box(left, top, width, height, category=1, **more):
    segmentation = [[left, top, left + width, top, left + width, top + height, left, top + height]]
    return {
        "id": 1,
        "bbox": [left, top, width, height],
        "area": width * height,
        "category_id": category,
        "iscrowd": 0,
        "segmentation": segmentation,
        **more,
    }


def test_classification(processor):
    examples = [{"image": image(), "label": label, "image_id": str(label), "rng_seed": 0} for label in (2, 0)]
    batch = UniPerceiverV2Collator(processor, "classification")(examples)
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"}
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["pixel_mask"].sum().item() == 2 * 64 * 48
    assert batch["labels"].dtype == torch.int64
    assert batch["labels"].tolist() == [2, 0]


def test_detection_drops_crowds_and_keeps_empty_images(processor):
    crowd = box(0, 0, 32, 48, iscrowd=1)
    annotations = [box(16, 12, 32, 24, category=5), crowd]
    examples = [
        {"image": image(), "image_id": 1, "annotations": annotations, "rng_seed": 0},
        {"image": image(48, 64), "image_id": 2, "annotations": [], "rng_seed": 0},
        {"image": image(), "image_id": 3, "annotations": [crowd], "rng_seed": 0},
    ]
    batch = UniPerceiverV2Collator(processor, "detection")(examples)
    first, *empty = batch["labels"]
    assert first["class_labels"].tolist() == [5]
    torch.testing.assert_close(first["boxes"], torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert first["masks"].shape == (1, *batch["pixel_values"].shape[-2:])
    assert set(first) == {"class_labels", "boxes", "masks"}
    for labels in empty:
        assert labels["class_labels"].shape == (0,)
        assert labels["boxes"].shape == (0, 4)
    assert len(annotations) == 2  # the data set's own list


def test_detection_mixes_objects_with_and_without_masks_in_images_named_by_texts(processor):
    with_mask, without = box(16, 12, 32, 24), {**box(0, 0, 9, 9), "segmentation": None}
    examples = [
        {"image": image(), "image_id": f"photo {number}", "annotations": annotations, "rng_seed": 0}
        for number, annotations in enumerate([[with_mask, without], [without], [with_mask]])
    ]
    mixed, bare, whole = UniPerceiverV2Collator(processor, "detection")(examples)["labels"]
    assert mixed["has_mask"].tolist() == [True, False]
    assert set(bare) == {"class_labels", "boxes"}
    assert set(whole) == {"class_labels", "boxes", "masks"}


@pytest.mark.parametrize("task", ["captioning", "retrieval"])
def test_image_text_draws_a_caption_by_the_seed_of_the_example(processor, task):
    collator = UniPerceiverV2Collator(processor, task)
    examples = [{"image": image(), "image_id": 1, "captions": CAPTIONS, "rng_seed": seed} for seed in range(40)]
    batch = collator(examples)
    texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert {text.strip() for text in texts} == set(CAPTIONS)
    again = collator(examples[::-1])
    texts_again = processor.tokenizer.batch_decode(again["input_ids"], skip_special_tokens=True)
    assert texts_again == texts[::-1]
    assert batch["input_ids"][:, 0].eq(0).all()
    lengths = batch["attention_mask"].sum(dim=1)
    assert batch["input_ids"].gather(1, lengths[:, None] - 1).eq(2).all()
    assert (batch["input_ids"] == 1).equal(batch["attention_mask"] == 0)


def test_long_captions_are_cut(processor):
    example = {"image": image(), "image_id": 1, "captions": [TEXT * 9], "rng_seed": 0}
    batch = UniPerceiverV2Collator(processor, "captioning", max_text_length=12)([example])
    assert batch["input_ids"].shape == (1, 12)
    assert batch["input_ids"][0, -1] == 2


def test_language_modeling_masks_by_the_seed_of_the_example(processor):
    collator = UniPerceiverV2Collator(processor, "language_modeling", mask_probability=0.3)
    examples = [{"text": text, "rng_seed": seed} for seed, text in enumerate([TEXT, CAPTIONS[0], TEXT])]
    batch = collator(examples)
    truth = collator.encode_texts([example["text"] for example in examples])
    asked = batch["labels"] != -100
    assert asked.any(dim=1).all()
    assert batch["labels"][asked].equal(truth["input_ids"][asked])
    assert batch["input_ids"][~asked].equal(truth["input_ids"][~asked])
    assert not batch["labels"][0].equal(batch["labels"][2])
    alone = collator(examples[2:])
    length = alone["labels"].shape[1]
    assert alone["labels"][0].equal(batch["labels"][2, :length])
    assert alone["input_ids"][0].equal(batch["input_ids"][2, :length])


def test_replaced_samples_are_reported(processor):
    examples = [
        {"text": TEXT, "rng_seed": 0, "replaced": [(3, "empty"), (5, "unreadable")]},
        {"text": TEXT, "rng_seed": 0, "replaced": []},
    ]
    batch = UniPerceiverV2Collator(processor, "language_modeling")(examples)
    assert batch["replaced"] == [(3, "empty"), (5, "unreadable")]


def test_image_options_of_the_task_count(processor):
    example = {"image": image(), "label": 1, "rng_seed": 0}
    collator = UniPerceiverV2Collator(processor, "classification", {"size": {"longest_edge": 32}})
    assert collator([example])["pixel_values"].shape == (1, 3, 32, 32)


def test_unknown_task_is_named(processor):
    with pytest.raises(ValueError, match=r"'retrieval'\], got 'detect'"):
        UniPerceiverV2Collator(processor, "detect")


def test_examples_may_carry_an_encoding_in_place_of_an_image(processor):
    def encoding(value):
        fields = dict.fromkeys(
            ("tokens", "token_mask", "semantic", "boxes", "objectness_logits", "mask_embeddings", "pooled_masks"),
            torch.full((1, 2, 3), value),
        )
        sizes = torch.tensor([[64, 64]])
        return ImageEncoding(**fields, image_sizes=sizes, canvas_sizes=sizes)

    examples = [
        {"image_encoding": encoding(value), "label": index, "rng_seed": 0} for index, value in enumerate((1.0, 2.0))
    ]
    batch = UniPerceiverV2Collator(processor, "classification")(examples)
    assert set(batch) == {"image_encoding", "labels"}
    assert batch["image_encoding"].tokens[:, 0, 0].tolist() == [1.0, 2.0]
