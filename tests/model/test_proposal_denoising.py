import pytest
import torch

from transformers_upv2.model.boxes import inverse_sigmoid
from transformers_upv2.model.proposal_denoising import (
    DenoisingNoise,
    build_denoising_queries,
    count_groups,
    denoising_attention_mask,
)

LABELS = torch.tensor([[2, 1, 0], [1, 0, 0]])
BOXES = torch.tensor(
    [
        [[0.5, 0.5, 0.2, 0.4], [0.3, 0.4, 0.2, 0.2], [0.6, 0.6, 0.5, 0.3]],
        [[0.2, 0.2, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
    ]
)
IS_TARGET = torch.tensor([[True, True, True], [True, False, False]])


def build(noise, noise_scale=0.4):
    return build_denoising_queries(LABELS, BOXES, IS_TARGET, noise, num_classes=3, noise_scale=noise_scale)


@pytest.mark.parametrize(("dn_number", "max_targets", "expected"), [(100, 30, 3), (100, 0, 0), (5, 6, 0), (0, 2, 0)])
def test_count_groups(dn_number, max_targets, expected):
    assert count_groups(dn_number, max_targets) == expected


def test_without_noise_every_group_holds_every_target():
    queries = build(DenoisingNoise.draw((2, 4, 3)), noise_scale=0.0)
    assert queries.num_queries == 12
    assert queries.num_groups == 4
    for group in range(4):
        part = slice(3 * group, 3 * group + 3)
        assert torch.equal(queries.labels[:, part][IS_TARGET], LABELS[IS_TARGET])
        assert torch.equal(queries.is_target[:, part], IS_TARGET)
        expected = inverse_sigmoid(BOXES)[IS_TARGET]
        torch.testing.assert_close(queries.box_logits[:, part][IS_TARGET], expected)


def test_padding_has_neutral_boxes():
    queries = build(DenoisingNoise.draw((2, 2, 3)))
    assert not queries.box_logits[~queries.is_target].any()


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_noise_reaches_half_a_size_for_centers_and_a_size_for_sizes(extreme):
    noise = DenoisingNoise(torch.ones(2, 1, 3), torch.zeros(2, 1, 3), torch.full((2, 1, 3, 4), extreme))
    boxes = build(noise).box_logits.sigmoid()
    sign = 2 * extreme - 1
    reach = torch.tensor([0.1, 0.2, 0.2, 0.4])
    torch.testing.assert_close(boxes[0, 0], BOXES[0, 0] + sign * 0.4 * reach)


def test_labels_flip_with_half_the_noise_scale():
    flips = torch.tensor([0.19, 0.21, 0.19]).expand(2, 1, 3)
    noise = DenoisingNoise(flips, torch.full((2, 1, 3), 0.999999), torch.full((2, 1, 3, 4), 0.5))
    assert build(noise).labels[0].tolist() == [2, 1, 2]
    noise.new_labels = torch.zeros(2, 1, 3)
    assert build(noise).labels[0].tolist() == [0, 1, 0]


def test_noise_of_a_generator_repeats():
    first = DenoisingNoise.draw((2, 3, 4), generator=torch.Generator().manual_seed(5))
    second = DenoisingNoise.draw((2, 3, 4), generator=torch.Generator().manual_seed(5))
    assert torch.equal(first.boxes, second.boxes)
    assert torch.equal(first.label_flips, second.label_flips)
    assert not torch.equal(first.label_flips, first.new_labels)


def test_noise_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="2 images and 3 targets, got noise for 2 images and 4 targets"):
        build(DenoisingNoise.draw((2, 1, 4)))


def test_attention_mask_hides_targets_from_matching_queries_and_other_groups():
    mask = denoising_attention_mask(num_groups=2, group_size=2, num_matching=3)
    hidden = [[column for column in range(7) if mask[row, column]] for row in range(7)]
    first, second, matching = [2, 3], [0, 1], [0, 1, 2, 3]
    assert hidden == [first, first, second, second, matching, matching, matching]
