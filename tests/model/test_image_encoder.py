"""Perceiving: each image on its own canvas, whatever it is batched with."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from tiny_models import IMAGE_SIZE, box_labels, pad_images, random_images, tiny_config
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.image_encoder import ImageEncoder
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.model.task_forward import full_masks

SIZES = [(64, 64), (40, 64), (64, 33), (96, 32), (50, 60)]  # four canvases, two images share one


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    return [random_images(1, *size, seed=index)[0] for index, size in enumerate(SIZES)]


@pytest.fixture(autouse=True)
def _no_gradient():
    with torch.no_grad():
        yield


def comparable(encoding: ImageEncoding) -> dict[str, torch.Tensor]:
    """Everything that may not depend on the batch; of padded tensors the real part."""
    (canvas,) = encoding.canvas_sizes.tolist()
    tokens = encoding.tokens[0][encoding.token_mask[0]]
    known = {"tokens": tokens, "semantic": encoding.semantic, "boxes": encoding.boxes}
    known |= {"objectness": encoding.objectness_logits, "pooled_masks": encoding.pooled_masks}
    known |= {"image_sizes": encoding.image_sizes, "canvas_sizes": encoding.canvas_sizes}
    if encoding.mask_features is not None:
        masks = full_masks(encoding)
        known["masks"] = masks[..., : canvas[0] // 4, : canvas[1] // 4]
        assert masks.count_nonzero() == known["masks"].count_nonzero()  # nothing behind the canvas
    return known


@pytest.mark.parametrize("keep", [True, False])
def test_mixed_canvases_in_a_batch_equal_single_images(session_model, images, keep):
    together = session_model.encode_image(**pad_images(images, 96, 96), keep_mask_features=keep)
    assert (together.mask_features is not None) == keep
    assert together.image_sizes.tolist() == [list(size) for size in SIZES]
    assert together.canvas_sizes.tolist() == [[64, 64], [64, 64], [64, 64], [96, 32], [64, 64]]
    for index, image in enumerate(images):
        alone = session_model.encode_image(image[None], keep_mask_features=keep)
        torch.testing.assert_close(comparable(together[index]), comparable(alone), atol=1e-4, rtol=1e-4)


def test_images_differ(session_model, images):
    """Guards the tests of equality: a constant model would pass them."""
    encoding = session_model.encode_image(**pad_images(images[:2], 64, 64))
    for name in ("boxes", "objectness_logits", "semantic", "pooled_masks"):
        values = getattr(encoding, name)
        assert (values[0] - values[1]).abs().max() > 1e-3, name


def test_what_lies_in_the_padding_changes_nothing(session_model, images):
    clean = session_model.encode_image(**pad_images(images[1:3], 96, 64), keep_mask_features=True)
    for fill in (7.0, -3.0, float("nan")):
        dirty = session_model.encode_image(**pad_images(images[1:3], 96, 64, fill), keep_mask_features=True)
        for name, values in clean._tensors().items():
            assert torch.equal(values, dirty._tensors()[name]), name


def test_without_a_mask_the_whole_tensor_is_the_image(session_model):
    pixels = random_images(2, 50, 64)
    encoding = session_model.encode_image(pixels)
    assert encoding.image_sizes.tolist() == [[50, 64]] * 2
    masked = session_model.encode_image(pixels, torch.ones(2, 50, 64))
    assert torch.equal(encoding.tokens, masked.tokens)


def test_grid_tokens_of_the_real_image_alone_are_marked(session_model):
    image = random_images(1, 33, 64)[0]
    encoding = session_model.encode_image(image[None])  # canvas 64 x 64: 2 x 2 cells, all show some pixel
    assert encoding.token_mask.all()
    batch = pad_images([image[:, :32], random_images(1, 64, 64)[0]], 64, 64)
    encoding = session_model.encode_image(**batch)
    pools, proposals = 2, 6
    assert encoding.token_mask.shape == (2, pools + 4 + proposals)
    assert encoding.token_mask[0].tolist() == [True] * 4 + [False] * 2 + [True] * 6  # canvas of 1 x 2 cells
    assert encoding.token_mask[1].all()


@pytest.mark.parametrize(("representation", "hidden"), [("global", slice(6, 12)), ("regional", slice(0, 6))])
def test_an_image_shows_the_chosen_tokens_alone(session_model, representation, hidden):
    torch.manual_seed(0)
    config = UniPerceiverV2Config.from_dict(session_model.config.to_dict() | {"image_representation": representation})
    model = UniPerceiverV2ForMultiTask(config).eval()
    model.load_state_dict(session_model.state_dict())
    encoding = model.encode_image(random_images(1))
    assert encoding.token_mask[0].tolist() == [not hidden.start <= token < hidden.stop for token in range(12)]
    logits = model(task="classification", image_encoding=encoding).logits
    for tokens, changes in ((hidden, False), (slice(12 - hidden.stop, 12 - hidden.start), True)):
        changed = encoding.tokens.clone()
        changed[:, tokens] += 1
        other = dataclasses.replace(encoding, tokens=changed, decoded={})
        assert torch.equal(model(task="classification", image_encoding=other).logits, logits) != changes


def test_best_proposals_enter_in_the_order_of_their_score(session_model):
    encoder = session_model.model.image_encoder
    pixels = random_images(2)
    sizes = torch.full((2, 2), IMAGE_SIZE)
    output, _ = encoder._propose(pixels, sizes, (IMAGE_SIZE, IMAGE_SIZE))
    scores = output.class_logits[..., 0].sort(descending=True).values[:, :6]
    torch.testing.assert_close(encoder(pixels).objectness_logits, scores)


def test_pooled_masks_are_the_pooled_full_masks(session_model):
    encoding = session_model.encode_image(random_images(2, 64, 96), keep_mask_features=True)
    expected = F.adaptive_avg_pool2d(full_masks(encoding), 8)
    torch.testing.assert_close(encoding.pooled_masks, expected, atol=1e-5, rtol=1e-5)


def test_training_puts_matched_proposals_first_with_their_labels(session_model):
    encoder = session_model.model.image_encoder
    labels = box_labels([3, 1])
    sizes = torch.full((2, 2), IMAGE_SIZE)
    encoding, training = encoder.forward_training(random_images(2), sizes, labels)
    assert training.region_labels.shape == (2, 6)
    for row, label in zip(training.region_labels, labels):
        matched = row[row >= 0]
        assert sorted(matched.tolist()) == sorted(label["class_labels"].tolist())
        assert (row[: len(matched)] >= 0).all()
    # matched ones ordered by score among themselves, and so are the others
    for logits, row in zip(encoding.objectness_logits, training.region_labels):
        for part in (logits[row >= 0], logits[row < 0]):
            assert torch.equal(part, part.sort(descending=True).values)


def test_boxes_of_the_real_image_become_boxes_of_the_canvas(session_model):
    encoder = session_model.model.image_encoder
    labels = [{"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 1.0, 0.5]])}]
    labels[0]["masks"] = torch.ones(1, 60, 50, dtype=torch.bool)
    (target,) = encoder._targets(labels, torch.tensor([[48, 32]]), (64, 64))
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.25, 0.375, 0.5, 0.375]]))
    assert target["class_labels"].tolist() == [0]  # one class: foreground
    assert target["masks"].shape == (1, 64, 64)
    assert int(target["masks"].sum()) == 60 * 50


def test_an_object_without_a_mask_is_boxed_and_classified_alone(session_model):
    """What stands in its place among the masks changes no loss, but it does where the object counts as segmented."""
    encoder = session_model.model.image_encoder
    images, sizes = random_images(1), torch.tensor([[IMAGE_SIZE, IMAGE_SIZE]])
    (label,) = box_labels([2])
    half = torch.arange(IMAGE_SIZE) < IMAGE_SIZE // 2
    losses = {}
    for is_mixed in (True, False):
        for stand_in in (torch.zeros(IMAGE_SIZE, dtype=torch.bool), half):
            masks = torch.stack([half, stand_in])[:, None].repeat(1, IMAGE_SIZE, 1)
            extra = {"has_mask": torch.tensor([True, False])} if is_mixed else {}
            torch.manual_seed(0)
            _, training = encoder.forward_training(images, sizes, [{**label, "masks": masks, **extra}])
            losses[is_mixed, stand_in.any().item()] = training.loss.item()
    assert losses[True, True] == losses[True, False]
    assert losses[False, True] != losses[False, False]


def test_backbone_must_give_four_maps():
    with pytest.raises(ValueError, match=r"`backbone_config` must give 4 maps at strides .* got 3 with"):
        ImageEncoder(tiny_config(backbone_config={"out_indices": [2, 3, 4]}))
