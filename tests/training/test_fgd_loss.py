"""FGDLoss: the official numbers, a slow second implementation, and what must not change it."""

import math

import pytest
import torch
from torch.nn import functional as F

from transformers_upv2.training.fgd_loss import FGDLoss, region_masks

NUMBERS = {"alpha": 1e-3, "beta": 5e-4, "gamma": 5e-4, "lambda_": 5e-6, "tau": 0.5}
NO_BOXES = torch.zeros(0, 4, dtype=torch.float64)


def make_loss(student_channels=8, teacher_channels=8, **numbers):
    """A loss whose parameters are all away from their first values."""
    loss = FGDLoss(student_channels, teacher_channels, **(NUMBERS | numbers)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return loss


def random_maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def random_boxes(counts, height, width, seed=0):
    """Boxes that overlap, reach over the border and lie in one another."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for count in counts:
        corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 1.3 - 0.15
        low, high = corners.amin(dim=1), corners.amax(dim=1)
        boxes.append(torch.cat([low, high], dim=1) * torch.tensor([width, height, width, height]))
    return boxes


def test_numbers_of_the_official_code():
    """Computed with the official class, in float64."""
    index = torch.arange(2 * 8 * 6 * 10, dtype=torch.float64).view(2, 8, 6, 10)
    student, teacher = (0.37 * index).sin().requires_grad_(), (0.23 * index).cos()
    loss = FGDLoss(8, 8, **NUMBERS).double()
    assert len(list(loss.parameters())) == 16
    with torch.no_grad():
        for number, parameter in enumerate(loss.parameters()):
            flat = torch.arange(parameter.numel(), dtype=torch.float64) + number
            parameter.copy_(0.1 * flat.sin().view_as(parameter))
    boxes = [torch.tensor([[12.0, 8, 60, 40], [30, 20, 50, 44]], dtype=torch.float64), NO_BOXES]
    parts = loss.parts(student, teacher, boxes, (48, 80))
    assert parts["foreground"].item() == pytest.approx(5.1614393185, abs=1e-9)
    assert parts["background"].item() == pytest.approx(7.8678406411, abs=1e-9)
    assert parts["attention"].item() == pytest.approx(19.7348110483, abs=1e-9)
    assert parts["relation"].item() == pytest.approx(473.2599883810, abs=1e-9)
    total = loss(student, teacher, boxes, (48, 80))
    assert total.item() == pytest.approx(0.021329065105, abs=1e-11)
    total.backward()
    assert student.grad.norm().item() == pytest.approx(0.002133132370, abs=1e-11)


def naive_masks(boxes, canvas_size, height, width):
    """One box after the other, one cell after the other."""
    foreground = [[0.0] * width for _ in range(height)]
    for left, top, right, bottom in boxes.tolist():
        columns = range(math.floor(left / canvas_size[1] * width), math.ceil(right / canvas_size[1] * width) + 1)
        rows = range(math.floor(top / canvas_size[0] * height), math.ceil(bottom / canvas_size[0] * height) + 1)
        for row in set(rows) & set(range(height)):
            for column in set(columns) & set(range(width)):
                foreground[row][column] = max(foreground[row][column], 1 / (len(rows) * len(columns)))
    foreground = torch.tensor(foreground, dtype=torch.float64)
    background = (foreground == 0).double()
    return foreground, background / max(background.sum().item(), 1)


def naive_loss(loss, student, teacher, boxes, canvas_size):
    """The formulas, image by image and with torch's own layers, for maps without padding."""
    total = 0.0
    size = student.shape[-2:]
    for row, (own, other) in enumerate(zip(student, teacher)):
        own = own if loss.align is None else loss.align(own[None])[0]
        foreground, background = naive_masks(boxes[row], canvas_size, *size)
        (spatial, channel), (own_spatial, own_channel) = (
            (
                size.numel() * F.softmax(x.abs().mean(0).flatten() / loss.tau, dim=0).view(size),
                len(x) * F.softmax(x.abs().flatten(1).mean(1) / loss.tau, dim=0),
            )
            for x in (other, own)
        )
        weighted = (own - other) ** 2 * spatial * channel[:, None, None]
        total += loss.weights["foreground"] * (weighted * foreground).sum()
        total += loss.weights["background"] * (weighted * background).sum()
        distances = F.l1_loss(own_spatial, spatial, reduction="sum") + F.l1_loss(own_channel, channel, reduction="sum")
        total += loss.weights["attention"] * distances
        related = []
        for x, mask, transform in (
            (own, loss.student_mask, loss.student_transform),
            (other, loss.teacher_mask, loss.teacher_transform),
        ):
            shares = F.softmax(F.conv2d(x[None], mask.weight, mask.bias).flatten(), dim=0)
            context = (x.flatten(1) * shares).sum(dim=1)
            hidden = transform[0].weight[:, :, 0, 0] @ context + transform[0].bias
            hidden = F.layer_norm(hidden, hidden.shape, transform[1].weight.flatten(), transform[1].bias.flatten())
            added = transform[3].weight[:, :, 0, 0] @ hidden.relu() + transform[3].bias
            related.append(x + added[:, None, None])
        total += loss.weights["relation"] * ((related[0] - related[1]) ** 2).sum()
    return total / len(student)


@pytest.mark.parametrize("student_channels", [6, 10])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_loop_over_images_and_boxes(student_channels, seed):
    loss = make_loss(student_channels, 6, alpha=1.0, beta=2.0, gamma=0.5, lambda_=0.1, tau=0.8)
    student, _ = random_maps(3, student_channels, 7, 5, seed=seed)
    _, teacher = random_maps(3, 6, 7, 5, seed=seed)
    boxes = random_boxes([4, 0, 9], 112, 90, seed)
    student.requires_grad_()
    expected = naive_loss(loss, student, teacher, boxes, (112, 90))
    (expected_gradient,) = torch.autograd.grad(expected, student)
    total = loss(student, teacher, boxes, (112, 90))
    (gradient,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_a_loop_over_cells(seed):
    boxes = random_boxes([6, 1, 0], 64, 96, seed)
    real = torch.ones(3, 8, 12, dtype=torch.bool)
    masks = region_masks(boxes, (64, 96), real, torch.float64)
    for row, own in enumerate(boxes):
        for mask, expected in zip(masks, naive_masks(own, (64, 96), 8, 12)):
            torch.testing.assert_close(mask[row], expected, rtol=1e-6, atol=0)


def test_the_small_box_wins_where_boxes_overlap():
    boxes = [torch.tensor([[8.0, 8, 40, 40], [16.0, 16, 24, 24]])]
    foreground, background = region_masks(boxes, (64, 64), torch.ones(1, 8, 8, dtype=torch.bool), torch.float64)
    assert foreground[0, 2, 2].item() == foreground[0, 3, 3].item() == 1 / 4
    assert foreground[0, 1, 1].item() == pytest.approx(1 / 25)
    assert background.sum().item() == pytest.approx(1)
    assert background[0, 0, 0].item() == pytest.approx(1 / (64 - 25))


def test_an_equal_student_loses_nothing():
    loss = make_loss()
    loss.student_mask.load_state_dict(loss.teacher_mask.state_dict())
    loss.student_transform.load_state_dict(loss.teacher_transform.state_dict())
    maps, other = random_maps(2, 8, 6, 10)
    boxes = random_boxes([2, 3], 48, 80)
    assert loss(maps, maps.clone(), boxes, (48, 80)).item() == 0
    assert loss(maps, other, boxes, (48, 80)).item() > 0


def test_the_student_and_both_blocks_learn_and_the_teacher_does_not():
    loss = make_loss(student_channels=4)
    student, teacher = random_maps(2, 4, 6, 10)[0].requires_grad_(), random_maps(2, 8, 6, 10)[1].requires_grad_()
    loss(student, teacher, random_boxes([2, 3], 48, 80), (48, 80)).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    # a softmax does not see the bias that all its logits share
    unseen = {"student_mask.bias", "teacher_mask.bias"}
    assert all(p.grad.abs().sum() > 0 for name, p in loss.named_parameters() if name not in unseen)


def test_a_step_against_the_gradient_brings_the_maps_together():
    loss = FGDLoss(8, 8, **NUMBERS).double()
    student, teacher = random_maps(2, 8, 6, 10)
    boxes = random_boxes([2, 3], 48, 80)
    student = student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher, boxes, (48, 80)), student)
    moved = student - 10 * gradient
    assert (moved - teacher).norm() < (student - teacher).norm()
    assert loss(moved, teacher, boxes, (48, 80)) < loss(student, teacher, boxes, (48, 80))


def test_images_without_boxes_are_all_background():
    loss = make_loss()
    student, teacher = random_maps(2, 8, 6, 10)
    parts = loss.parts(student, teacher, [NO_BOXES, NO_BOXES], (48, 80))
    assert parts["foreground"].item() == 0
    assert all(value.isfinite() for value in parts.values())
    assert parts["background"].item() > 0


def test_a_box_over_the_whole_map_leaves_no_background():
    student, teacher = random_maps(1, 8, 6, 10)
    parts = make_loss().parts(student, teacher, [torch.tensor([[0.0, 0, 80, 48]])], (48, 80))
    assert parts["background"].item() == 0
    assert parts["foreground"].item() > 0


def test_a_doubled_batch_has_the_same_loss():
    loss = make_loss()
    student, teacher = random_maps(2, 8, 6, 10)
    boxes = random_boxes([2, 5], 48, 80)
    once = loss(student, teacher, boxes, (48, 80))
    twice = loss(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1), boxes * 2, (48, 80))
    torch.testing.assert_close(twice, once, rtol=1e-12, atol=0)


def test_padding_changes_nothing():
    loss = make_loss(student_channels=6)
    student, teacher = random_maps(2, 6, 6, 10)[0], random_maps(2, 8, 6, 10)[1]
    boxes = random_boxes([3, 4], 48, 80)
    expected = loss.parts(student, teacher, boxes, (48, 80))
    padded = []
    for maps in (student, teacher):
        wide = torch.full((2, maps.shape[1], 9, 13), 5.0, dtype=torch.float64)
        wide[..., :6, :10] = maps
        padded.append(wide)
    real = torch.zeros(2, 9, 13, dtype=torch.bool)
    real[:, :6, :10] = True
    parts = loss.parts(*padded, boxes, (72, 104), real)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-12, atol=0, msg=name)
    unmasked = loss.parts(*padded, boxes, (72, 104))
    assert all(abs(unmasked[name] - value) > 1e-3 for name, value in expected.items())


def test_half_precision_and_autocast_are_computed_in_the_precision_of_the_parameters():
    loss = make_loss(student_channels=6)
    student, teacher = random_maps(2, 6, 6, 10)[0].bfloat16(), random_maps(2, 8, 6, 10)[1].bfloat16()
    boxes = random_boxes([2, 3], 48, 80)
    expected = loss(student.double(), teacher.double(), boxes, (48, 80))
    loss.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(student, teacher, boxes, (48, 80))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)


def test_boxes_in_whole_pixels_are_boxes():
    loss = make_loss()
    student, teacher = random_maps(2, 8, 6, 10)
    boxes = [torch.tensor([[12, 8, 60, 40], [30, 20, 50, 44]]), torch.zeros(0, 4, dtype=torch.long)]
    total = loss(student, teacher, boxes, (48, 80))
    assert total == loss(student, teacher, [box.float() for box in boxes], (48, 80))


def test_bad_inputs_are_named():
    loss = make_loss()
    student, teacher = random_maps(2, 8, 6, 10)
    boxes = random_boxes([2, 3], 48, 80)
    with pytest.raises(ValueError, match=r"one batch, height and width.*\(2, 8, 6, 9\)"):
        loss(student[..., :9], teacher, boxes, (48, 80))
    with pytest.raises(ValueError, match="got 1 for 2 images"):
        loss(student, teacher, boxes[:1], (48, 80))
    with pytest.raises(ValueError, match="right < left"):
        loss(student, teacher, [boxes[0][:, [2, 1, 0, 3]], boxes[1]], (48, 80))
    with pytest.raises(ValueError, match=r"shape \(n, 4\) for every image, got \[\(2, 4\), \(0,\)\]"):
        loss(student, teacher, [boxes[0], torch.zeros(0)], (48, 80))
    with pytest.raises(ValueError, match="`boxes` must be finite"):
        loss(student, teacher, [boxes[0], boxes[1] * math.nan], (48, 80))
    with pytest.raises(ValueError, match="at least one cell of every image"):
        loss(student, teacher, boxes, (48, 80), torch.zeros(2, 6, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 2, got 1"):
        make_loss(1, 1)
    with pytest.raises(ValueError, match="`tau` must be positive, got 0"):
        make_loss(tau=0)
    with pytest.raises(ValueError, match=r"must not be negative.*-1"):
        make_loss(beta=-1)
