"""Gradients near the ends of what float32 can hold."""

import math

import pytest
import torch
from test_optimizer import PROBABILITIES, make_params, run, set_gradients

from transformers_upv2.training.gradient_norm import total_norm
from transformers_upv2.training.optimizer import TaskBalancedAdamW


@pytest.mark.parametrize("scale", [1e-12, 1e-22, 1e-35, 1e12, 1e18, 1e30])
def test_the_scale_of_a_loss_changes_nothing_in_float32(scale):
    plain = run({"a": 1.0, "b": 1.0, "c": 1.0}, torch.float32)
    scaled = run({"a": 1.0, "b": scale, "c": 1.0}, torch.float32)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-39, 1e-43])
def test_a_gradient_that_vanishes_in_float32_changes_nothing_but_a_count(scale):
    params = make_params(torch.float32)
    optimizer = TaskBalancedAdamW(params, sampling_probabilities=PROBABILITIES)
    before = [p.detach().clone() for p in params]
    set_gradients(params, 0, "b")
    for p in params:
        p.grad = None if p.grad is None else torch.full_like(p.grad, scale)
    optimizer.begin_step("b")
    optimizer.step()
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))
    statistics = optimizer.param_groups[0]["task_statistics"]["b"]
    assert (statistics["steps"], statistics["skipped_steps"]) == (0, 1)


def test_the_norm_of_any_gradient_is_that_in_float64():
    for scale in (1e-37, 1e-30, 1e-16, 1.0, 1e16, 1e25, 1e37):
        gradients = [torch.randn(5, 3) * scale, torch.randn(()) * scale, torch.randn(7) * scale]
        expected = torch.cat([gradient.double().flatten() for gradient in gradients]).norm().item()
        assert total_norm(gradients) == pytest.approx(expected, rel=1e-5)
    assert total_norm([torch.zeros(3)]) == 0.0
    assert total_norm([torch.tensor([1.0, math.inf])]) == math.inf
    assert math.isnan(total_norm([torch.tensor([1.0, math.nan]), torch.ones(2)]))


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, math.inf])
def test_empty_parameters_change_nothing(scale):
    params = make_params(torch.float32, ((3, 4), (0, 5)))
    optimizer = TaskBalancedAdamW(params, sampling_probabilities={"a": 1.0})
    for p in params:
        p.grad = torch.full_like(p, scale)
    optimizer.begin_step("a")
    optimizer.step()
    statistics = optimizer.param_groups[0]["task_statistics"]["a"]
    assert (statistics["steps"], statistics["skipped_steps"]) == ((0, 1) if scale == math.inf else (1, 0))
    assert statistics["last_norm"] == pytest.approx(math.sqrt(12) * scale if scale < math.inf else 0.0)
