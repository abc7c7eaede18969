from dataclasses import replace

import pytest
import torch
from torch import distributed
from torch.nn import functional as F
from torchvision import ops

from transformers_upv2.model import proposal_losses as losses_module
from transformers_upv2.model.proposal_losses import (
    SampledPoints,
    proposal_losses,
    select_uncertain_points,
    sigmoid_focal_loss,
    weighted_sum,
)
from transformers_upv2.model.proposal_matcher import ProposalLossSettings, sample_points
from transformers_upv2.model.proposal_query_decoder import (
    ProposalPredictions,
    TrainingPredictions,
    predict_masks,
)

LAYERS, QUERIES, CLASSES, GROUPS = 2, 6, 2, 2
SETTINGS = ProposalLossSettings(num_points=16)


def random_predictions(num_predictions, queries, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_predictions, 2, queries)
    return ProposalPredictions(
        torch.randn(*shape, CLASSES, generator=generator).requires_grad_(),
        (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).requires_grad_(),
        torch.randn(*shape, 16, generator=generator).requires_grad_(),
    )


def random_training(max_targets):
    matching = random_predictions(2 + LAYERS, QUERIES, seed=0)
    if not max_targets:
        return TrainingPredictions(matching, None, 0)
    denoising = random_predictions(1 + LAYERS, GROUPS * max_targets, seed=1)
    return TrainingPredictions(matching, denoising, GROUPS)


def random_targets(counts, masks=True):
    generator = torch.Generator().manual_seed(2)
    targets = []
    for count in counts:
        target = {
            "class_labels": torch.randint(0, CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        if masks:
            target["masks"] = torch.rand(count, 32, 32, generator=generator) > 0.5
        targets.append(target)
    return targets


def random_features():
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(3), requires_grad=True)


def random_points(counts):
    generator = torch.Generator().manual_seed(4)
    rows, total = 2 + LAYERS + GROUPS * (1 + LAYERS) * bool(sum(counts)), sum(counts)
    return SampledPoints(
        torch.rand(2, 16, 2, generator=generator),
        torch.rand(rows, total, 48, 2, generator=generator),
        torch.rand(rows, total, 4, 2, generator=generator),
    )


def takes_part_in_masks(target, slot):
    return "masks" in target and target.get("has_mask", torch.ones(len(target["boxes"])))[slot]


def naive_terms(predictions, row, pairs, targets, features, points, divisor):
    """Compute the losses of one prediction, pair by pair.

    ``pairs`` holds (image, target of the image, target of the batch, query, row of points).
    """
    classes, boxes = predictions.class_logits[row], predictions.boxes[row]
    labels = torch.zeros_like(classes)
    zero = torch.zeros(())
    terms = dict.fromkeys(("loss_bbox", "loss_giou", "loss_mask", "loss_dice"), zero)
    for image, slot, target, query, point_row in pairs:
        labels[image, query, targets[image]["class_labels"][slot]] = 1
        box, target_box = boxes[image, query], targets[image]["boxes"][slot]
        terms["loss_bbox"] = terms["loss_bbox"] + (box - target_box).abs().sum() / divisor
        corners = [ops.box_convert(value[None], "cxcywh", "xyxy") for value in (box, target_box)]
        giou = ops.generalized_box_iou(*corners).squeeze()
        terms["loss_giou"] = terms["loss_giou"] + (1 - giou) / divisor
        if not takes_part_in_masks(targets[image], slot):
            continue
        embedding = predictions.mask_embeddings[row, image, query]
        mask = predict_masks(embedding[None, None], features[image][None])[0]
        chosen = select_uncertain_points(
            mask, points.candidates[point_row, target][None], points.uniform[point_row, target][None], 12
        )
        logits = sample_points(mask[None], chosen).squeeze()
        true = sample_points(targets[image]["masks"][slot].float()[None, None], chosen).squeeze()
        entropy = F.binary_cross_entropy_with_logits(logits, true)
        terms["loss_mask"] = terms["loss_mask"] + entropy / divisor
        probs = logits.sigmoid()
        dice = 1 - (2 * (probs * true).sum() + 1) / (probs.sum() + true.sum() + 1)
        terms["loss_dice"] = terms["loss_dice"] + dice / divisor
    terms["loss_ce"] = ops.sigmoid_focal_loss(classes, labels, reduction="sum") / divisor
    return terms


def expected_terms(training, targets, counts, features, points):
    """Compute all terms in loops; each layer is matched by a call of its own."""
    expected, starts, num_boxes = {}, [0, counts[0]], max(sum(counts), 1)
    suffixes = ["_interm", *[f"_{index}" for index in range(LAYERS)], ""]
    for row, suffix in enumerate(suffixes):
        single = ProposalPredictions(*[value[row : row + 1] for value in vars(training.matching).values()])
        _, indices = proposal_losses(
            TrainingPredictions(single, None, 0),
            features,
            targets,
            SETTINGS,
            points=replace(points, candidates=points.candidates[:1], uniform=points.uniform[:1]),
        )
        pairs = [
            (image, slot, starts[image] + slot, query, row)
            for image, (queries, slots) in enumerate(indices)
            for query, slot in zip(queries.tolist(), slots.tolist())
        ]
        terms = naive_terms(training.matching, row, pairs, targets, features, points, num_boxes)
        expected |= {name + suffix: value for name, value in terms.items()}
    size = max(counts)
    for row, suffix in enumerate([*[f"_dn_{index}" for index in range(LAYERS)], "_dn"]):
        pairs = [
            (image, slot, starts[image] + slot, group * size + slot, 4 + row * GROUPS + group)
            for group in range(GROUPS)
            for image, count in enumerate(counts)
            for slot in range(count)
        ]
        divisor = num_boxes * GROUPS
        terms = naive_terms(training.denoising, row, pairs, targets, features, points, divisor)
        expected |= {name + suffix: value for name, value in terms.items()}
    return expected


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("counts", [[3, 1], [0, 2]])
def test_stacked_losses_agree_with_loops(counts, mixed):
    training, targets = random_training(max(counts)), random_targets(counts)
    if mixed:  # the first object of the second image has a mask, of the first image all but the first if there are any
        targets[0] |= {"has_mask": torch.arange(counts[0]) > 0}
        targets[1] |= {"has_mask": torch.arange(counts[1]) < 1}
    features, points = random_features(), random_points(counts)
    terms, _ = proposal_losses(training, features, targets, SETTINGS, points=points)
    expected = expected_terms(training, targets, counts, features, points)
    assert set(terms) == set(expected)
    for name, value in terms.items():
        # official GIoU adds 1e-6 to areas of 0.04 and more
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4, msg=name)
    leaves = [*vars(training.matching).values(), *vars(training.denoising).values(), features]
    actual_grads = torch.autograd.grad(sum(terms.values()), leaves, retain_graph=True)
    expected_grads = torch.autograd.grad(sum(expected.values()), leaves)
    for actual, reference in zip(actual_grads, expected_grads):
        torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-3)


def test_official_number_of_terms():
    matching = random_predictions(11, QUERIES, seed=0)
    denoising = random_predictions(10, GROUPS * 2, seed=1)
    training = TrainingPredictions(matching, denoising, GROUPS)
    terms, _ = proposal_losses(training, random_features(), random_targets([2, 1]), SETTINGS)
    assert len(terms) == 105
    assert {"loss_ce", "loss_mask_8", "loss_giou_interm", "loss_dice_dn", "loss_bbox_dn_8"} <= set(terms)


@pytest.mark.parametrize("masks", [True, False])
def test_no_target_at_all_gives_finite_losses_and_gradients(masks):
    training, features = random_training(0), random_features()
    targets = random_targets([0, 0], masks=masks)
    terms, indices = proposal_losses(training, features, targets, SETTINGS)
    assert len(terms) == (5 if masks else 3) * (2 + LAYERS + 1 + LAYERS)
    assert [len(queries) for queries, _ in indices] == [0, 0]
    weighted_sum(terms, SETTINGS).backward()
    assert terms["loss_ce"] > 0
    assert terms["loss_bbox"] == 0
    assert terms["loss_ce_dn"] == 0
    assert training.matching.class_logits.grad.isfinite().all()
    assert not training.matching.boxes.grad.any()


def test_images_without_masks_beside_others_have_no_mask_loss():
    training, features, points = random_training(2), random_features(), random_points([2, 1])
    targets = random_targets([2, 1])
    del targets[1]["masks"]
    terms, _ = proposal_losses(training, features, targets, SETTINGS, points=points)
    masks = sum(value for name, value in terms.items() if name.startswith(("loss_mask", "loss_dice")))
    gradients = torch.autograd.grad(masks, [training.matching.mask_embeddings, training.denoising.mask_embeddings])
    for gradient in gradients:
        assert gradient[:, 0].any()
        assert not gradient[:, 1].any()
    assert terms["loss_bbox"] > 0


def test_without_masks_there_are_no_mask_terms():
    terms, _ = proposal_losses(random_training(2), random_features(), random_targets([2, 1], masks=False), SETTINGS)
    assert {"_".join(name.split("_")[:2]) for name in terms} == {"loss_ce", "loss_bbox", "loss_giou"}


def test_unmatched_targets_have_no_loss():
    training = random_training(0)
    targets = random_targets([8, 0])
    terms, indices = proposal_losses(training, random_features(), targets, SETTINGS)
    queries, slots = indices[0]
    assert sorted(queries.tolist()) == list(range(QUERIES))
    expected = (training.matching.boxes[-1, 0, queries] - targets[0]["boxes"][slots]).abs().sum() / 8
    torch.testing.assert_close(terms["loss_bbox"], expected)


def test_generator_decides_the_points():
    arguments = (random_training(2), random_features(), random_targets([2, 1]), SETTINGS)

    def mask_loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return proposal_losses(*arguments, generator=generator)[0]["loss_mask"].item()

    assert mask_loss(0) == mask_loss(0)
    assert mask_loss(0) != mask_loss(1)


def test_chunks_of_candidates_do_not_change_the_losses(monkeypatch):
    arguments = (random_training(2), random_features(), random_targets([2, 1]), SETTINGS)
    points = random_points([2, 1])
    expected, _ = proposal_losses(*arguments, points=points)
    monkeypatch.setattr(losses_module, "CANDIDATE_CHUNK_ELEMENTS", 100)
    actual, _ = proposal_losses(*arguments, points=points)
    torch.testing.assert_close(actual, expected)


def test_uncertain_points_are_those_near_the_border():
    mask = torch.linspace(-4, 4, 9).expand(1, 9, 9)  # 0 at x = 0.5
    x = torch.tensor([0.05, 0.5, 0.95, 0.45, 0.7])
    candidates = torch.stack((x, torch.full_like(x, 0.5)), dim=-1)[None]
    chosen = select_uncertain_points(mask, candidates, torch.full((1, 1, 2), 0.1), 2)
    torch.testing.assert_close(chosen[0, :, 0].sort().values, torch.tensor([0.1, 0.45, 0.5]))


def test_focal_loss_agrees_with_torchvision():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(12).view(3, 4) % 3 == 0).float()
    expected = ops.sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2)
    torch.testing.assert_close(sigmoid_focal_loss(logits, labels, 0.25, 2.0), expected)


def test_weighted_sum_uses_the_base_name():
    terms = {"loss_ce_interm": torch.tensor(1.0), "loss_giou_dn_3": torch.tensor(10.0)}
    assert weighted_sum(terms, SETTINGS) == 4 * 1 + 2 * 10


def test_num_boxes_is_the_average_over_ranks(monkeypatch):
    arguments = (random_training(2), random_features(), random_targets([2, 1]), SETTINGS)
    points = random_points([2, 1])
    expected, _ = proposal_losses(*arguments, points=points)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 4)
    monkeypatch.setattr(distributed, "all_reduce", lambda total: total.fill_(24.0))  # 3 here
    actual, _ = proposal_losses(*arguments, points=points)
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name] * 3 / 6)
