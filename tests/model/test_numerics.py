"""Precisions: every class loads and runs in three of them, and half precision finds what fp32 finds."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

import transformers_upv2
from tiny_models import TEXTS, random_images
from transformers_upv2 import UniPerceiverV2ForInstanceSegmentation, UniPerceiverV2Processor

TINY = Path(__file__).resolve().parents[2] / "model_cards" / "uniperceiver-v2-tiny"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INPUTS = {
    "UniPerceiverV2Model": ("image",),
    "UniPerceiverV2ForImageClassification": ("image",),
    "UniPerceiverV2ForObjectDetection": ("image",),
    "UniPerceiverV2ForInstanceSegmentation": ("image",),
    "UniPerceiverV2ForZeroShotImageClassification": ("image", "text"),
    "UniPerceiverV2ForZeroShotObjectDetection": ("image", "text"),
    "UniPerceiverV2ForImageTextRetrieval": ("image", "text"),
    "UniPerceiverV2ForConditionalGeneration": ("image",),
    "UniPerceiverV2ForMaskedLM": ("text",),
}


@pytest.fixture(scope="module")
def folder(session_model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numerics")
    session_model.save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", INPUTS)
def test_every_class_runs_in_every_precision(folder, roberta_tokenizer, name, dtype, tmp_path):
    model = getattr(transformers_upv2, name).from_pretrained(folder, dtype=dtype).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    values = {
        "image": {"pixel_values": random_images(2).to(dtype)},
        "text": dict(roberta_tokenizer(TEXTS[:2], padding=True, return_tensors="pt")),
    }
    inputs = {key: value for kind in INPUTS[name] for key, value in values[kind].items()}
    with torch.no_grad():
        output = model(**inputs)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)  # the dtype that was saved
        repeated = again.eval()(**inputs)
    assert again.dtype == dtype
    for key, value in output.items():
        if isinstance(value, torch.Tensor):
            assert torch.isfinite(value).all(), key
            assert torch.equal(value, repeated[key]), key
    if "pred_boxes" in output:
        assert output.pred_boxes.dtype == torch.float32


def test_buffers_are_exact_through_the_meta_device(session_model, folder):
    loaded = type(session_model).from_pretrained(folder)
    expected = dict(session_model.named_buffers())
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == expected.keys()
    assert expected
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected[name]), name


# Measured on the scene in the shipped folder, over matched pairs: boxes in pixels of the image, scores, and 1 - IoU of
# the masks. Medians, since a single instance may differ by several pixels and .2 of its score.
BOUNDS = {torch.bfloat16: (0.75, 0.03, 0.03), torch.float16: (0.35, 0.02, 0.03)}


def find(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Instances of the example image with a score of at least 0.3."""
    image = Image.open(io.BytesIO((TINY / "example.jpg").read_bytes()))
    processor = UniPerceiverV2Processor.from_pretrained(TINY)
    model = UniPerceiverV2ForInstanceSegmentation.from_pretrained(TINY, dtype=dtype).eval()
    inputs = processor(images=image, return_tensors="pt").to(dtype)
    with torch.no_grad():
        output = model(**inputs)
    return processor.image_processor.post_process_instances(output, [(image.height, image.width)], threshold=0.3)[0]


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_half_precision_finds_what_full_precision_finds(dtype):
    expected, found = find(torch.float32), find(dtype)
    assert len(expected["scores"]) >= 3
    overlaps = box_iou(expected["boxes"], found["boxes"])
    overlaps[expected["labels"][:, None] != found["labels"]] = 0
    # of several proposals on one object the one with the nearest score
    nearness = overlaps - (expected["scores"][:, None] - found["scores"]).abs()
    match = nearness.argmax(dim=1)
    overlap = overlaps.gather(1, match[:, None])[:, 0]
    assert (overlap > 0.5).all()  # every instance is found again, with its label
    assert len(set(match.tolist())) == len(match)
    boxes = (expected["boxes"] - found["boxes"][match]).abs().amax(dim=1)
    scores = (expected["scores"] - found["scores"][match]).abs()
    masks, others = expected["masks"], found["masks"][match]
    shared = (masks & others).sum((1, 2)) / (masks | others).sum((1, 2))
    for name, distance, bound in zip(("boxes", "scores", "masks"), (boxes, scores, 1 - shared), BOUNDS[dtype]):
        print(f"{dtype}: {name} median {distance.median():.4f}, most {distance.max():.4f}")
        assert distance.median() <= bound
