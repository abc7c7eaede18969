"""Each training task: what its loss is made of, what may not change a prediction, that it can be learned."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from tiny_models import CLASS_NAMES, box_labels, pad_images, random_images, task_batches, tiny_config
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.likelihood_losses import vocabulary_loss
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.task_forward import (
    _candidates_of_step,
    classification,
    detect,
    detection,
    full_masks,
    retrieval,
)
from transformers_upv2.model.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_a_few_steps_lower_the_loss(model, batches, task):
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-4)
    losses = []
    for _ in range(10):
        model.train()
        optimizer.zero_grad()
        torch.manual_seed(0)  # the same noise and points
        loss = model(task, **batches[task], step_seed=0).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[9] < losses[1]  # on the way pairs are matched anew, and a loss may rise


def test_training_returns_the_loss_and_its_terms_alone(model, batches):
    model.train()
    for task, batch in batches.items():
        output = model(task, **batch)
        assert list(output) == ["loss", "loss_terms"]
        assert output.loss.requires_grad
        for name, term in output.loss_terms.items():
            assert name.startswith("loss_")
            assert not term.requires_grad
            assert term.ndim == 0


@pytest.mark.parametrize("task", ["classification", "captioning", "retrieval"])
def test_training_from_an_encoding_has_the_loss_of_training_from_pixels(model, batches, task):
    model.train()
    rest = {name: value for name, value in batches[task].items() if not name.startswith("pixel_")}
    with torch.no_grad():
        encoding = model.encode_image(batches[task]["pixel_values"], batches[task]["pixel_mask"])
    from_pixels = model(task, **batches[task], step_seed=0).loss
    from_encoding = model(task, **rest, image_encoding=encoding, step_seed=0).loss
    torch.testing.assert_close(from_encoding, from_pixels)


def test_detection_loss_is_the_weighted_sum_of_its_terms(model, batches):
    weights = {"ce": 4.0, "bbox": 5.0, "giou": 2.0, "mask": 5.0, "dice": 5.0}
    model.model.config.region_loss_weight, model.model.config.proposal_loss_weight = 7.0, 3.0
    output = model("detection", **batches["detection"])
    terms = dict(output.loss_terms)
    expected = 7.0 * (terms.pop("loss_region") + terms.pop("loss_region_focal"))
    expected = expected + 3.0 * sum(weights[name.split("_")[1]] * term for name, term in terms.items())
    torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-4, atol=1e-3)


def test_unknown_task_is_an_error(model):
    with pytest.raises(ValueError, match=r"`task` must be one of .* got 'segmentation'"):
        model("segmentation")


@pytest.mark.parametrize("counts", [[0, 2], [0, 0]])
@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("score", ["focal", "softmax"])
def test_images_without_boxes_give_finite_losses(model, counts, with_masks, score):
    model.model.config.detection_score = score
    model.train()
    labels = box_labels(counts, with_masks=with_masks)
    output = model("detection", **pad_images(list(random_images(2)), 64, 64), labels=labels)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert any("mask" in name for name in output.loss_terms) == with_masks


def test_gate_noise_and_sample_come_from_the_step_seed(model, batches):
    model.train()

    def loss(seed):
        torch.manual_seed(0)
        return model("language_modeling", **batches["language_modeling"], step_seed=seed).loss

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_the_temperatures_bounded(model, batches, task):
    with torch.no_grad():
        for parameter in model.model.likelihood.log_logit_scale.values():
            parameter.fill_(9.0)
    model.eval()
    with torch.no_grad():
        model(task, **batches[task])
    assert model.model.likelihood.logit_scale("pairs") > 1000  # asking changes no weight
    model.train()
    model(task, **batches[task])
    for family in ("labels", "regions", "vocabulary", "pairs"):
        assert model.model.likelihood.logit_scale(family).item() == pytest.approx(100.0)


# --- predictions -------------------------------------------------------------------------------


def ask(model, encoding_or_batch) -> dict[str, torch.Tensor]:
    """Every prediction about images."""
    base = model.model
    encoding = encoding_or_batch
    if not isinstance(encoding, ImageEncoding):
        encoding = base.encode_image(**encoding_or_batch, keep_mask_features=True)
    found = detection(base, image_encoding=encoding)
    classes = classification(base, image_encoding=encoding)
    return {
        "boxes": found.pred_boxes,
        "scores": found.logits,
        "objectness": found.objectness_logits,
        "classes": classes.logits,
        "masks": full_masks(encoding),
    }


@pytest.mark.parametrize("score", ["focal", "softmax"])
def test_batch_padding_and_other_canvases_change_no_prediction(model, score):
    model.model.config.detection_score = score
    images = [random_images(1, *size, seed=i)[0] for i, size in enumerate([(64, 64), (33, 64), (96, 40)])]
    with torch.no_grad():
        together = ask(model, pad_images(images, 96, 96, fill=3.0))
        for index, image in enumerate(images):
            alone = ask(model, {"pixel_values": image[None]})
            height, width = alone["masks"].shape[-2:]
            together_here = {name: values[index : index + 1] for name, values in together.items()}
            together_here["masks"] = together_here["masks"][..., :height, :width]
            torch.testing.assert_close(together_here, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together["classes"][0], together["classes"][1], atol=1e-2)


def reorder(model, label_set: str, order: list[int]) -> None:
    labels = model.model.config.label_sets[label_set]
    kept = {key: [labels[key][index] for index in order] for key in ("names", "token_ids")}
    model.model.config.label_sets = model.model.config.label_sets | {label_set: kept}


@pytest.mark.parametrize("score", ["focal", "softmax"])
def test_order_of_candidates_permutes_logits(model, score):
    model.model.config.detection_score = score
    encoding = model.encode_image(random_images(2), keep_mask_features=True)
    first = ask(model, encoding)
    reorder(model, "detection", [3, 0, 4, 1, 2])
    reorder(model, "classification", [2, 3, 0, 1])
    second = ask(model, encoding)
    torch.testing.assert_close(second["scores"], first["scores"][..., [3, 0, 4, 1, 2]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(second["classes"], first["classes"][..., [2, 3, 0, 1]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(second["scores"], first["scores"])


def test_other_labels_change_no_score_in_focal_mode_and_do_in_softmax(model):
    encoding = model.encode_image(random_images(2), keep_mask_features=True)
    whole = ask(model, encoding)["scores"]
    # the candidates of one label alone, from the same pass: exactly the same number
    candidates = model.model.label_candidates("detection")
    alone = detect(model.model, encoding, candidates[1:2])[0].logits
    torch.testing.assert_close(alone[..., 0], whole[..., 1], atol=2e-6, rtol=0)
    reorder(model, "detection", [1, 4])
    torch.testing.assert_close(ask(model, encoding)["scores"], whole[..., [1, 4]], atol=1e-5, rtol=1e-5)
    model.model.config.detection_score = "softmax"
    fewer = detect(model.model, encoding, candidates[[1, 4]])[0].logits
    more = detect(model.model, encoding, candidates)[0].logits[..., [1, 4]]
    assert (fewer - more).abs().max() > 0.05


def test_softmax_score_is_foreground_times_softmax(model):
    model.model.config.detection_score = "softmax"
    encoding = model.encode_image(random_images(1))
    output = detection(model.model, image_encoding=encoding)
    states = model.model.decode_image(encoding, "image")[:, -6:]
    cosines = states @ model.model.label_candidates("detection").T
    probabilities = (cosines / 0.07).softmax(-1) * encoding.objectness_logits.sigmoid()[..., None]
    torch.testing.assert_close(output.logits.sigmoid(), probabilities, atol=1e-5, rtol=1e-4)


def test_classification_from_an_encoding_equals_that_from_pixels(model):
    pixels = random_images(2)
    with torch.no_grad():
        expected = classification(model.model, pixels).logits
        encoding = model.encode_image(pixels)
        torch.testing.assert_close(classification(model.model, image_encoding=encoding).logits, expected)
        assert classification(model.model, image_encoding=encoding).image_encoding is encoding


def test_boxes_are_relative_to_the_real_image(model):
    """A box that fills the image is (0.5, 0.5, 1, 1) on any canvas."""
    encoding = model.encode_image(random_images(1, 48, 40))  # canvas 64 x 64
    encoding.boxes = torch.tensor([[20 / 64, 24 / 64, 40 / 64, 48 / 64]]).expand(1, 6, 4)
    output = detection(model.model, image_encoding=encoding)
    torch.testing.assert_close(output.pred_boxes[0, 0], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    assert output.image_sizes.tolist() == [[48, 40]]


# --- errors ------------------------------------------------------------------------------------


def test_labels_of_detection_with_an_encoding_are_not_dropped(model):
    with pytest.raises(ValueError, match="`labels` of detection need `pixel_values`"):
        detection(model.model, image_encoding=model.encode_image(random_images(1)), labels=box_labels([1]))


def test_training_on_unpaired_images_and_captions_is_an_error(model, batches):
    batch = batches["retrieval"]
    uneven = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    output = retrieval(model.model, batch["pixel_values"], **uneven)
    assert output.loss is None
    assert output.logits_per_image.shape == (2, 1)
    torch.testing.assert_close(output.logits_per_text, output.logits_per_image.T)
    model.train()
    with pytest.raises(ValueError, match="one caption for each image, got 2 images and 1 captions"):
        model("retrieval", pixel_values=batch["pixel_values"], **uneven)


# --- the sampled vocabulary --------------------------------------------------------------------


def sampling_model(size: int) -> SimpleNamespace:
    config = SimpleNamespace(vocab_size=40, vocabulary_sample_size=size)
    return SimpleNamespace(config=config, vocabulary_ids=lambda: torch.arange(4, 40))


def test_small_vocabulary_is_used_whole():
    ids, correction = _candidates_of_step(sampling_model(36), torch.tensor([7]), None)
    assert torch.equal(ids, torch.arange(4, 40))
    assert not correction.any()


def test_sample_holds_the_answers_and_is_a_function_of_the_seed():
    answers = torch.tensor([30, 7, 7])
    ids, correction = _candidates_of_step(sampling_model(10), answers, 3)
    assert len(ids) == 12
    assert {7, 30} <= set(ids.tolist())
    assert torch.equal(ids, ids.unique())  # ascending, none twice
    assert not correction[torch.isin(ids, answers)].any()
    torch.manual_seed(9)
    assert torch.equal(_candidates_of_step(sampling_model(10), answers, 3)[0], ids)
    assert not torch.equal(_candidates_of_step(sampling_model(10), answers, 4)[0], ids)


def test_sampled_normalizer_has_the_expectation_of_the_whole():
    """E[Σ_sampled q⁻¹ exp(logit)] = Σ_all exp(logit), which is what log-q correction is for."""
    logits, answers = torch.randn(40), torch.tensor([30, 7])
    whole = logits[4:].exp().sum()
    sums = []
    for seed in range(800):
        ids, correction = _candidates_of_step(sampling_model(8), answers, seed)
        sums.append((logits[ids] + correction).exp().sum())
    assert torch.stack(sums).mean().item() == pytest.approx(whole.item(), rel=0.03)


def test_a_sample_of_nearly_all_words_gives_nearly_the_whole_loss(model, batches):
    batch = batches["language_modeling"]
    whole = model("language_modeling", **batch).loss
    model.model.config.vocabulary_sample_size = 290
    sampled = torch.stack([model("language_modeling", **batch, step_seed=seed).loss.detach() for seed in range(8)])
    assert len(sampled.unique()) > 1
    assert sampled.mean().item() == pytest.approx(whole.item(), abs=0.02)


def test_answer_that_is_no_candidate_is_an_error():
    with pytest.raises(ValueError, match=r"Words to predict must be candidates, got the token ids \[1, 9\]"):
        vocabulary_loss(torch.zeros(3, 4), torch.tensor([2, 4, 5, 7]), torch.tensor([1, 9, 4]))


# --- other precisions and sizes ----------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_bfloat16_model_learns_every_task(model, batches, task):
    model.to(torch.bfloat16).train()
    batch = {
        name: values.to(torch.bfloat16) if name == "pixel_values" else values for name, values in batches[task].items()
    }
    output = model(task, **batch, step_seed=0)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_model_keeps_boxes_in_full_precision(model):
    pixels = random_images(2)
    with torch.no_grad():
        expected = detection(model.model, pixels)
        model.to(torch.bfloat16)
        output = detection(model.model, pixels.to(torch.bfloat16))
    assert output.pred_boxes.dtype == torch.float32
    assert output.logits.dtype == torch.bfloat16
    # the order of near-equal proposals may change, so compare sets
    nearest = torch.cdist(output.pred_boxes, expected.pred_boxes, p=1).amin(-1)
    assert nearest.max() < 0.2


@pytest.mark.slow
def test_swin_base_runs_and_learns_every_task(roberta_tokenizer):
    config = UniPerceiverV2Config.preset(
        "swin-base",
        proposal_config={"num_loss_points": 64},
        vocabulary_sample_size=64,
        mask_token_id=roberta_tokenizer.mask_token_id,
    )
    model = UniPerceiverV2ForMultiTask(config)
    for label_set in ("classification", "detection"):
        model.set_labels(CLASS_NAMES, roberta_tokenizer, label_set=label_set)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    batches = task_batches(roberta_tokenizer, size=128)  # 300 queries need as many cells
    for task, batch in batches.items():
        model.eval()
        if task != "language_modeling":
            with torch.no_grad():
                encoding = model.encode_image(batch["pixel_values"], batch["pixel_mask"])
            assert encoding.boxes.shape == (2, 200, 4)
            assert encoding.tokens.isfinite().all()
        model.train()
        loss = model(task, **batch, step_seed=0).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert loss.isfinite(), task


def test_the_tasks_of_a_shared_temperature_share_it(batches, roberta_tokenizer):
    config = tiny_config(share_temperature=True, text_config={"vocab_size": len(roberta_tokenizer)})
    model = UniPerceiverV2ForMultiTask(config)
    for label_set in ("classification", "detection"):
        model.set_labels(CLASS_NAMES, roberta_tokenizer, label_set=label_set)
    (scale,) = model.model.likelihood.log_logit_scale.values()
    for task, batch in itertools.islice(batches.items(), 5):
        scale.grad = None
        model.train()(task, **batch).loss.backward()
        assert scale.grad.abs() > 0, task
