"""The task classes: views of one model, one weights file, each with its own labels."""

import copy
import gc
import hashlib
import math
import pickle
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import GenerationConfig

from tiny_models import CLASS_NAMES, TEXTS, random_images
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
)
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model

TASK_CLASSES = [
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ForImageClassification,
    UniPerceiverV2ForObjectDetection,
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForZeroShotImageClassification,
    UniPerceiverV2ForZeroShotObjectDetection,
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForConditionalGeneration,
    UniPerceiverV2ForMaskedLM,
]
ALL_CLASSES = [UniPerceiverV2Model, *TASK_CLASSES]


def short_name(model_class: type) -> str:
    return model_class.__name__.removeprefix("UniPerceiverV2")


def weights(folder) -> str:
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folders(session_model, tmp_path_factory):
    """A folder saved by every class."""
    root = tmp_path_factory.mktemp("saved")
    for model_class in ALL_CLASSES:
        base = session_model.model
        view = base if model_class is UniPerceiverV2Model else model_class.from_model(base)
        view.save_pretrained(root / short_name(model_class))
    return root


def test_every_class_writes_the_same_weights(folders, session_model):
    assert len({weights(folders / short_name(model_class)) for model_class in ALL_CLASSES}) == 1
    saved = load_file(folders / "ForMultiTask" / "model.safetensors")
    assert set(saved) == set(session_model.state_dict())


@pytest.mark.parametrize("model_class", ALL_CLASSES, ids=short_name)
def test_every_class_loads_what_every_class_saved(folders, session_model, model_class, tmp_path):
    # the weights are one file, so a ring covers what differs: every config, and loading into every class
    for other in {UniPerceiverV2Model, ALL_CLASSES[ALL_CLASSES.index(model_class) - 1]}:
        model, report = model_class.from_pretrained(folders / short_name(other), output_loading_info=True)
        problems = {name: found for name, found in report.items() if found}
        assert not problems, f"saved by {other.__name__}"
        assert not model.training
        base = getattr(model, "model", model)
        for name, values in session_model.model.state_dict().items():
            assert torch.equal(values, base.state_dict()[name]), name
    model.save_pretrained(tmp_path)
    assert weights(tmp_path) == weights(folders / "Model")
    pixels = random_images(1)
    with torch.no_grad():  # buffers that are not saved are there as well
        expected = session_model.model.get_image_features(pixels).pooler_output
        torch.testing.assert_close(base.get_image_features(pixels).pooler_output, expected)


@pytest.fixture(scope="module")
def loaded(folders) -> UniPerceiverV2ForMultiTask:
    return UniPerceiverV2ForMultiTask.from_pretrained(folders / "Model")


@pytest.mark.parametrize("model_class", TASK_CLASSES, ids=short_name)
@pytest.mark.parametrize("source", ["fresh", "loaded", "cast"])
def test_views_share_parameters_and_leave_them_unchanged(model, loaded, model_class, source):
    model = loaded if source == "loaded" else model.to(torch.bfloat16 if source == "cast" else torch.float32)
    base = model.model.train()
    before = {name: values.clone() for name, values in base.state_dict().items()}
    for view in (model_class.from_model(base), model_class.from_model(model)):
        assert view.model is base
        assert view.training
        assert base.training
        assert not set(map(id, view.parameters())) ^ set(map(id, base.parameters()))
    for name, values in base.state_dict().items():
        assert torch.equal(values, before[name]), name
        assert values.dtype == before[name].dtype
    assert not model_class.from_model(model.eval()).training


@pytest.mark.parametrize("model_class", ALL_CLASSES, ids=short_name)
def test_every_class_reads_shares_and_writes_the_generation_config(folders, model_class, tmp_path):
    folder = shutil.copytree(folders / short_name(model_class), tmp_path / "given")
    GenerationConfig(max_new_tokens=7, eos_token_id=-1, pad_token_id=1).save_pretrained(folder)
    loaded = model_class.from_pretrained(folder)
    captioner = UniPerceiverV2ForConditionalGeneration.from_model(loaded)
    assert captioner.generate(pixel_values=random_images(1)).shape == (1, 8)  # <s> and 7 words
    captioner.generation_config.max_new_tokens = 9
    loaded.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").max_new_tokens == 9
    (folder / "generation_config.json").unlink()
    assert model_class.from_pretrained(folder).generation_config.bos_token_id == 0


# --- labels ------------------------------------------------------------------------------------


def test_classes_present_their_own_labels(model, folders):
    names = [*CLASS_NAMES[::-1], "tree"]
    expected = {
        UniPerceiverV2ForImageClassification: CLASS_NAMES,
        UniPerceiverV2ForObjectDetection: names,
        UniPerceiverV2ForInstanceSegmentation: names,
    }
    for model_class, own in expected.items():
        from_folder = model_class.from_pretrained(folders / "ForImageClassification")
        for view in (model_class.from_model(model), from_folder):
            assert view.config.id2label == dict(enumerate(own))
            assert view.config.label2id == {name: index for index, name in enumerate(own)}
            assert view.config.num_labels == len(own)
            assert set(view.config.label_sets) == {"classification", "detection"}
    # two views at a time do not disturb each other
    first, second = (view_class.from_model(model) for view_class in list(expected)[:2])
    assert first.config.num_labels == 4
    assert second.config.num_labels == 5


def test_labels_set_through_a_view_serve_all_views(model, roberta_tokenizer, tmp_path):
    detector = UniPerceiverV2ForObjectDetection.from_model(model)
    segmenter = UniPerceiverV2ForInstanceSegmentation.from_model(model)
    detector.set_labels(["hat", "star"], roberta_tokenizer)
    pixels = random_images(1)
    assert detector.config.id2label == {0: "hat", 1: "star"}
    assert detector(pixels).logits.shape[-1] == segmenter(pixels).logits.shape[-1] == 2
    segmenter.save_pretrained(tmp_path)
    loaded = UniPerceiverV2ForInstanceSegmentation.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "hat", 1: "star"}
    assert model.model.config.label_sets["classification"]["names"] == CLASS_NAMES


def test_classes_of_one_name_are_scored_alike_and_stay_two(model, roberta_tokenizer, tmp_path):
    classifier = UniPerceiverV2ForImageClassification.from_model(model)
    classifier.set_labels(["crane", "hat", "crane"], roberta_tokenizer)
    classifier.save_pretrained(tmp_path)
    loaded = UniPerceiverV2ForImageClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.id2label == {0: "crane", 1: "hat", 2: "crane"}
    with torch.no_grad():
        output = loaded(random_images(2), labels=torch.tensor([0, 2]))
    assert torch.equal(output.logits[:, 0], output.logits[:, 2])
    assert not torch.equal(output.logits[:, 0], output.logits[:, 1])
    assert output.loss > math.log(2)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda view: pickle.loads(pickle.dumps(view))], ids=["deepcopy", "pickle"]
)
def test_every_view_names_the_labels_that_another_view_set(model, roberta_tokenizer, copied, tmp_path):
    detector = UniPerceiverV2ForObjectDetection.from_model(model)
    segmenter = UniPerceiverV2ForInstanceSegmentation.from_model(detector)
    classifier = UniPerceiverV2ForImageClassification.from_model(detector)
    before = copied(segmenter)
    detector.set_labels(["zero", "star"], roberta_tokenizer)
    for view in (segmenter, copied(segmenter)):
        assert view.config.id2label == {0: "zero", 1: "star"}
        assert view.config.label2id == {"zero": 0, "star": 1}
        assert view.config.num_labels == 2
    detector.set_labels(["hat"], roberta_tokenizer)
    segmenter.save_pretrained(tmp_path)
    assert UniPerceiverV2Config.from_pretrained(tmp_path).id2label == {0: "hat"}
    assert classifier.config.id2label == dict(enumerate(CLASS_NAMES))
    assert before.config.num_labels == 5  # a copy stands alone
    before.set_labels(["tree", "hat"], roberta_tokenizer)
    assert before.config.id2label == {0: "tree", 1: "hat"}
    reference = weakref.ref(segmenter)
    del segmenter, view
    gc.collect()
    assert reference() is None  # no view keeps another alive


NUMBERS = {name: index for index, name in enumerate(CLASS_NAMES)}


@pytest.mark.parametrize(
    "given",
    [
        {"num_labels": 2, "id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}},
        {"num_labels": 2},
        {"id2label": dict(enumerate(CLASS_NAMES[::-1]))},
        {"label2id": NUMBERS, "num_labels": 5},
    ],
    ids=["recipe", "number", "order", "two sets"],
)
def test_labels_without_tokens_are_refused_when_loading(folders, given):
    with pytest.raises(ValueError, match=r"Labels must be those of a label set.*call `model.set_labels\(names, "):
        UniPerceiverV2ForImageClassification.from_pretrained(folders / "Model", **given)


def test_labels_of_a_label_set_may_be_given_when_loading(folders):
    given = {"num_labels": 4, "id2label": {str(i): name for name, i in NUMBERS.items()}, "label2id": NUMBERS}
    for labels in ({}, given, {"num_labels": 5}):
        classifier = UniPerceiverV2ForImageClassification.from_pretrained(folders / "ForObjectDetection", **labels)
        assert classifier.config.label2id == NUMBERS


def test_a_class_without_labels_needs_the_name_of_the_set(model, roberta_tokenizer):
    with pytest.raises(ValueError, match="`label_set` must be given, since UniPerceiverV2ForMaskedLM presents none"):
        UniPerceiverV2ForMaskedLM.from_model(model).set_labels(["a"], roberta_tokenizer)


def test_synonyms_and_templates_are_averaged(model, roberta_tokenizer):
    classifier = UniPerceiverV2ForImageClassification.from_model(model)
    labels, templates = {"hat": ["hat", "yellow hat"], "star": ["star"]}, ["{}", "a small {}"]
    classifier.set_labels(labels, roberta_tokenizer, templates=templates)

    def encode(text):
        ids = torch.tensor([roberta_tokenizer(text)["input_ids"]])
        return model.model.encode_candidates(ids, torch.ones_like(ids))[0]

    texts = [["hat", "a small hat", "yellow hat", "a small yellow hat"], ["star", "a small star"]]
    with torch.no_grad():
        expected = torch.stack(
            [F.normalize(torch.stack([encode(text) for text in row]).mean(0), dim=0) for row in texts]
        )
        pixels = random_images(2)
        logits = classifier(pixels).logits
        torch.testing.assert_close(model.model.label_candidates("classification"), expected, atol=1e-5, rtol=1e-5)
        images = model.model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(logits, images @ expected.T / 0.07, atol=1e-4, rtol=1e-4)


# --- what each class answers -------------------------------------------------------------------


def test_segmentation_is_detection_with_masks(model):
    pixels = random_images(2, 64, 96)
    with torch.no_grad():
        found = UniPerceiverV2ForObjectDetection.from_model(model)(pixels)
        segmented = UniPerceiverV2ForInstanceSegmentation.from_model(model)(pixels)
        encoding = model.encode_image(pixels, keep_mask_features=True)
        again = UniPerceiverV2ForInstanceSegmentation.from_model(model)(image_encoding=encoding)
    torch.testing.assert_close(segmented.logits, found.logits)
    torch.testing.assert_close(segmented.pred_boxes, found.pred_boxes)
    assert found.pred_masks is None
    assert segmented.pred_masks.shape == (2, 6, 16, 24)
    torch.testing.assert_close(again.pred_masks, segmented.pred_masks)
    pooled = F.adaptive_avg_pool2d(segmented.pred_masks, 8)
    torch.testing.assert_close(pooled, segmented.image_encoding.pooled_masks, atol=1e-5, rtol=1e-5)


def test_masks_of_an_encoding_that_kept_none_are_an_error(model):
    encoding = model.encode_image(random_images(1))
    with pytest.raises(ValueError, match=r"Full masks need an encoding made with .*keep_mask_features=True"):
        UniPerceiverV2ForInstanceSegmentation.from_model(model)(image_encoding=encoding)


def test_segmentation_with_labels_gives_a_loss_and_masks(model, batches):
    batch = batches["detection"]
    output = UniPerceiverV2ForInstanceSegmentation.from_model(model)(**batch)
    assert output.loss.isfinite()
    assert output.pred_masks.shape == (2, 6, 16, 16)


@pytest.mark.parametrize(
    "model_class",
    [
        UniPerceiverV2ForImageClassification,
        UniPerceiverV2ForObjectDetection,
        UniPerceiverV2ForInstanceSegmentation,
        UniPerceiverV2ForZeroShotImageClassification,
        UniPerceiverV2ForZeroShotObjectDetection,
        UniPerceiverV2ForImageTextRetrieval,
        UniPerceiverV2ForConditionalGeneration,
    ],
    ids=short_name,
)
def test_pixels_or_an_encoding_and_not_both(model, model_class):
    view, pixels = model_class.from_model(model), random_images(1)
    ids = torch.tensor([[0, 9, 2]])
    with pytest.raises(ValueError, match="either `pixel_values` or `image_encoding`, got neither"):
        view(input_ids=ids)
    encoding = view.encode_image(pixels, keep_mask_features=True)
    with pytest.raises(ValueError, match="either `pixel_values` or `image_encoding`, got both"):
        view(input_ids=ids, pixel_values=pixels, image_encoding=encoding)
    with torch.no_grad():
        expected = view(input_ids=ids, pixel_values=pixels).to_tuple()
        output = view(input_ids=ids, image_encoding=encoding).to_tuple()
    compared = 0
    for first, second in zip(expected, output, strict=True):
        if isinstance(first, torch.Tensor):
            torch.testing.assert_close(second, first)
            compared += 1
    assert compared


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 1, 3, 64, 64)], ids=str)
def test_pixels_that_are_no_batch_of_images_are_refused(model, batches, shape):
    pixels, views = torch.zeros(shape), [UniPerceiverV2ForObjectDetection, UniPerceiverV2ForConditionalGeneration]
    detector, captioner = (view.from_model(model) for view in views)
    for use in (
        lambda: detector.encode_image(pixels),
        lambda: detector(pixels),
        lambda: detector.train()(pixels, labels=batches["detection"]["labels"]),
        lambda: captioner.generate(pixel_values=pixels),
    ):
        with pytest.raises(ValueError, match=r"`pixel_values` must have the shape \(batch, 3, height, width\), got "):
            use()


def test_zero_shot_classification_equals_classification_of_those_names(model, roberta_tokenizer):
    pixels = random_images(2)
    words = roberta_tokenizer(CLASS_NAMES, padding=True, return_tensors="pt")
    zero_shot = UniPerceiverV2ForZeroShotImageClassification.from_model(model)
    with torch.no_grad():
        expected = UniPerceiverV2ForImageClassification.from_model(model)(pixels).logits
        output = zero_shot(pixels, input_ids=words["input_ids"], attention_mask=words["attention_mask"])
    torch.testing.assert_close(output.logits_per_image, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits_per_text, expected.T, atol=1e-5, rtol=1e-5)


def test_zero_shot_detection_equals_detection_of_those_names(model, roberta_tokenizer):
    pixels = random_images(2)
    words = roberta_tokenizer([*CLASS_NAMES[::-1], "tree"], padding=True, return_tensors="pt")
    ids, mask = words["input_ids"], words["attention_mask"]
    zero_shot = UniPerceiverV2ForZeroShotObjectDetection.from_model(model)
    with torch.no_grad():
        expected = UniPerceiverV2ForObjectDetection.from_model(model)(pixels).logits
        shared = zero_shot(pixels, input_ids=ids, attention_mask=mask)
        own = zero_shot(
            pixels, input_ids=torch.stack([ids[:2], ids[3:]]), attention_mask=torch.stack([mask[:2], mask[3:]])
        )
        one = zero_shot(pixels[:1], input_ids=ids[:3, None], attention_mask=mask[:3, None])
    torch.testing.assert_close(shared.logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.logits[0], expected[0, :, :2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(own.logits[1], expected[1, :, 3:], atol=1e-5, rtol=1e-5)
    # one image serves several texts
    torch.testing.assert_close(one.logits[:, :, 0].T, expected[0, :, :3], atol=1e-5, rtol=1e-5)
    assert one.pred_boxes.shape == (3, 6, 4)
    with pytest.raises(ValueError, match="one image for all texts or one for each, got 2 images and 3 texts"):
        zero_shot(pixels, input_ids=ids[:3, None], attention_mask=mask[:3, None])


def test_retrieval_compares_the_features(model, roberta_tokenizer):
    pixels = random_images(2)
    words = roberta_tokenizer(TEXTS, padding=True, return_tensors="pt")
    ids, mask = words["input_ids"], words["attention_mask"]
    view = UniPerceiverV2ForImageTextRetrieval.from_model(model)
    with torch.no_grad():
        images = view.get_image_features(pixel_values=pixels).pooler_output
        texts = view.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        output = view(pixels, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(output.logits_per_image, images @ texts.T / 0.07, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.image_embeds, images)
    torch.testing.assert_close(output.text_embeds, texts)
    assert output.loss is None


def test_masked_lm_scores_every_token_and_its_loss_is_that_of_the_logits(model, batches):
    batch = batches["language_modeling"]
    view = UniPerceiverV2ForMaskedLM.from_model(model)
    with torch.no_grad():
        output = view(**batch)
    assert output.logits.shape == (*batch["input_ids"].shape, view.config.vocab_size)
    expected = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(output.loss, expected, atol=1e-4, rtol=1e-4)


def test_masked_lm_in_training_returns_the_loss_alone(model, batches):
    view = UniPerceiverV2ForMaskedLM.from_model(model).train()
    output = view(**batches["language_modeling"])
    assert output.loss.requires_grad
    assert output.logits is None


def test_padding_and_batch_change_no_masked_word(model, roberta_tokenizer):
    view = UniPerceiverV2ForMaskedLM.from_model(model)
    words = roberta_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        together = view(words["input_ids"], words["attention_mask"]).logits
        for index, mask in enumerate(words["attention_mask"].bool()):
            alone = view(words["input_ids"][index : index + 1, mask]).logits[0]
            torch.testing.assert_close(together[index, mask], alone, atol=1e-4, rtol=1e-4)
