"""The image processor: parity with DETR's and pycocotools, alignment, any image, exact read-out."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import DetrImageProcessor
from transformers.utils.logging import warning_once

from transformers_upv2.model import post_processing
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.outputs import ObjectDetectionOutput

SMALL = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def annotation(box: list[float], **fields: object) -> dict:
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        "id": 7,
        "bbox": box,
        "category_id": 3,
        "area": w * h,
        "iscrowd": 0,
        "segmentation": polygon,
    } | fields


def target(*annotations: dict, image_id: int = 5) -> dict:
    return {"image_id": image_id, "annotations": list(annotations)}


# --- preprocessing ---------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [[(40, 60)], [(40, 60), (90, 30), (60, 40)]])
def test_equals_detr(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    targets = [target(annotation([5, 8, 20.5, 15]), annotation([0, 1, 9, 30])) for _ in shapes]
    size = {"shortest_edge": 50, "longest_edge": 80}
    options = {"annotations": targets, "return_tensors": "pt"}
    ours = UniPerceiverV2ImageProcessor(size=size, size_divisor=1)(images, **options)
    detr = DetrImageProcessor(size=size)(images, return_segmentation_masks=True, **options)
    torch.testing.assert_close(ours["pixel_values"], detr["pixel_values"])
    assert torch.equal(ours["pixel_mask"], detr["pixel_mask"])
    padded = torch.tensor(ours["pixel_values"].shape[-2:])
    for mine, theirs in zip(ours["labels"], detr["labels"]):
        for name in ("class_labels", "area", "iscrowd", "orig_size", "image_id"):
            torch.testing.assert_close(mine[name], theirs[name])
        # DETR's boxes are relative to the padded image, ours to the real one.
        ratio = (mine["size"] / padded).flip(0).repeat(2)
        torch.testing.assert_close(mine["boxes"] * ratio, theirs["boxes"])
        # DETR samples masks at the pixel's corner, we at its center: a border of one pixel at most.
        assert (mine["masks"] ^ theirs["masks"]).float().mean() < 0.06


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"longest_edge": 128}, (85, 128)),
        ({"shortest_edge": 50, "longest_edge": 100}, (50, 75)),
        ({"shortest_edge": 50, "longest_edge": 60}, (40, 60)),
        ({"height": 70, "width": 33}, (70, 33)),
    ],
)
def test_sizes(image: np.ndarray, size: dict, expected: tuple[int, int]) -> None:
    batch = UniPerceiverV2ImageProcessor(size=size)(image, return_tensors="pt")
    mask = batch["pixel_mask"][0]
    real = torch.zeros_like(mask)
    real[: expected[0], : expected[1]] = 1
    assert torch.equal(mask, real)
    assert all(side % 32 == 0 for side in batch["pixel_values"].shape[-2:])
    assert not batch["pixel_values"][0, :, mask == 0].any()


def test_panorama_keeps_a_pixel() -> None:
    image = Image.new("RGB", (5000, 1))
    for size in ({"longest_edge": 64}, {"shortest_edge": 32, "longest_edge": 64}):
        mask = UniPerceiverV2ImageProcessor(size=size)(image, return_tensors="pt")["pixel_mask"]
        assert 63 <= mask.sum() <= 64


def test_batch_equals_single(image: np.ndarray) -> None:
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    images = [image, image[:, :20], image[:11]]
    batch = processor(images, return_tensors="pt")
    for i, single in enumerate(images):
        alone = processor(single, return_tensors="pt")
        assert torch.equal(batch["pixel_values"][i], alone["pixel_values"][0])
        assert torch.equal(batch["pixel_mask"][i], alone["pixel_mask"][0])


def test_grouping_changes_nothing(image: np.ndarray) -> None:
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    images = [image, image[:11], image[::-1].copy()]
    grouped = processor(images, disable_grouping=False, return_tensors="pt")
    assert torch.equal(grouped["pixel_values"], processor(images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("shape", [(40, 60), (64, 64), (300, 170)])
def test_boxes_and_masks_stay_on_the_object(shape: tuple[int, int]) -> None:
    height, width = shape
    top, left, bottom, right = height // 4, width // 3, height // 2, width - width // 8
    image = np.zeros((*shape, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255
    box = [left, top, right - left, bottom - top]
    processor = UniPerceiverV2ImageProcessor(**SMALL, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    batch = processor(image, annotations=target(annotation(box)), return_tensors="pt")
    label, seen = batch["labels"][0], batch["pixel_values"][0, 0] > 0.505  # a tie is 128 / 255
    assert (label["masks"][0] ^ seen).sum() <= 2
    real = batch["pixel_mask"][0].nonzero().max(0).values + 1
    cx, cy, w, h = (label["boxes"][0] * real.flip(0).repeat(2)).tolist()
    rows, columns = seen.nonzero().unbind(1)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    assert (torch.stack(found) - expected).abs().max() <= 0.51


def test_segmentation_formats_agree_with_pycocotools(image: np.ndarray) -> None:
    polygons = [[5.0, 5.0, 30.0, 8.0, 20.0, 30.0], [40.0, 20.0, 55.0, 20.0, 50.0, 35.0]]
    expected = coco.decode(coco.merge(coco.frPyObjects(polygons, 40, 60))).astype(bool)
    compressed = coco.encode(np.asfortranarray(expected, dtype=np.uint8))
    as_text = {"size": [40, 60], "counts": compressed["counts"].decode()}
    flat = np.concatenate([[0], expected.flatten("F").astype(int), [2]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], starts])).tolist()
    uncompressed = {"size": [40, 60], "counts": counts}
    processor = UniPerceiverV2ImageProcessor(do_resize=False, size_divisor=1)
    for segmentation in (polygons, compressed, as_text, uncompressed):
        targets = target(annotation([5, 5, 50, 30], segmentation=segmentation))
        masks = processor(image, annotations=targets, return_tensors="pt")["labels"][0]["masks"]
        assert torch.equal(masks[0], torch.from_numpy(expected))
        assert masks.dtype == torch.bool


def test_crowd_is_left_out_and_never_an_error(image: np.ndarray) -> None:
    crowd = annotation([-5, 0, 0, 0], iscrowd=1, segmentation={"broken": True}, category_id=None)
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    label = processor(image, annotations=target(crowd, annotation([1, 1, 9, 9])))["labels"][0]
    assert label["class_labels"].tolist() == [3]
    empty = processor(image, annotations=target(crowd))["labels"][0]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 64, 64)


def test_objects_without_segmentation_beside_others_have_empty_masks(image: np.ndarray) -> None:
    bare = annotation([1, 1, 9, 9], segmentation=[])
    processor = UniPerceiverV2ImageProcessor(do_resize=False)
    label = processor(image, annotations=target(annotation([1, 1, 9, 9]), bare))["labels"][0]
    assert label["has_mask"].tolist() == [True, False]
    assert label["masks"].any(dim=(1, 2)).tolist() == [True, False]
    assert "has_mask" not in processor(image, annotations=target(annotation([1, 1, 9, 9])))["labels"][0]


def test_masks_are_absent_without_segmentations(image: np.ndarray) -> None:
    item = annotation([1, 1, 9, 9])
    del item["segmentation"], item["area"]
    label = UniPerceiverV2ImageProcessor(do_resize=False)(image, annotations=target(item))["labels"]
    assert "masks" not in label[0]
    assert label[0]["area"].tolist() == [81.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": [70, 3, 5, 5]}, r"Annotation 7 of image 5: `bbox` must cover .*width 60 .*70\.0"),
        ({"bbox": [7, 3, 0, 5]}, r"`bbox` must cover"),
        ({"bbox": [float("nan"), 3, 2, 5]}, r"`bbox` must cover"),
        ({"bbox": [7, 3, 5]}, r"`bbox` must be \[x, y, width, height\] in pixels, got \[7, 3, 5\]"),
        ({"category_id": -1}, r"`category_id` must be a label 0, 1, 2, ..., got -1"),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            r"`segmentation` cannot be read. A polygon must be .*4\]",
        ),
        ({"segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, r"finite numbers, got .*inf"),
        ({"segmentation": "abc"}, r"non-empty list of polygons .* got 'abc'"),
        ({"segmentation": {"counts": [3]}}, r"keys 'size' and 'counts', got \['counts'\]"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"size \[9, 9\] .* \[40, 60\]"),
        ({"segmentation": {"size": [40, 60], "counts": [81]}}, r"= 2400, got 81"),
    ],
)
def test_bad_annotations(image: np.ndarray, fields: dict, message: str) -> None:
    targets = target(annotation([1, 1, 9, 9], **fields))
    with pytest.raises(ValueError, match=message):
        UniPerceiverV2ImageProcessor(**SMALL)(image, annotations=targets)


def test_bad_targets(image: np.ndarray) -> None:
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    with pytest.raises(ValueError, match=r"one dict for each image, got 1 for 2 images"):
        processor([image, image], annotations=[target()])
    with pytest.raises(ValueError, match=r"'image_id' and 'annotations', got \['annotations'\]"):
        processor(image, annotations={"annotations": []})
    with pytest.raises(ValueError, match=r"`image_id` must be an integer or a text, got 1.5"):
        processor(image, annotations={"image_id": 1.5, "annotations": []})


def test_images_may_have_texts_for_ids(image: np.ndarray) -> None:
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    (named,) = processor(image, annotations={"image_id": "a", "annotations": [annotation([1, 1, 9, 9])]})["labels"]
    (numbered,) = processor(image, annotations=target(annotation([1, 1, 9, 9])))["labels"]
    assert set(numbered) - set(named) == {"image_id"}
    assert torch.equal(named["boxes"], numbered["boxes"])


def test_bad_sizes(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"`size` must have .* got \{'shortest_edge': 50\}"):
        UniPerceiverV2ImageProcessor(size={"shortest_edge": 50})
    with pytest.raises(ValueError, match=r"`size_divisor` must be at least 1, got 0"):
        UniPerceiverV2ImageProcessor(size_divisor=0)
    processor = UniPerceiverV2ImageProcessor(**SMALL)
    for divisor in (0, -3):
        with pytest.raises(ValueError, match=rf"`size_divisor` must be at least 1, got {divisor}"):
            processor(image, pad_size=None, size_divisor=divisor)
    with pytest.raises(ValueError, match=r"`pad_size` .*'height': 64.* up to \(68, 102\)"):
        processor(image, size={"height": 68, "width": 102})
    with pytest.raises(ValueError, match=r"`do_pad=False` .* got .*\[\(20, 60\), \(40, 60\)\]"):
        processor([image, image[:20]], do_pad=False, do_resize=False)
    assert "pixel_mask" not in processor(image, do_pad=False)


# --- what counts as an image -----------------------------------------------------------------


def pixels(image: object) -> torch.Tensor:
    """What the model sees, as values 0..255."""
    processor = UniPerceiverV2ImageProcessor(do_resize=False, do_normalize=False, do_rescale=False, size_divisor=1)
    return processor(image, return_tensors="pt")["pixel_values"][0].float()


def test_pil_modes() -> None:
    gray = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
    opaque = np.full_like(gray, 255)
    colors = np.stack([gray, gray[::-1], opaque], -1)
    as_gray = torch.from_numpy(gray).expand(3, 6, 8).float()
    as_colors = torch.from_numpy(colors.copy()).permute(2, 0, 1).float()
    palette = Image.fromarray(gray).convert("P")
    half = np.full_like(gray, 51)  # a fifth opaque, the rest is white
    blended = Image.fromarray(np.stack([gray, half], -1), "LA")
    cases = [
        (Image.fromarray(gray), as_gray),
        (Image.fromarray(np.stack([gray, opaque], -1), "LA"), as_gray),
        (palette, as_gray),
        (Image.fromarray(np.dstack([colors, opaque]), "RGBA"), as_colors),
        (Image.fromarray(np.dstack([255 - colors, 0 * opaque]), "CMYK"), as_colors),
        (Image.fromarray(gray.astype(np.uint16) * 257), as_gray),
        (Image.fromarray(gray.astype(np.int32) * 257), as_gray),
        (blended, as_gray * 0.2 + 255 * 0.8),
        (Image.fromarray(gray > 100), (as_gray > 100) * 255.0),
    ]
    assert {case.mode for case, _ in cases} == {"L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "1"}
    for case, expected in cases:
        torch.testing.assert_close(pixels(case), expected, atol=1.0, rtol=0, msg=case.mode)


def test_arrays_and_tensors(image: np.ndarray) -> None:
    expected = torch.from_numpy(image).permute(2, 0, 1).float()
    for case in (
        image,
        image.transpose(2, 0, 1),
        torch.from_numpy(image),
        torch.from_numpy(image).permute(2, 0, 1),
        image.astype(np.float32),
        image.astype(np.uint16) * 257,
        Image.fromarray(image),
    ):
        torch.testing.assert_close(pixels(case), expected)
    torch.testing.assert_close(pixels(image[..., 0]), expected[:1].expand(3, -1, -1))


def test_read_only_arrays_pass_without_a_warning(image: np.ndarray) -> None:
    frozen = image.copy()
    frozen.flags.writeable = False
    processor = UniPerceiverV2ImageProcessor()
    assert torch.equal(
        processor(frozen, return_tensors="pt")["pixel_values"], processor(image, return_tensors="pt")["pixel_values"]
    )


def test_other_ranges_do_not_pass_silently(image: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    torch.testing.assert_close(pixels(image.astype(np.int32)), pixels(image))
    with pytest.raises(ValueError, match=r"torch\.int32 must hold 0\.\.255, got \d+\.\.65535\. .* must be uint16"):
        pixels(image.astype(np.int32) * 257)
    with pytest.raises(ValueError, match=r"torch\.int64 must hold 0\.\.255, got -\d+"):
        pixels(torch.from_numpy(image).long() - 128)
    processor, message = UniPerceiverV2ImageProcessor(**SMALL), "look already rescaled"
    rescaled = (image / 255).astype(np.float32)
    warning_once.cache_clear()
    from_rescaled = processor(rescaled, do_rescale=False, return_tensors="pt")["pixel_values"]
    expected = processor(image.astype(np.float32), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(from_rescaled, expected)
    assert message not in caplog.text
    processor(rescaled)
    assert message in caplog.text


def test_exif_rotation_and_files(image: np.ndarray, tmp_path: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(image).save(path, exif=exif)
    upright = torch.from_numpy(np.rot90(image, -1).copy()).permute(2, 0, 1).float()
    with Image.open(path) as opened:
        torch.testing.assert_close(pixels(opened), upright)
    torch.testing.assert_close(pixels(path), upright)
    torch.testing.assert_close(pixels([str(path)]), upright)


def test_files_addresses_and_base64_give_the_same_pixels(image: np.ndarray, tmp_path: Path, address: str) -> None:
    deep = Image.fromarray(image[..., 0].astype(np.uint16) * 257)
    clear = Image.fromarray(np.dstack([image, image[..., 0]]), "RGBA")
    for name, picture in (("deep.png", deep), ("clear.png", clear)):
        picture.save(tmp_path / name)
        data = base64.encodebytes((tmp_path / name).read_bytes()).decode()
        expected = pixels(picture)
        for source in (tmp_path / name, f"{address}/{name}", data, f"data:image/png;base64,{data}"):
            torch.testing.assert_close(pixels(source), expected, atol=0, rtol=0)


def test_hostile_addresses(image: np.ndarray, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(image).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:-3000])
    with pytest.raises(ValueError, match=r"cut\.png' cannot be decoded: .*truncated"):
        pixels(f"{address}/cut.png")
    with pytest.raises(ValueError, match=r"cannot be decoded: .*truncated"):
        pixels(base64.b64encode(content[:-3000]).decode())
    with pytest.raises(ValueError, match=r"none\.png' cannot be opened as an image: .*404"):
        pixels(f"{address}/none.png")
    for nowhere in ("http://127.0.0.1:9/a.png", "http://[a.png"):
        with pytest.raises(ValueError, match=r"a\.png' cannot be opened as an image"):
            pixels(nowhere)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"whole\.png' cannot be opened as an image: .*bomb"):
        pixels(f"{address}/whole.png")


def test_hostile_images(image: np.ndarray, tmp_path: object, monkeypatch: object) -> None:
    with pytest.raises(ValueError, match=r"at least one pixel, got a size of \(0, 5\)"):
        pixels(Image.new("RGB", (0, 5)))
    with pytest.raises(ValueError, match=r"at least one pixel, got shape \(0, 5, 3\)"):
        pixels(np.zeros((0, 5, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mode 'F' holds floating point values"):
        pixels(Image.fromarray(image[..., 0].astype(np.float32)))
    with pytest.raises(ValueError, match=r"finite numbers, got NaN"):
        pixels(np.full((4, 4, 3), np.nan, dtype=np.float32))
    for nothing in ([], np.zeros((0, 5, 5, 3))):
        with pytest.raises(ValueError, match=r"`images` must hold at least one image, got none"):
            pixels(nothing)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    broken = tmp_path / "broken.png"
    broken.write_bytes(stream.getvalue()[:-3000])
    with pytest.raises(ValueError, match=r"broken\.png' cannot be decoded: .*truncated"):
        pixels(broken)
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png' cannot be opened as an image: cannot identify"):
        pixels(text)
    with pytest.raises(ValueError, match=r"missing\.png' cannot be opened as an image: there is no such file"):
        pixels(str(tmp_path / "missing.png"))
    broken.write_bytes(stream.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"broken\.png' cannot be opened as an image: .*bomb"):
        pixels(broken)


def test_save_and_load_byte_equal(tmp_path: object) -> None:
    UniPerceiverV2ImageProcessor(**SMALL, size_divisor=64).save_pretrained(tmp_path / "a")
    again = UniPerceiverV2ImageProcessor.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    name = "preprocessor_config.json"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert again.size_divisor == 64
    assert again.size == {"longest_edge": 64}


# --- post-processing -------------------------------------------------------------------------


def make_outputs(batch: int = 2, queries: int = 6, classes: int = 4) -> ObjectDetectionOutput:
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(batch, queries, 2, generator=generator)
    sides = torch.rand(batch, queries, 2, generator=generator) * 0.5
    return ObjectDetectionOutput(
        logits=torch.randn(batch, queries, classes, generator=generator),
        pred_boxes=torch.cat([centers, sides], -1),
        pred_masks=torch.randn(batch, queries, 16, 16, generator=generator) * 3,
        image_sizes=torch.tensor([[64, 40], [30, 64]])[:batch],
    )


@pytest.mark.parametrize("top_k", [5, 100, None])
def test_detections_are_the_best_pairs(top_k: int | None) -> None:
    outputs, sizes = make_outputs(), [(100, 200), (50, 70)]
    processor = UniPerceiverV2ImageProcessor()
    found = processor.post_process_object_detection(outputs, 0.4, torch.tensor(sizes), top_k)
    assert len(found) == 2
    for i, (height, width) in enumerate(sizes):
        expected = []
        for query in range(6):
            cx, cy, w, h = outputs.pred_boxes[i, query].tolist()
            box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
            box = [min(max(side, 0), 1) for side in box]
            box = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
            for label in range(4):
                score = torch.sigmoid(outputs.logits[i, query, label]).item()
                expected.append((score, label, box))
        expected = sorted(expected, key=lambda item: -item[0])[:top_k]
        expected = [item for item in expected if item[0] > 0.4]
        scores, labels, boxes = zip(*expected)
        torch.testing.assert_close(found[i]["scores"], torch.tensor(scores))
        assert found[i]["labels"].tolist() == list(labels)
        torch.testing.assert_close(found[i]["boxes"], torch.tensor(boxes))


def test_detections_without_target_sizes_are_relative() -> None:
    found = UniPerceiverV2ImageProcessor().post_process_object_detection(make_outputs(), 0.0)
    assert found[0]["boxes"].max() <= 1
    assert found[0]["boxes"].shape == (24, 4)


def one_object(score: float = 0.9, sharpness: float = 20.0) -> ObjectDetectionOutput:
    """An image of 32 x 48 in a tensor of 64 x 64, an object in rows 8..16, columns 16..32."""
    mask = torch.full((16, 16), -sharpness)
    mask[2:4, 4:8] = sharpness
    return ObjectDetectionOutput(
        logits=torch.logit(torch.tensor([[[0.01, score], [0.01, 0.02]]])),
        pred_boxes=torch.tensor([[[0.5, 0.375, 1 / 3, 0.25], [0.5, 0.5, 0.1, 0.1]]]),
        pred_masks=torch.stack([mask, torch.full_like(mask, -sharpness)])[None],
        image_sizes=torch.tensor([[32, 48]]),
    )


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_masks_lie_where_the_boxes_are(scale: int) -> None:
    size = (32 * scale, 48 * scale)
    found = UniPerceiverV2ImageProcessor().post_process_instances(one_object(), [size], top_k=1)[0]
    left, top, right, bottom = (found["boxes"][0]).round().long().tolist()
    expected = torch.zeros(size, dtype=torch.bool)
    expected[top:bottom, left:right] = True
    wrong = (found["masks"][0] ^ expected).sum()
    assert wrong <= 8 * scale**2  # only the rounded corners
    assert expected.sum() == 8 * 16 * scale**2


def test_score_counts_the_certainty_of_the_mask() -> None:
    processor = UniPerceiverV2ImageProcessor()
    sharp = processor.post_process_instances(one_object(), None, top_k=1)[0]
    vague = processor.post_process_instances(one_object(sharpness=0.5), None, top_k=1)[0]
    assert 0.8 < sharp["scores"].item() < 0.9
    mask = torch.nn.functional.interpolate(
        one_object(sharpness=0.5).pred_masks[:, :1], scale_factor=4, mode="bilinear"
    )[0, 0, :32, :48].sigmoid()
    expected = 0.9 * mask[mask > 0.5].mean()
    torch.testing.assert_close(vague["scores"][0], expected)
    assert vague["masks"].shape == (1, 32, 48)


def test_empty_masks_are_no_instances() -> None:
    found = UniPerceiverV2ImageProcessor().post_process_instances(one_object(), None)[0]
    assert found["labels"].tolist() == [
        1,
        0,
    ]  # both classes of the object's query, not the empty one


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    processor, sizes = UniPerceiverV2ImageProcessor(), [(50, 33), (61, 70)]
    whole = processor.post_process_instances(make_outputs(), sizes)
    monkeypatch.setattr(post_processing, "MAX_CHUNK_PIXELS", 1)
    for one, other in zip(whole, processor.post_process_instances(make_outputs(), sizes)):
        for name in one:
            assert torch.equal(one[name], other[name])


def test_instance_map_gives_pixels_to_the_best_instance() -> None:
    processor, sizes = UniPerceiverV2ImageProcessor(), [(50, 33), (61, 70)]
    outputs = make_outputs()
    instances = processor.post_process_instances(outputs, sizes, threshold=0.3)
    maps = processor.post_process_instance_segmentation(
        outputs, 0.3, overlap_mask_area_threshold=0.0, target_sizes=sizes
    )
    for image, result in zip(instances, maps):
        expected = torch.full(image["masks"].shape[1:], -1)
        for i in reversed(range(len(image["scores"]))):
            expected[image["masks"][i]] = i
        ids = expected.unique()[1:]
        assert [info["id"] for info in result["segments_info"]] == list(range(1, len(ids) + 1))
        for info, i in zip(result["segments_info"], ids.tolist()):
            assert torch.equal(result["segmentation"] == info["id"], expected == i)
            assert info["label_id"] == image["labels"][i]
            assert info["score"] == pytest.approx(image["scores"][i].item())


def test_overlap_threshold_drops_hidden_instances() -> None:
    result = UniPerceiverV2ImageProcessor().post_process_instance_segmentation(
        one_object(), threshold=0.0, overlap_mask_area_threshold=0.8
    )[0]
    score = pytest.approx(0.86, abs=0.05)
    assert result["segments_info"] == [{"id": 1, "label_id": 1, "was_fused": False, "score": score}]


def test_formats_of_instance_masks() -> None:
    processor, outputs = UniPerceiverV2ImageProcessor(), make_outputs()
    instances = processor.post_process_instances(outputs, None, threshold=0.5)
    maps = processor.post_process_instance_segmentation(outputs, return_binary_maps=True)
    runs = processor.post_process_instance_segmentation(outputs, return_coco_annotation=True)
    for image, binary, run in zip(instances, maps, runs):
        assert torch.equal(binary["segmentation"], image["masks"])
        assert json.loads(json.dumps(run["segmentation"])) == run["segmentation"]
        decoded = np.stack([coco.decode(item) for item in run["segmentation"]])
        assert np.array_equal(decoded.astype(bool), image["masks"].numpy())
        assert run["segments_info"] == binary["segments_info"]


def test_post_processing_errors() -> None:
    processor, outputs = UniPerceiverV2ImageProcessor(), make_outputs()
    with pytest.raises(ValueError, match=r"one \(height, width\) for each image, got 1 for a .* 2"):
        processor.post_process_object_detection(outputs, 0.5, [(5, 5)])
    with pytest.raises(ValueError, match=r"must not both be True"):
        processor.post_process_instance_segmentation(outputs, return_coco_annotation=True, return_binary_maps=True)
    with pytest.raises(ValueError, match=r"`outputs` must hold `pred_masks`, got none"):
        processor.post_process_instances(ObjectDetectionOutput(logits=outputs.logits), None)


def test_pipelines_find_only_instance_segmentation() -> None:
    names = dir(UniPerceiverV2ImageProcessor)
    assert "post_process_instance_segmentation" in names
    assert not {"post_process_panoptic_segmentation", "post_process_semantic_segmentation"} & {*names}
