"""The two ways to sample give the same numbers, everywhere on, beside and far from the maps."""

import pytest
import torch

from transformers_upv2.model import multi_scale_sampling
from transformers_upv2.model.multi_scale_sampling import sample_bags, sample_grids, sample_levels

SHAPES = [(7, 5), (3, 4), (1, 2)]


def make_inputs(dtype=torch.float64, batch=2, queries=50, heads=3, points=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    cells = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, cells, heads * 4, generator=rng, dtype=dtype)
    locations = 3 * torch.rand(batch, queries, heads, len(SHAPES), points, 2, generator=rng, dtype=dtype) - 1
    weights = torch.randn(batch, queries, heads, len(SHAPES), points, generator=rng, dtype=dtype)
    return values, SHAPES, locations, weights


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_both_ways_agree(dtype, tolerance):
    inputs = make_inputs(dtype)
    torch.testing.assert_close(sample_bags(*inputs), sample_grids(*inputs), atol=tolerance, rtol=0)


def test_both_ways_agree_on_edges_and_centres():
    values, shapes, locations, weights = make_inputs()
    marks = torch.tensor([-1e6, -0.5, 0.0, 0.5 / 7, 1 / 7, 0.25, 0.5, 0.9, 1.0, 1.0 + 0.5 / 7, 1.5, 1e6]).double()
    chosen = torch.randint(len(marks), locations.shape, generator=torch.Generator().manual_seed(1))
    inputs = (values, shapes, marks[chosen], weights)
    torch.testing.assert_close(sample_bags(*inputs), sample_grids(*inputs), atol=1e-9, rtol=0)


def test_nan_does_not_read_elsewhere():
    values, shapes, locations, weights = make_inputs()
    locations[0, 0], weights[0, 0] = float("nan"), float("nan")
    output = sample_bags(values, shapes, locations, weights)
    assert output[0, 0].isnan().all()
    assert not output[0, 1:].isnan().any()


def test_gradients_agree_with_finite_differences():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        numbers = torch.rand(*shape, dtype=torch.float64, generator=generator)
        return numbers.requires_grad_()

    values, locations, weights = draw(1, 10, 4), draw(1, 3, 2, 2, 2, 2), draw(1, 3, 2, 2, 2)
    shapes = [(2, 3), (2, 2)]
    assert torch.autograd.gradcheck(
        lambda *inputs: sample_levels(inputs[0], shapes, *inputs[1:]), (values, locations, weights)
    )


@pytest.mark.parametrize("which", ["values", "locations", "weights"])
def test_what_learns_is_sampled_with_gradients(which, monkeypatch):
    monkeypatch.setattr(multi_scale_sampling, "sample_bags", lambda *_: pytest.fail("it has no gradients"))
    values, shapes, locations, weights = make_inputs()
    learning = {"values": values, "locations": locations, "weights": weights}[which].requires_grad_()
    sample_levels(values, shapes, locations, weights).sum().backward()
    assert learning.grad.abs().sum() > 0


def test_what_does_not_learn_is_sampled_as_bags(monkeypatch):
    monkeypatch.setattr(multi_scale_sampling, "sample_grids", lambda *_: pytest.fail("it is slow"))
    inputs = make_inputs()
    torch.testing.assert_close(sample_levels(*inputs), sample_bags(*inputs))
