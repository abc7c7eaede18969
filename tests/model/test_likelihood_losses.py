"""The losses against independent references."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from transformers_upv2.model.likelihood_losses import (
    encode_sharded,
    label_loss,
    pair_loss,
    region_focal_loss,
    region_losses,
    region_softmax_loss,
    vocabulary_loss,
)

REGION_LABELS = torch.tensor([[2, -1, 0, -1, -1], [-1, -1, -1, -1, 1], [-1] * 5])


def test_label_loss_is_cross_entropy():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(label_loss(logits, labels, 0.0), -logits.log_softmax(1)[range(4), labels].mean())
    smooth = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    torch.testing.assert_close(label_loss(logits, labels, 0.1), F.cross_entropy(logits, smooth))


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_label_that_is_no_candidate_is_an_error(labels):
    message = rf"`labels` must be in \[0, 3\), got values from {min(labels)} to {max(labels)}"
    with pytest.raises(ValueError, match=message):
        label_loss(torch.randn(2, 3), torch.tensor(labels), 0.1)


def test_region_focal_loss_is_torchvisions_per_matched_proposal():
    logits = torch.randn(3, 5, 4) * 2
    targets = torch.zeros(3, 5, 4)
    targets[0, 0, 2] = targets[0, 2, 0] = targets[1, 4, 1] = 1
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2.0, reduction="sum") / 3
    torch.testing.assert_close(region_focal_loss(logits, REGION_LABELS), expected)


def test_region_focal_loss_of_a_label_does_not_depend_on_other_labels():
    logits = torch.randn(3, 5, 4, requires_grad=True)
    region_focal_loss(logits, REGION_LABELS).backward()
    first = logits.grad.clone()
    changed = (logits.detach() + torch.tensor([0.0, 1.0, -2.0, 3.0])).requires_grad_()
    region_focal_loss(changed, REGION_LABELS).backward()
    assert torch.equal(changed.grad[..., 0], first[..., 0])
    assert not torch.equal(changed.grad[..., 1], first[..., 1])


def test_region_softmax_loss_asks_matched_proposals_only():
    logits = torch.randn(3, 5, 4)
    rows = torch.stack([logits[0, 0], logits[0, 2], logits[1, 4]])
    expected = F.cross_entropy(rows, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(region_softmax_loss(logits, REGION_LABELS), expected)


def test_region_losses_of_each_score():
    logits = torch.randn(3, 5, 4)
    softmax = region_softmax_loss(logits, REGION_LABELS)
    assert region_losses("softmax", logits, REGION_LABELS) == {"loss_region": softmax}
    focal = {"loss_region": softmax, "loss_region_focal": region_focal_loss(logits, REGION_LABELS)}
    assert region_losses("focal", logits, REGION_LABELS) == focal


@pytest.mark.parametrize("loss", [region_focal_loss, region_softmax_loss])
def test_no_matched_proposal_gives_a_finite_loss_with_gradient(loss):
    logits = torch.randn(2, 5, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 5), -1))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


def test_pair_loss_is_the_mean_of_both_directions():
    images, texts = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(4, 8), dim=1)
    scale = torch.tensor(5.0)
    cosines = torch.cosine_similarity(images[:, None], texts[None], dim=-1) * 5
    forward = -cosines.log_softmax(1).diagonal().mean()
    backward = -cosines.log_softmax(0).diagonal().mean()
    torch.testing.assert_close(pair_loss(images, texts, scale, 0.0), (forward + backward) / 2)
    uniform = -(cosines.log_softmax(1).mean() + cosines.log_softmax(0).mean()) / 2
    expected = 0.8 * (forward + backward) / 2 + 0.2 * uniform
    torch.testing.assert_close(pair_loss(images, texts, scale, 0.2), expected)


def test_vocabulary_loss_looks_answers_up_by_token_id():
    ids, labels = torch.tensor([2, 5, 6, 11]), torch.tensor([11, 2, 6])
    logits = torch.randn(3, 4)
    expected = F.cross_entropy(logits, torch.tensor([3, 0, 2]))
    torch.testing.assert_close(vocabulary_loss(logits, ids, labels), expected)


def test_vocabulary_loss_of_nothing_is_zero():
    logits = torch.zeros(0, 4, requires_grad=True)
    value = vocabulary_loss(logits, torch.arange(4), torch.zeros(0, dtype=torch.long))
    value.backward()
    assert value.item() == 0.0


def test_one_process_encodes_all_candidates():
    ids = torch.arange(5)
    assert torch.equal(encode_sharded(ids, lambda own: own[:, None] * 2.0), ids[:, None] * 2.0)
