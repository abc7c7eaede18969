"""The exported graphs answer as the model does, for any batch; the same code compiles as one graph."""

import json

import numpy as np
import pytest
import torch

from tiny_models import IMAGE_SIZE, TEXTS, random_images
from transformers_upv2 import export
from transformers_upv2.export import DESCRIPTION_NAME, GRAPHS, IMAGE_OUTPUTS, export_graph, export_onnx
from transformers_upv2.model.boxes import cxcywh_to_xyxy, generalized_box_iou
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMaskedLM, UniPerceiverV2ForObjectDetection

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def exported(session_model, tmp_path_factory):
    """All graphs in onnxruntime, and their description."""
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("onnx")
    files = export_onnx(session_model, folder, IMAGE_SIZE, IMAGE_SIZE)
    sessions = {file.stem: onnxruntime.InferenceSession(file) for file in files}

    def run(name, *inputs):
        feed = {name: np.asarray(value) for name, value in zip(GRAPHS[name].inputs, inputs, strict=True)}
        return dict(zip(GRAPHS[name].outputs, sessions[name].run(None, feed), strict=True))

    return run, json.loads((folder / DESCRIPTION_NAME).read_text())


def encode_labels(run, tokenizer, labels):
    words = tokenizer(labels, padding=True, return_tensors="np")
    return run("candidate_encoder", words["input_ids"], words["attention_mask"])["candidates"]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_detection_by_the_graphs_alone(exported, session_model, roberta_tokenizer, batch):
    run, description = exported
    detector = UniPerceiverV2ForObjectDetection.from_model(session_model)
    pixels = random_images(batch, seed=batch)
    with torch.no_grad():
        expected = detector(pixels)
    seen = run("image_encoder", pixels)
    states = run("image_decoder", seen["tokens"], seen["token_mask"])["states"]
    names = description["label_sets"]["detection"]["names"]
    candidates = encode_labels(run, roberta_tokenizer, names)
    regions = states[:, -description["num_proposals"] :]
    logits = description["logit_scales"]["detection"] * regions @ candidates.T + description["region_bias"]
    found = torch.sigmoid(torch.from_numpy(logits))
    boxes = torch.from_numpy(seen["boxes"])
    for image in range(batch):
        # proposals are matched by their boxes: equal scores may stand in another order
        overlap = generalized_box_iou(
            cxcywh_to_xyxy(expected.pred_boxes[image])[:, None], cxcywh_to_xyxy(boxes[image])[None]
        )
        match = overlap.argmax(dim=1)
        assert match.unique().numel() == len(match)
        torch.testing.assert_close(boxes[image][match], expected.pred_boxes[image], atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found[image][match], expected.logits[image].sigmoid(), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
def test_every_output_of_the_image_encoder(exported, session_model, batch):
    run, _ = exported
    pixels = random_images(batch, seed=batch)
    with torch.no_grad():
        expected = session_model.encode_image(pixels, keep_mask_features=True)
    seen = run("image_encoder", pixels)
    for name in IMAGE_OUTPUTS:
        np.testing.assert_allclose(seen[name], getattr(expected, name).numpy(), atol=TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_captions_word_by_word(exported, session_model):
    run, description = exported
    writer = UniPerceiverV2ForConditionalGeneration.from_model(session_model)
    pixels = random_images(2)
    expected = writer.generate(pixel_values=pixels, max_new_tokens=5)
    base = session_model.model
    seen = run("image_encoder", pixels)
    ids = base.vocabulary_ids().numpy()
    ends = np.full_like(ids, description["eos_token_id"])
    begins = np.full_like(ids, description["bos_token_id"])
    rows = np.stack([begins, ids, ends], axis=1)
    words = run("vocabulary_encoder", rows, np.ones_like(rows))["candidates"]
    np.testing.assert_allclose(words, base.vocabulary_candidates().numpy(), atol=TOLERANCE)
    caption = np.full((2, 1), description["bos_token_id"])
    for _ in range(expected.shape[1] - 1):
        state = run("caption_decoder", seen["tokens"], seen["token_mask"], caption, np.ones_like(caption))["state"]
        caption = np.concatenate([caption, ids[(state @ words.T).argmax(axis=1)][:, None]], axis=1)
    for row, other in zip(caption.tolist(), expected.tolist()):
        end = other.index(description["eos_token_id"]) + 1 if description["eos_token_id"] in other else len(other)
        assert row[:end] == other[:end]


@pytest.mark.slow
def test_masked_words(exported, session_model, roberta_tokenizer):
    run, description = exported
    words = roberta_tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = UniPerceiverV2ForMaskedLM.from_model(session_model)(**words).logits
    states = run("text_decoder", words["input_ids"], words["attention_mask"])["states"][:, 1:]
    base = session_model.model
    scores = description["logit_scales"]["language_modeling"] * states @ base.vocabulary_candidates().numpy().T
    real = words["attention_mask"].bool()
    expected = logits[:, :, base.vocabulary_ids()]
    torch.testing.assert_close(torch.from_numpy(scores)[real], expected[real], atol=TOLERANCE * 20, rtol=0)


@pytest.mark.slow
def test_only_the_graphs_of_some_tasks(session_model, tmp_path):
    pytest.importorskip("onnxruntime")
    files = export_onnx(session_model, tmp_path, IMAGE_SIZE, 2 * IMAGE_SIZE, tasks=["language_modeling"])
    assert [file.stem for file in files] == ["text_decoder", "vocabulary_encoder"]
    description = json.loads((tmp_path / DESCRIPTION_NAME).read_text())
    assert (description["height"], description["width"]) == (IMAGE_SIZE, 2 * IMAGE_SIZE)
    assert description["graphs"] == ["text_decoder", "vocabulary_encoder"]
    assert session_model.config.decoder_config.merged_routes is None  # the model is left alone


@pytest.mark.parametrize("name", ["image_decoder", "candidate_encoder", "caption_decoder"])
def test_traced_programs_take_other_sizes(session_model, roberta_tokenizer, name):
    """`torch.export` alone, with experts that are still routed."""
    program = export_graph(session_model, name, IMAGE_SIZE, IMAGE_SIZE).module()
    with torch.no_grad():
        encoding = session_model.encode_image(random_images(3))
        words = roberta_tokenizer(TEXTS[:3], padding=True, return_tensors="pt")
        values = {"tokens": encoding.tokens, "token_mask": encoding.token_mask, **words}
        arguments = [values[key] for key in GRAPHS[name].inputs]
        found = program(*arguments)
        expected = GRAPHS[name].build(session_model.model)(*arguments)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_torch_compile_makes_one_graph(session_model):
    """`encode_image` and the decoder, without a break."""
    base = session_model.model
    pixels = random_images(2)

    def detect(pixel_values):
        encoding = base.encode_image(pixel_values)
        return encoding.boxes, base.decode_image(encoding, "image")

    with torch.no_grad():
        found = torch.compile(detect, fullgraph=True, backend="eager")(pixels)
        expected = detect(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_errors(session_model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"`name` must be one of \['candidate_encoder'.*, got 'detector'"):
        export_graph(session_model, "detector", IMAGE_SIZE, IMAGE_SIZE)
    with pytest.raises(ValueError, match="got 'detect'"):
        export_onnx(session_model, tmp_path, IMAGE_SIZE, IMAGE_SIZE, tasks=["detect"])
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`export_onnx` needs \['onnx', 'onnxscript'\]. Install .*\[onnx\]"):
        export_onnx(session_model, tmp_path, IMAGE_SIZE, IMAGE_SIZE)
