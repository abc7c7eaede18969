"""The processor: whole texts, prompts, annotations, a byte-equal round trip."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.outputs import ObjectDetectionOutput
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    bpe = ByteLevelBPETokenizer()
    text = ["a red square above a blue circle on the left of a green triangle"] * 9
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(text, vocab_size=320, special_tokens=specials, show_progress=False)
    model = json.loads(bpe._tokenizer.to_str())["model"]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    return RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])


@pytest.fixture
def processor(tokenizer: RobertaTokenizer) -> UniPerceiverV2Processor:
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return UniPerceiverV2Processor(image_processor, tokenizer)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_text_alone_is_whole_and_padded_right(processor: UniPerceiverV2Processor, tokenizer: RobertaTokenizer) -> None:
    texts = ["a red square", "a circle on the left"]
    batch = processor(text=texts, return_tensors="pt")
    for i, text in enumerate(texts):
        ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
        assert ids == tokenizer(text)["input_ids"]
        assert (ids[0], ids[-1]) == (0, 2)
    assert batch["attention_mask"].diff(dim=1).max() == 0  # ones, then zeros
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 1).all()
    assert isinstance(processor(text="a red square")["input_ids"][0], int)


def test_text_beside_images_is_a_prompt(
    processor: UniPerceiverV2Processor, tokenizer: RobertaTokenizer, image: np.ndarray
) -> None:
    texts = ["a red square", "", "a circle on the left"]
    batch = processor(images=[image] * 3, text=texts, return_tensors="pt")
    for i, text in enumerate(texts):
        ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
        assert ids == tokenizer(text)["input_ids"][:-1]
    assert batch["attention_mask"].diff(dim=1).min() == 0  # zeros, then ones
    assert batch["attention_mask"][1].sum() == 1  # just `<s>`
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    single = processor(images=image, text="", return_tensors="pt")
    assert single["input_ids"].tolist() == [[0]]
    assert tokenizer.padding_side == "right"


def test_prompt_options(processor: UniPerceiverV2Processor, image: np.ndarray) -> None:
    padded = processor(images=image, text="a red", padding="max_length", max_length=9, return_tensors="pt")
    assert padded["input_ids"].shape == (1, 9)
    cut = processor(images=image, text="a red square above", truncation=True, max_length=4)
    assert len(cut["input_ids"][0]) == 3
    bare = processor(images=image, text="a red", add_special_tokens=False)
    assert bare["input_ids"] == processor.tokenizer(["a red"], add_special_tokens=False)["input_ids"]


def test_images_and_annotations(processor: UniPerceiverV2Processor, image: np.ndarray) -> None:
    item = {"bbox": [6, 8, 30, 20], "category_id": 2}
    target = {"image_id": 4, "annotations": [item]}
    batch = processor(images=image, annotations=target, return_tensors="pt")
    expected = processor.image_processor(image, annotations=target, return_tensors="pt")
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"}
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["labels"][0]["boxes"], expected["labels"][0]["boxes"])
    wide = processor(images=image, size={"longest_edge": 30}, return_tensors="pt")
    assert wide["pixel_mask"].sum() == 30 * 20
    assert processor(images=image, pad_size=None, size_divisor=50)["pixel_mask"][0].shape == (50, 100)


def test_errors(processor: UniPerceiverV2Processor) -> None:
    with pytest.raises(ValueError, match=r"at least one input to call UniPerceiverV2Processor"):
        processor()
    with pytest.raises(ValueError, match=r"`annotations` need `images`, got none"):
        processor(text="a", annotations={"image_id": 1, "annotations": []})
    for images in (None, Image.new("RGB", (40, 40))):
        with pytest.raises(ValueError, match=r"`text` must hold at least one text, got an empty list"):
            processor(images=images, text=[])


def test_read_out_is_that_of_the_image_processor(processor: UniPerceiverV2Processor) -> None:
    outputs = ObjectDetectionOutput(
        logits=torch.tensor([[[3.0, -3.0], [-3.0, 2.0]]]),
        pred_boxes=torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.4, 0.4]]]),
        pred_masks=torch.full((1, 2, 8, 8), 4.0),
        image_sizes=torch.tensor([[32, 32]]),
    )
    read_outs = [name for name in dir(processor.image_processor) if name.startswith("post_process_")]
    assert len(read_outs) == 3
    for name in read_outs:
        found = getattr(processor, name)(outputs, target_sizes=[(20, 30)])
        expected = getattr(processor.image_processor, name)(outputs, target_sizes=[(20, 30)])
        assert str(found) == str(expected)
    segments = processor.post_process_instance_segmentation(outputs)[0]["segments_info"]
    assert [list(segment) for segment in segments] == [["id", "label_id", "was_fused", "score"]]
    assert not segments[0]["was_fused"]


def test_decoding(processor: UniPerceiverV2Processor) -> None:
    ids = processor(text=["a red square", "a circle"], return_tensors="pt")["input_ids"]
    assert processor.post_process_image_text_to_text(ids) == ["a red square", "a circle"]
    kept = processor.post_process_image_text_to_text(ids, skip_special_tokens=False)
    assert kept[0].startswith("<s>a red square</s>")


def test_save_and_load_byte_equal(processor: UniPerceiverV2Processor, image: np.ndarray, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "a")
    loaded = UniPerceiverV2Processor(
        UniPerceiverV2ImageProcessor.from_pretrained(tmp_path / "a"),
        RobertaTokenizer.from_pretrained(tmp_path / "a"),
    )
    loaded.save_pretrained(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for one, other in zip(
        processor(images=image, text="a red", return_tensors="pt").values(),
        loaded(images=image, text="a red", return_tensors="pt").values(),
    ):
        assert torch.equal(one, other)
