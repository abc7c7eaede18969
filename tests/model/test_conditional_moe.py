"""Conditional MoE: attributes route alone, and experts are merged in weight space."""

import pytest
import torch
from torch.nn import functional as F

from transformers_upv2.model.conditional_moe import ConditionalFeedForward, TokenGroup
from transformers_upv2.model.tasks import ROUTES

NUM_EXPERTS = 8


@pytest.fixture
def network() -> ConditionalFeedForward:
    network = ConditionalFeedForward(16, 24, NUM_EXPERTS, 2)
    for linear in (network.up_projection, network.down_projection):
        torch.nn.init.normal_(linear.weight, std=0.3)
        torch.nn.init.normal_(linear.bias, std=0.3)
    for linear in (network.gate.attribute_projection, network.gate.expert_projection):
        torch.nn.init.normal_(linear.weight)
    return network


def test_gate_chooses_two_experts_whose_weights_are_the_renormalized_softmax(network):
    gate = network.gate
    chosen = set()
    for name, route in ROUTES.items():
        mixture = gate(name)
        states = gate.gate_norm(gate.attribute_projection(torch.tensor(route.bits)))
        probabilities = gate.expert_projection(states).softmax(0)
        best = probabilities.topk(2).indices
        assert mixture.nonzero().flatten().tolist() == sorted(best.tolist())
        torch.testing.assert_close(mixture[best], probabilities[best] / probabilities[best].sum())
        chosen.add(tuple(sorted(best.tolist())))
    assert len(chosen) > 1


def test_only_the_attributes_route(network):
    """Other tokens, another place, another group beside it: the same network."""
    states = torch.randn(2, 7, 16)
    joined = network(states, [TokenGroup("image", 4), TokenGroup("label", 3)])
    torch.testing.assert_close(joined[:, :4], network(states[:, :4], [TokenGroup("image", 4)]))
    torch.testing.assert_close(joined[:, 4:], network(states[:, 4:], [TokenGroup("label", 3)]))
    alone = network(states[1:, 2:3], [TokenGroup("image", 1)])
    torch.testing.assert_close(joined[1:, 2:3], alone)
    assert not torch.allclose(network(states, [TokenGroup("label", 7)]), network(states, [TokenGroup("image", 7)]))


def test_merged_weights_are_the_weighted_experts(network):
    states = torch.randn(2, 5, 16)
    mixture = network.gate("text")
    hidden = sum(
        weight * F.linear(states, up, bias)
        for weight, up, bias in zip(mixture, network.up_projection.weight, network.up_projection.bias)
    )
    expected = sum(
        weight * F.linear(F.gelu(hidden), down, bias)
        for weight, down, bias in zip(mixture, network.down_projection.weight, network.down_projection.bias)
    )
    torch.testing.assert_close(network(states, [TokenGroup("text", 5)]), expected, atol=1e-5, rtol=1e-5)


def test_deployed_form_equals_the_routed_one(network):
    routes = ["vocabulary", "caption_image", "caption_text"]
    merged = network.merge(routes)
    states = torch.randn(2, 6, 16)
    for groups in ([TokenGroup(route, 6)] for route in routes):
        torch.testing.assert_close(merged(states, groups), network(states, groups), atol=1e-5, rtol=1e-5)
    pair = [TokenGroup("caption_image", 2), TokenGroup("caption_text", 4)]
    torch.testing.assert_close(merged(states, pair), network(states, pair), atol=1e-5, rtol=1e-5)
    assert merged.gate is None
    assert merged.up_projection.weight.shape == (3, 24, 16)


def test_deployed_form_refuses_other_routes(network):
    merged = network.merge(["image", "label"])
    message = r"merged for the routes \['image', 'label'\] and cannot use 'text'.*'language_modeling'"
    with pytest.raises(ValueError, match=message):
        merged(torch.randn(1, 2, 16), [TokenGroup("text", 2)])


def test_gradient_reaches_the_chosen_experts_and_the_gate_only(network):
    network(torch.randn(2, 5, 16), [TokenGroup("image", 5)]).square().sum().backward()
    chosen = network.gate("image") > 0
    for linear in (network.up_projection, network.down_projection):
        reached = linear.weight.grad.flatten(1).abs().amax(1) > 0
        assert reached.tolist() == chosen.tolist()
        assert (linear.bias.grad.abs().amax(1) > 0).tolist() == chosen.tolist()
    reached = network.gate.expert_projection.weight.grad.abs().amax(1) > 0
    assert reached.tolist() == chosen.tolist()


def test_noise_moves_the_gate_by_one_over_the_number_of_experts(network):
    gate = network.gate
    clean = gate.expert_projection(gate.gate_norm(gate.attribute_projection(torch.tensor(ROUTES["text"].bits))))
    gate.num_experts_per_group = NUM_EXPERTS  # all chosen, so that the logits can be read back
    noisy = torch.stack([gate("text", torch.Generator().manual_seed(seed)).log() for seed in range(400)])
    difference = noisy - noisy.mean(1, keepdim=True) - (clean - clean.mean())
    assert difference.std().item() == pytest.approx(1 / NUM_EXPERTS * (1 - 1 / NUM_EXPERTS) ** 0.5, rel=0.05)
    assert difference.mean(0).abs().max() < 0.03
