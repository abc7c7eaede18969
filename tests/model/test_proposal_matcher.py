from itertools import permutations

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops

from transformers_upv2.model import proposal_matcher
from transformers_upv2.model.proposal_matcher import (
    WORST_COST,
    ProposalLossSettings,
    ProposalTargets,
    match_queries,
    matching_costs,
    sample_points,
)
from transformers_upv2.model.proposal_query_decoder import ProposalPredictions, predict_masks

CPU = torch.device("cpu")
SETTINGS = ProposalLossSettings(num_points=40)


def random_targets(counts, num_classes=2, masks=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count in counts:
        target = {
            "class_labels": torch.randint(0, num_classes, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        if masks:
            target["masks"] = torch.rand(count, 32, 32, generator=generator) > 0.5
        targets.append(target)
    return targets


def random_predictions(num_predictions=3, batch=2, queries=6, num_classes=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_predictions, batch, queries)
    return ProposalPredictions(
        torch.randn(*shape, num_classes, generator=generator),
        torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2,
        torch.randn(*shape, 16, generator=generator),
    )


def random_features(batch=2):
    return torch.randn(batch, 16, 8, 8, generator=torch.Generator().manual_seed(2))


def random_points(batch=2):
    return torch.rand(batch, 40, 2, generator=torch.Generator().manual_seed(3))


def naive_costs(predictions, prediction, image, target, features, points):
    """Compute the costs of one prediction and one image from full masks."""
    probs = predictions.class_logits[prediction, image].sigmoid()[:, target["class_labels"]]
    positive = 0.25 * (1 - probs) ** 2 * -(probs + 1e-8).log()
    negative = 0.75 * probs**2 * -(1 - probs + 1e-8).log()
    boxes = predictions.boxes[prediction, image]
    corners = ops.box_convert(boxes, "cxcywh", "xyxy")
    target_corners = ops.box_convert(target["boxes"], "cxcywh", "xyxy")
    costs = 4 * (positive - negative)
    costs = costs + 5 * (boxes[:, None] - target["boxes"]).abs().sum(-1)
    costs = costs - 2 * ops.generalized_box_iou(corners, target_corners)
    masks = predict_masks(predictions.mask_embeddings[prediction, image][None], features[image][None])
    logits = sample_points(masks, points[image][None])[0][:, None]
    labels = sample_points(target["masks"][None].float(), points[image][None])[0][None]
    logits, labels = torch.broadcast_tensors(logits, labels)
    costs = costs + 5 * F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    probs = logits.sigmoid()
    overlap = (probs * labels).sum(-1)
    return costs + 5 * (1 - (2 * overlap + 1) / (probs.sum(-1) + labels.sum(-1) + 1))


def test_costs_agree_with_a_loop_over_full_masks():
    targets = random_targets([3, 1])
    predictions, features, points = random_predictions(), random_features(), random_points()
    joined = ProposalTargets.from_list(targets, CPU)
    costs = matching_costs(predictions, joined, features, points, SETTINGS)
    for prediction in range(3):
        for image, target in enumerate(targets):
            expected = naive_costs(predictions, prediction, image, target, features, points)
            actual = costs[prediction, image, :, : len(target["boxes"])]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_chunks_do_not_change_the_costs(monkeypatch):
    joined = ProposalTargets.from_list(random_targets([3, 1]), CPU)
    arguments = (random_predictions(), joined, random_features(), random_points(), SETTINGS)
    expected = matching_costs(*arguments)
    monkeypatch.setattr(proposal_matcher, "COST_CHUNK_ELEMENTS", 1)
    torch.testing.assert_close(matching_costs(*arguments), expected)


@pytest.mark.parametrize("counts", [[3, 1], [5, 4], [0, 2], [0, 0]])
@pytest.mark.parametrize("masks", [True, False])
def test_agrees_with_brute_force(counts, masks):
    predictions = random_predictions()
    joined = ProposalTargets.from_list(random_targets(counts, masks=masks), CPU)
    points = random_points() if masks else None
    arguments = (predictions, joined, random_features(), points, SETTINGS)
    matched, costs = match_queries(*arguments), matching_costs(*arguments)
    assert matched.shape == (3, sum(counts))
    for prediction in range(3):
        for image, queries in enumerate(matched[prediction].split(counts)):
            image_costs = costs[prediction, image, :, : counts[image]]
            slots = torch.arange(counts[image])
            best = min(
                permutations(range(6), counts[image]),
                key=lambda order: image_costs[list(order), slots].sum().item(),
            )
            assert queries.tolist() == list(best)


def test_more_targets_than_queries_leave_some_unmatched():
    joined = ProposalTargets.from_list(random_targets([5, 1]), CPU)
    predictions = random_predictions(queries=2)
    matched = match_queries(predictions, joined, random_features(), random_points(), SETTINGS)
    for row in matched:
        assert sorted(row[:5].tolist()) == [-1, -1, -1, 0, 1]
        assert row[5] >= 0


def test_broken_predictions_are_matched_last():
    joined = ProposalTargets.from_list(random_targets([2, 1]), CPU)
    predictions = random_predictions()
    predictions.boxes[0, 0, :4] = torch.nan
    predictions.mask_embeddings[0, 0, 4:] = 100.0  # bad, but finite
    arguments = (predictions, joined, random_features(), random_points(), SETTINGS)
    assert (matching_costs(*arguments)[0, 0, :4] == WORST_COST).all()
    assert sorted(match_queries(*arguments)[0, :2].tolist()) == [4, 5]


def test_targets_are_joined_and_padded():
    targets = random_targets([2, 0, 3])
    joined = ProposalTargets.from_list(targets, CPU)
    assert joined.images.tolist() == [0, 0, 2, 2, 2]
    assert joined.slots.tolist() == [0, 1, 0, 1, 2]
    padded = joined.pad(joined.boxes)
    assert padded.shape == (3, 3, 4)
    assert torch.equal(padded[2], targets[2]["boxes"])
    assert not padded[1].any()
    assert joined.padding_mask().sum(1).tolist() == [2, 0, 3]


def test_masks_of_images_without_targets_may_be_absent():
    targets = random_targets([2, 0])
    del targets[1]["masks"]
    assert ProposalTargets.from_list(targets, CPU).masks.shape == (2, 32, 32)
    empty = ProposalTargets.from_list(random_targets([0, 0]), CPU)
    assert empty.masks.shape == (0, 32, 32)


def test_masks_of_some_targets():
    targets = random_targets([2, 0, 1])
    targets[0]["has_mask"] = torch.tensor([False, True])
    del targets[1]["masks"], targets[2]["masks"]
    joined = ProposalTargets.from_list(targets, CPU)
    assert joined.has_mask.tolist() == [False, True, False]
    assert torch.equal(joined.masks[:2], targets[0]["masks"])
    assert not joined.masks[2].any()
    assert ProposalTargets.from_list(targets[1:], CPU).masks is None


def test_a_target_without_a_mask_has_no_mask_costs():
    """Its costs are those of a batch without masks, those of the others are those of a batch where all have one."""
    targets, features, points = random_targets([3, 2]), random_features(), random_points()
    predictions = random_predictions()

    def costs(targets):
        joined = ProposalTargets.from_list(targets, CPU)
        return matching_costs(predictions, joined, features, points, SETTINGS)

    with_masks = costs(targets)
    without = costs([{key: target[key] for key in ("class_labels", "boxes")} for target in targets])
    mixed = [dict(target) for target in targets]
    mixed[0]["has_mask"] = torch.tensor([True, False, True])
    del mixed[1]["masks"]
    found = costs(mixed)
    assert torch.equal(found[:, 0, :, ::2], with_masks[:, 0, :, ::2])
    assert torch.equal(found[:, 0, :, 1], without[:, 0, :, 1])
    assert torch.equal(found[:, 1, :, :2], without[:, 1, :, :2])
    assert not torch.equal(found, with_masks)


def test_targets_that_do_not_fit_are_refused():
    targets = random_targets([2, 1])
    targets[1]["boxes"] = torch.rand(3, 4)
    with pytest.raises(ValueError, match=r"`targets\[1\]` must have one of `boxes`.*got 3 for 1"):
        ProposalTargets.from_list(targets, CPU)
