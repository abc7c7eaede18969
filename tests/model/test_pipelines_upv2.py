"""Pipelines from one folder, and stock pipelines of other models left exactly as they were."""

import copy
import functools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import (
    FillMaskOutputElement,
    ImageClassificationOutputElement,
    ImageSegmentationOutputElement,
    ObjectDetectionOutputElement,
    ZeroShotImageClassificationOutputElement,
    ZeroShotObjectDetectionOutputElement,
)
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoProcessor,
    AutoTokenizer,
    DetrImageProcessor,
    ObjectDetectionPipeline,
    RobertaTokenizer,
    YolosConfig,
    YolosForObjectDetection,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_index import ImageIndex
from transformers_upv2.model.image_processing_upv2 import UniPerceiverV2ImageProcessor
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ForObjectDetection,
)
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.model.registration import OWN_PIPELINES, STOCK_PIPELINES, register

register()

CLASSES = ["red square", "blue circle", "green triangle"]
STOCK_TASKS = [
    "image-classification",
    "object-detection",
    "image-segmentation",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    "image-text-to-text",
    "fill-mask",
    "feature-extraction",
    "image-feature-extraction",
]


def make_tokenizer() -> RobertaTokenizer:
    bpe = ByteLevelBPETokenizer()
    text = ["a red square above a blue circle on the left of a green triangle"] * 9
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(text, vocab_size=320, special_tokens=specials, show_progress=False)
    model = json.loads(bpe._tokenizer.to_str())["model"]
    vocab = {**model["vocab"], "<mask>": len(model["vocab"])}
    return RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = UniPerceiverV2Config.preset("tiny", text_config={"vocab_size": len(tokenizer)})
    model = UniPerceiverV2ForMultiTask(config)
    model.set_labels(CLASSES, tokenizer, "detection")
    model.set_labels([*CLASSES, "nothing"], tokenizer, "classification")
    model.save_pretrained(path)
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": 128}, pad_size={"height": 128, "width": 128})
    UniPerceiverV2Processor(image_processor, tokenizer).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def load(folder: str) -> functools.partial:
    """Each task's pipeline, loaded once."""

    @functools.cache
    def load(task: str) -> object:
        return pipeline(task, model=folder, device="cpu")

    return load


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(60, 90, 3), (100, 50, 3), (128, 128, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def ask(task: str, load: functools.partial, image: Image.Image) -> object:
    """One question of each task."""
    arguments = {
        "object-detection": {"threshold": 0.0},
        "image-segmentation": {"threshold": 0.0},
        "zero-shot-image-classification": {"candidate_labels": CLASSES},
        "zero-shot-object-detection": {"candidate_labels": CLASSES, "threshold": 0.0},
        "image-text-to-text": {"text": "a red", "max_new_tokens": 3},
        "image-captioning": {"max_new_tokens": 3},
    }
    text = {"fill-mask": "a red <mask>", "feature-extraction": "a red square"}
    return load(task)(text.get(task, image), **arguments.get(task, {}))


@pytest.mark.parametrize("task", [*STOCK_TASKS, "image-captioning"])
def test_loads_and_answers_without_a_word_in_the_log(
    task: str, folder: str, images: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    answer = ask(task, lambda task: pipeline(task, model=folder, device="cpu"), images[0])
    assert len(answer) > 0
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize(
    ("task", "element"),
    [
        ("image-classification", ImageClassificationOutputElement),
        ("object-detection", ObjectDetectionOutputElement),
        ("zero-shot-image-classification", ZeroShotImageClassificationOutputElement),
        ("zero-shot-object-detection", ZeroShotObjectDetectionOutputElement),
        ("fill-mask", FillMaskOutputElement),
        ("image-segmentation", ImageSegmentationOutputElement),
    ],
)
def test_official_schemas(task: str, element: type, load: functools.partial, images: list[Image.Image]) -> None:
    answer = ask(task, load, images[0])
    parsed = element.parse_obj_as_list(answer)
    for item, raw in zip(parsed, answer):
        # Both sides hold exactly the same fields.
        assert {name for name, value in item.items() if value is not None} == set(raw)
        assert 0 <= item["score"] <= 1


def test_classification_and_detection_have_their_own_labels(
    load: functools.partial, images: list[Image.Image]
) -> None:
    classified = ask("image-classification", load, images[0])
    assert {item["label"] for item in classified} == {*CLASSES, "nothing"}
    detected = ask("object-detection", load, images[0])
    assert {item["label"] for item in detected} <= set(CLASSES)


@pytest.mark.parametrize("task", ["object-detection", "image-segmentation", "image-classification"])
def test_lists_batches_generators_and_files(
    task: str, load: functools.partial, images: list[Image.Image], tmp_path: Path
) -> None:
    pipe, options = load(task), {} if task == "image-classification" else {"threshold": 0.1}
    paths = []
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
        paths.append(str(tmp_path / f"{i}.png"))
    one_by_one = [pipe(image, **options) for image in images]
    for answers in (
        pipe(images, **options),
        pipe(paths, **options),
        pipe(images, batch_size=2, **options),
        list(pipe((image for image in images), batch_size=3, **options)),
    ):
        assert len(answers) == 3
        for answer, expected in zip(answers, one_by_one):
            assert len(answer) == len(expected)
            for item, other in zip(answer, expected):
                assert item["label"] == other["label"]
                assert item["score"] == pytest.approx(other["score"], abs=1e-4)


def test_detections_are_of_the_original_image(load: functools.partial, folder: str, images: list[Image.Image]) -> None:
    image = images[0]
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForObjectDetection.from_pretrained(folder)
    assert isinstance(processor, UniPerceiverV2Processor)
    assert type(model) is UniPerceiverV2ForObjectDetection
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
    expected = processor.image_processor.post_process_object_detection(outputs, 0.0, [(60, 90)])[0]
    found = load("object-detection")(image, threshold=0.0)
    assert len(found) == len(expected["scores"])
    for item, score, box in zip(found, expected["scores"], expected["boxes"]):
        assert item["score"] == pytest.approx(score.item(), abs=1e-5)
        assert list(item["box"].values()) == pytest.approx(box.tolist(), abs=1.01)


def test_segments_are_of_the_original_image(load: functools.partial, images: list[Image.Image]) -> None:
    segments = ask("image-segmentation", load, images[1])
    assert {segment["mask"].size for segment in segments} == {images[1].size}
    together = sum((np.asarray(segment["mask"]) > 0).astype(int) for segment in segments)
    assert together.max() == 1  # no pixel belongs to two


def test_an_url(load: functools.partial, images: list[Image.Image], address: str, tmp_path: Path) -> None:
    images[0].save(tmp_path / "image.png")
    url = f"{address}/image.png"
    assert load("object-detection")(url, threshold=0.0) == ask("object-detection", load, images[0])
    assert load("image-captioning")(url, max_new_tokens=3) == ask("image-captioning", load, images[0])


@pytest.mark.parametrize(
    "task", ["object-detection", "image-text-to-text", "zero-shot-object-detection", "image-captioning"]
)
def test_deep_and_transparent_files_are_read_as_by_the_processor(
    task: str, load: functools.partial, images: list[Image.Image], tmp_path: Path
) -> None:
    gray = images[0].convert("L")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    clear = images[0].convert("RGBA")
    clear.putalpha(gray.point(lambda value: 255 * (value > 128)))
    clear.save(tmp_path / "clear.png")
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    seen = []
    hook = load(task).model.model.image_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(next(iter([*args, *kwargs.values()]))), with_kwargs=True
    )
    for name, expected in (("deep.png", gray), ("clear.png", white)):
        ask(task, load, expected)
        for given in (str(tmp_path / name), Image.open(tmp_path / name)):
            ask(task, load, given)
            torch.testing.assert_close(seen.pop(1), seen[0], atol=0.02, rtol=0)  # a step of 8 bits
        seen.clear()
    hook.remove()


# --- zero-shot object detection --------------------------------------------------------------


def test_zero_shot_detection_perceives_once(
    load: functools.partial, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load("zero-shot-object-detection")
    passes = []
    encoder = pipe.model.model.image_encoder
    hook = encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    many = pipe(images[0], candidate_labels=[f"thing {i}" for i in range(30)], threshold=0.0)
    assert len(passes) == 1
    assert len(many) == 30 * 20
    passes.clear()
    pipe(images, candidate_labels=[["a"], ["b", "a"], ["c"]], batch_size=3)
    hook.remove()
    assert len(passes) <= 3  # at most one for each canvas


def test_zero_shot_detection_equals_one_label_at_a_time(load: functools.partial, images: list[Image.Image]) -> None:
    pipe = load("zero-shot-object-detection")
    together = pipe(images[0], candidate_labels=CLASSES, threshold=0.0)
    alone = [item for label in CLASSES for item in pipe(images[0], candidate_labels=[label], threshold=0.0)]
    assert [item["score"] for item in together] == pytest.approx(
        sorted((item["score"] for item in alone), reverse=True), abs=1e-5
    )
    assert [item["label"] for item in together[:5]] == [
        item["label"] for item in sorted(alone, key=lambda item: -item["score"])[:5]
    ]
    assert pipe(images[0], candidate_labels=CLASSES, threshold=0.0, top_k=4) == together[:4]
    assert pipe(images[0], candidate_labels=", ".join(CLASSES), threshold=0.0) == together


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_zero_shot_detection_with_labels_of_each_image(
    load: functools.partial, images: list[Image.Image], batch_size: int
) -> None:
    pipe = load("zero-shot-object-detection")
    labels = [CLASSES, ["a very long name of a thing"], CLASSES[:2]]
    expected = [pipe(image, candidate_labels=names, threshold=0.3) for image, names in zip(images, labels)]
    found = pipe(images, candidate_labels=labels, threshold=0.3, batch_size=batch_size)
    for one, other in zip(found, expected):
        assert [item["label"] for item in one] == [item["label"] for item in other]
        assert [item["score"] for item in one] == pytest.approx([item["score"] for item in other], abs=1e-4)


def test_zero_shot_detection_takes_files_and_generators(
    load: functools.partial, images: list[Image.Image], tmp_path: Path
) -> None:
    pipe = load("zero-shot-object-detection")
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images):
        image.save(path)
    for labels in (CLASSES, {"square": ["red square", "a square"]}):
        expected = [pipe(image, candidate_labels=labels, threshold=0.0) for image in images]
        assert pipe(paths, candidate_labels=labels, threshold=0.0) == expected
        assert pipe(paths[0], candidate_labels=labels, threshold=0.0) == expected[0]
        assert pipe([str(path) for path in paths], candidate_labels=labels, threshold=0.0) == expected
        assert list(pipe((image for image in images), candidate_labels=labels, threshold=0.0)) == expected
    with pytest.raises(ValueError, match=r"the labels of each image, got 2 for 3 images"):
        pipe(paths, candidate_labels=[CLASSES, CLASSES])
    with pytest.raises(ValueError, match=r"all of them texts, got \[1\]"):
        pipe(paths[0], candidate_labels=[1])


@pytest.mark.parametrize("kind", [np.asarray, lambda image: torch.zeros(3, 8, 8), lambda image: b"png"])
@pytest.mark.parametrize("task", STOCK_PIPELINES)
def test_what_is_no_image_is_named_by_its_type(
    task: str, kind: Any, load: functools.partial, images: list[Image.Image]
) -> None:
    asked = {"zero-shot-object-detection": {"candidate_labels": CLASSES}, "image-text-to-text": {"text": "a"}}
    with pytest.raises(ValueError, match=r"must be a path.*got (ndarray|Tensor|bytes)\. Make"):
        load(task)(kind(images[0]), **asked.get(task, {}))


def test_zero_shot_detection_needs_labels(load: functools.partial, images: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match=r"`candidate_labels` must hold .* got \[\]"):
        load("zero-shot-object-detection")(images[0])
    with pytest.raises(ValueError, match=r"`candidate_labels` must hold .* got \['a', ''\]"):
        load("zero-shot-object-detection")(images[0], candidate_labels="a,")


def test_zero_shot_detection_encodes_each_label_once(
    load: functools.partial, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = load("zero-shot-object-detection")
    pipe.model.model.candidate_cache.clear()
    read = []
    hook = pipe.model.model.text_encoder.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    tokenized, tokenize = [], RobertaTokenizer.__call__
    monkeypatch.setattr(
        RobertaTokenizer, "__call__", lambda self, texts: tokenized.extend(texts) or tokenize(self, texts)
    )
    names = [f"unheard of {i}" for i in range(20)]
    found = pipe(images[0], candidate_labels=names, threshold=0.0)
    assert pipe(images[0], candidate_labels=names[::-1], threshold=0.0) != []
    pipe([images[1], images[2]], candidate_labels=[names[:3], [*names[:2], "new"]], batch_size=2)
    assert read == [20, 1]
    assert len(tokenized) == 21
    with torch.no_grad():
        pipe.model.model.spe_token += 0.0  # written in place: other weights, as far as anyone knows
    assert pipe(images[0], candidate_labels=names, threshold=0.0) == found
    hook.remove()
    assert read == [20, 1, 20]
    assert len(tokenized) == 21


@pytest.mark.parametrize("number", [3, 1500])
def test_zero_shot_detection_has_no_limit_of_labels(
    load: functools.partial, images: list[Image.Image], number: int
) -> None:
    pipe = load("zero-shot-object-detection")
    names = [f"a red square of number {i}" for i in range(number)]
    found = pipe(images[0], candidate_labels=names, threshold=0.0, top_k=20 * number)
    alone = pipe(images[0], candidate_labels=names[-1:], threshold=0.0)
    assert len(found) == 20 * number
    # a score is a probability and does not depend on the other labels
    last = [item["score"] for item in found if item["label"] == names[-1]]
    assert last == pytest.approx([item["score"] for item in alone], abs=1e-5)
    assert all(0 <= score <= 1 for score in last)


def test_zero_shot_detection_averages_synonyms_in_templates(
    load: functools.partial, images: list[Image.Image]
) -> None:
    pipe = load("zero-shot-object-detection")
    labels, templates = {"red square": ["red square", "square"], "blue circle": ["blue circle"]}, ["{}", "a {} above"]
    found = pipe(images[0], candidate_labels=labels, templates=templates, threshold=0.0)
    inputs = pipe.image_processor(images=images[0], return_tensors="pt")
    with torch.no_grad():
        candidates = pipe.model.encode_labels(labels, pipe.tokenizer, templates)
        scores = pipe.model(**inputs, candidates=candidates).logits.sigmoid()
    assert {item["label"] for item in found} == set(labels)
    expected = scores.flatten().sort(descending=True).values.tolist()
    assert [item["score"] for item in found] == pytest.approx(expected, abs=1e-5)
    assert pipe(images[:2], candidate_labels=labels, templates=templates, threshold=0.0)[0] == found
    bare = pipe(images[0], candidate_labels=list(labels), threshold=0.0)
    assert [item["score"] for item in bare] != pytest.approx(expected, abs=1e-5)


def test_zero_shot_image_classification_encodes_each_label_once(
    load: functools.partial, images: list[Image.Image]
) -> None:
    pipe = load("zero-shot-image-classification")
    pipe.model.model.candidate_cache.clear()
    read = []
    hook = pipe.model.model.text_encoder.register_forward_pre_hook(lambda _, inputs: read.append(len(inputs[0])))
    for image in images:
        pipe(image, candidate_labels=CLASSES)
    hook.remove()
    assert read == [3]


# --- captions and prompts --------------------------------------------------------------------


def test_image_text_to_text_continues_the_prompt(load: functools.partial, images: list[Image.Image]) -> None:
    pipe = load("image-text-to-text")
    answer = pipe(images=images[0], text="a red", max_new_tokens=3)[0]
    assert answer["input_text"] == "a red"
    assert answer["generated_text"].startswith("a red")
    new = pipe(images=images[0], text="a red", max_new_tokens=3, return_full_text=False)[0]
    assert answer["generated_text"] == "a red" + new["generated_text"]


def test_batched_prompts_are_padded_on_the_left(load: functools.partial, images: list[Image.Image]) -> None:
    pipe = load("image-text-to-text")
    prompts = ["", "a red square above a", "a"]
    asked = [{"images": image, "text": text} for image, text in zip(images, prompts)]
    expected = [pipe(images=item["images"], text=item["text"], max_new_tokens=4) for item in asked]
    found = list(pipe((dict(item) for item in asked), batch_size=3, max_new_tokens=4))
    assert [item[0]["generated_text"] for item in found] == [item[0]["generated_text"] for item in expected]


def test_captioning(load: functools.partial, images: list[Image.Image]) -> None:
    pipe = load("image-captioning")
    plain = [pipe(image, max_new_tokens=4) for image in images]
    assert all(list(item[0]) == ["generated_text"] for item in plain)
    assert pipe(images, max_new_tokens=4, batch_size=3) == plain
    assert list(pipe((image for image in images), max_new_tokens=4)) == plain
    prompted = pipe(images[0], prompt="a blue", max_new_tokens=3)[0]["generated_text"]
    assert prompted.startswith("a blue")
    with pytest.raises(ValueError, match=r"`prompt` must be one text .* got \['a', 'b'\]"):
        pipe(images[:2], prompt=["a", "b"])
    several = pipe(
        images[:2],
        max_new_tokens=4,
        batch_size=2,
        generate_kwargs={"num_beams": 3, "num_return_sequences": 2},
    )
    assert [len(item) for item in several] == [2, 2]


# --- retrieval -------------------------------------------------------------------------------


@pytest.fixture
def photos(images: list[Image.Image], tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(tmp_path / "photos" / ("deep" if i else "") / f"{i}.PNG")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    return tmp_path / "photos"


def test_retrieval(load: functools.partial, images: list[Image.Image], photos: Path) -> None:
    pipe = load("image-text-retrieval")
    index = pipe.build_index(photos, batch_size=2, progress=False)
    names = [str(photos / "0.PNG"), str(photos / "deep/1.PNG"), str(photos / "deep/2.PNG")]
    assert index.names == names
    for image, name in zip(images, names):
        best = pipe(image, top_k=2)
        assert best[0]["image"] == name
        assert best[0]["score"] == pytest.approx(1, abs=1e-4)
        assert len(best) == 2
    assert pipe(Path(names[1]))[0]["image"] == names[1]
    tokens = pipe.tokenizer("a red square", return_tensors="pt")
    with torch.no_grad():
        text = pipe.model.get_text_features(**tokens).pooler_output[0]
    found = pipe("a red square")
    for item in found:
        cosine = index.embeddings[names.index(item["image"])] @ text
        assert item["score"] == pytest.approx(cosine.item(), abs=1e-5)
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)
    queries = ["a red square", "a circle on the left of a square"]
    batched = pipe(queries, batch_size=2)
    for answers, query in zip(batched, queries):
        for item, other in zip(answers, pipe(query)):
            assert item["image"] == other["image"]
            assert item["score"] == pytest.approx(other["score"], abs=1e-4)


def test_index_is_saved_and_loaded(load: functools.partial, photos: Path) -> None:
    pipe = load("image-text-retrieval")
    files = sorted(photos.rglob("*.PNG"))
    pipe.build_index(files, progress=False)
    expected = pipe("a red square")
    pipe.index.save(photos / "index.safetensors")
    pipe.index = ImageIndex.load(photos / "index.safetensors")
    assert pipe("a red square") == expected
    assert len(pipe.index) == 3


def test_only_new_and_changed_images_are_embedded(
    folder: str, images: list[Image.Image], photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = pipeline("image-text-retrieval", model=folder, device="cpu")
    pipe.build_index(photos, progress=False).save(photos / "index.safetensors")
    pipe = pipeline("image-text-retrieval", model=folder, device="cpu")
    passes = []
    pipe.model.model.image_encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    pipe.index = ImageIndex.load(photos / "index.safetensors")
    pipe.build_index(photos, progress=False)
    assert passes == []
    (photos / "0.PNG").unlink()
    images[0].resize((64, 64)).save(photos / "deep" / "1.PNG")
    images[0].save(photos / "new.png")
    caplog.clear()
    pipe.index = ImageIndex.load(photos / "index.safetensors")
    assert f"2 of 3 images of the index changed or are missing, the first is '{photos / '0.PNG'}'" in caplog.text
    index = pipe.build_index(photos, progress=False)
    assert len(passes) == 2
    assert index.names == [str(photos / name) for name in ("deep/1.PNG", "deep/2.PNG", "new.png")]
    assert index.outdated() == {}
    assert pipe(images[0])[0]["image"] == str(photos / "new.png")


def test_files_that_cannot_be_read_are_left_out(
    load: functools.partial, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load("image-text-retrieval")
    expected = pipe.build_index(photos, progress=False)
    assert pipe.unreadable == {}
    cut = photos / "deep" / "0_cut.png"
    cut.write_bytes((photos / "0.PNG").read_bytes()[:-3000])
    for name in ("paper.pdf", "clip.mpg", "._0.PNG"):
        (photos / name).write_bytes(b"no image")
    pipe.index = None
    for batch_size in (1, 2):
        index = pipe.build_index(photos, batch_size=batch_size, progress=False)
        assert index.names == expected.names
        torch.testing.assert_close(index.embeddings, expected.embeddings)
        assert list(pipe.unreadable) == [str(cut)]
        pipe.index = None
    assert f"{cut}' cannot be decoded" in caplog.text
    assert "1 of 4 files cannot be read and are not in the index" in caplog.text
    with pytest.raises(ValueError, match=r"0_cut\.png' cannot be decoded"):
        pipe.build_index([photos / "0.PNG", cut], progress=False)
    for file in photos.rglob("*.PNG"):
        file.unlink()
    with pytest.raises(ValueError, match=r"one image that can be read, got 1 .*0_cut\.png' cannot be decoded"):
        pipe.build_index(photos, progress=False)


def test_an_index_of_other_weights_is_refused(folder: str, images: list[Image.Image], photos: Path) -> None:
    pipe = pipeline("image-text-retrieval", model=folder, device="cpu")
    pipe.build_index(photos, progress=False).save(photos / "index.safetensors")
    with torch.no_grad():
        pipe.model.model.spe_token += 0.1
    for index in (pipe.index, ImageIndex.load(photos / "index.safetensors")):
        pipe.index = index
        with pytest.raises(ValueError, match="`index` must come from the present weights"):
            pipe("a red square")
    pipe.build_index(photos, progress=False)  # embeds all of them again
    assert pipe(images[1])[0]["score"] == pytest.approx(1, abs=1e-4)
    pipe.index = ImageIndex(["mine"], torch.nn.functional.normalize(torch.ones(1, pipe.index.embeddings.shape[1])))
    assert pipe("a red square")[0]["image"] == "mine"  # whose weights nobody knows


def test_faiss_and_encodings_find_the_same(folder: str, images: list[Image.Image], photos: Path) -> None:
    pytest.importorskip("faiss")
    pipe = pipeline("image-text-retrieval", model=folder, device="cpu")
    pipe.build_index(photos, progress=False)
    for query in ("a red square", images[0]):
        expected, found = pipe(query), pipe(query, backend="faiss")
        assert [item["image"] for item in found] == [item["image"] for item in expected]
        scores = [item["score"] for item in expected]
        assert [item["score"] for item in found] == pytest.approx(scores, abs=1e-5)
    inputs = pipe.processor(images=images[0], return_tensors="pt")
    with torch.no_grad():
        encoding = pipe.model.encode_image(**inputs)
    assert pipe(encoding) == pipe(images[0])


def test_retrieval_errors(folder: str, photos: Path) -> None:
    pipe = pipeline("image-text-retrieval", model=folder, device="cpu")
    with pytest.raises(ValueError, match=r"There must be an index to search in"):
        pipe("a red square")
    with pytest.raises(ValueError, match=r"a folder or a list of files, got '.*nowhere'"):
        pipe.build_index(photos / "nowhere")
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"at least one image file, got none in '.*empty'"):
        pipe.build_index(photos / "empty")
    with pytest.raises(ValueError, match=r"written by `ImageIndex.save`, got '.*model.safetensors'"):
        ImageIndex.load(Path(folder) / "model.safetensors")


# --- other models, and saving ----------------------------------------------------------------


@pytest.fixture
def yolos() -> tuple[YolosForObjectDetection, DetrImageProcessor]:
    config = YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
    )
    return YolosForObjectDetection(config).eval(), DetrImageProcessor(size={"height": 32, "width": 32})


def test_other_models_get_the_stock_pipeline(
    yolos: tuple, images: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    model, image_processor = yolos
    pipe = pipeline("object-detection", model=model, image_processor=image_processor, device="cpu")
    stock = ObjectDetectionPipeline(
        model=model, image_processor=image_processor, task="object-detection", device="cpu"
    )
    assert type(pipe) is ObjectDetectionPipeline
    assert vars(pipe).keys() == vars(stock).keys()
    assert pipe(images[0], threshold=0.0) == stock(images[0], threshold=0.0)
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


def test_registry_differs_only_in_the_class() -> None:
    for task, pipeline_class in STOCK_PIPELINES.items():
        entry, stock = PIPELINE_REGISTRY.supported_tasks[task], pipeline_class.stock_class
        assert issubclass(pipeline_class, stock)
        assert {"impl", "pt", "default", "type"} == set(entry)
        loads = [name for name in dir(stock) if name.startswith("_load_")]
        assert [getattr(stock, name) for name in loads] == [getattr(pipeline_class, name) for name in loads]
    before = dict(PIPELINE_REGISTRY.supported_tasks)
    register()
    assert before == PIPELINE_REGISTRY.supported_tasks
    assert set(OWN_PIPELINES) <= set(before)


@pytest.mark.parametrize("task", [*STOCK_PIPELINES, *OWN_PIPELINES])
def test_a_saved_pipeline_is_a_complete_folder(
    task: str, folder: str, load: functools.partial, tmp_path: Path
) -> None:
    load(task).save_pretrained(tmp_path)
    assert "custom_pipelines" not in json.loads((tmp_path / "config.json").read_text())
    for name in ("model.safetensors", "processor_config.json", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (Path(folder) / name).read_bytes()
    assert pipeline(task, model=str(tmp_path), device="cpu").model.device.type == "cpu"


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
@pytest.mark.parametrize("task", STOCK_PIPELINES)
def test_a_copied_pipeline_is_the_same(task: str, duplicate: Any, load: functools.partial) -> None:
    original = load(task)
    copied = duplicate(original)
    assert type(copied) is type(original)
    assert copied.model is not original.model
    weights = zip(original.model.parameters(), copied.model.parameters())
    assert all(torch.equal(before, after) for before, after in weights)


def test_auto_classes(folder: str) -> None:
    assert type(AutoConfig.from_pretrained(folder)) is UniPerceiverV2Config
    assert type(AutoImageProcessor.from_pretrained(folder)) is UniPerceiverV2ImageProcessor
    assert type(AutoTokenizer.from_pretrained(folder)) is RobertaTokenizer


@pytest.fixture(autouse=True)
def _log_to_pytest() -> Iterator[None]:
    """Let ``caplog`` see what transformers logs."""
    from transformers.utils import logging

    logging.enable_propagation()
    yield
    logging.disable_propagation()
