"""What is not computed: full masks unless asked for, loops over queries or boxes, outputs that nobody reads."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_models import random_images, tiny_config
from transformers_upv2.model import proposal_query_decoder, task_forward
from transformers_upv2.model.image_encoder import ImageEncoder
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForInstanceSegmentation,
    UniPerceiverV2ForObjectDetection,
)


@pytest.fixture
def masks(monkeypatch) -> dict[str, list]:
    """Weak references to all masks that are built, by the module that asks for them."""
    built = {}
    for module in (proposal_query_decoder, task_forward):
        built[module.__name__.rpartition(".")[2]] = references = []

        def spy(embeddings, features, references=references, build=module.predict_masks):
            result = build(embeddings, features)
            references.append((weakref.ref(result), result.requires_grad))
            return result

        monkeypatch.setattr(module, "predict_masks", spy)
    return built


def test_masks_are_built_for_segmentation_alone_and_those_of_anchors_are_freed(model, masks):
    pixels = random_images(1)
    detector = UniPerceiverV2ForObjectDetection.from_model(model)
    output = detector(pixel_values=pixels)
    assert output.logits.requires_grad
    assert not masks["task_forward"]
    ((anchors, has_gradient),) = masks["proposal_query_decoder"]
    assert anchors() is None
    assert not has_gradient
    output = UniPerceiverV2ForInstanceSegmentation.from_model(model)(pixel_values=pixels)
    ((asked, _),) = masks["task_forward"]
    assert asked() is output.pred_masks


class CountOperations(TorchDispatchMode):
    """Number of operations that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def count_operations(encoder: ImageEncoder, targets=None) -> int:
    maps = list(encoder.backbone(random_images(2)).feature_maps)
    with CountOperations() as operations, torch.no_grad():
        encoder.proposal_network(maps, targets)
        if targets is None:
            encoder(random_images(2))
    return operations.number


def test_no_loop_over_queries():
    counts = [
        count_operations(
            ImageEncoder(tiny_config(proposal_config={"num_queries": queries}, num_proposals=kept)).eval()
        )
        for queries, kept in ((6, 4), (12, 8))
    ]
    assert counts[0] == counts[1] > 100


def test_no_loop_over_boxes():
    encoder = ImageEncoder(tiny_config())

    def targets(*numbers):
        return [
            {"class_labels": torch.zeros(n, dtype=torch.long), "boxes": torch.rand(n, 4) * 0.3 + 0.3} for n in numbers
        ]

    assert count_operations(encoder, targets(1, 1)) == count_operations(encoder, targets(4, 3)) > 100


def test_the_last_layer_of_the_proposal_network_refines_no_box_for_a_next_one(model):
    decoder = model.model.image_encoder.proposal_network.query_decoder
    calls = []
    decoder.box_head.register_forward_hook(lambda *_: calls.append(1))
    model.encode_image(random_images(1))
    assert len(calls) == len(decoder.layers)  # one between two layers each, and the answer


@pytest.fixture
def last_layer_tokens(model) -> list[int]:
    """Tokens that the last layer of g computes, call by call."""
    lengths = []
    layer = model.model.decoder.layers[-1]
    layer.feed_forward.register_forward_hook(lambda _, args, output: lengths.append(output.shape[1]))
    return lengths


def test_a_candidate_is_computed_at_spe_alone(model, batches, last_layer_tokens):
    words = batches["retrieval"]
    model.model.encode_candidates(words["input_ids"], words["attention_mask"])
    assert last_layer_tokens == [1]


def test_a_caption_is_computed_at_its_slots_alone(model, batches, last_layer_tokens):
    model("captioning", **batches["captioning"])
    # all words but `<s>` have a slot; the vocabulary is encoded behind it, at [SPE]
    assert last_layer_tokens[0] == batches["captioning"]["input_ids"].shape[1] - 1
    assert set(last_layer_tokens[1:]) <= {1}
