"""The likelihood: cosine over temperature, one temperature per family or one for all."""

import math

import pytest
import torch

from transformers_upv2.model.likelihood import Likelihood
from transformers_upv2.model.tasks import TEMPERATURE_FAMILIES


def make(shared: bool = False) -> Likelihood:
    return Likelihood(16, temperature=0.07, shared=shared, max_logit_scale=100.0, layer_norm_eps=1e-5)


def test_logits_are_cosines_over_temperature():
    likelihood = make()
    inputs, candidates = torch.randn(3, 4, 16), torch.randn(5, 16)
    logits = likelihood.logits(likelihood.embed(inputs), likelihood.embed(candidates), "regions")

    def transform(x):
        return likelihood.output_projection(likelihood.output_norm(x))

    expected = torch.cosine_similarity(transform(inputs)[:, :, None], transform(candidates), dim=-1) / 0.07
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_embeddings_are_unit_vectors():
    lengths = make().embed(torch.randn(3, 4, 16) * 100).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(3, 4))


def test_candidates_of_each_image():
    likelihood = make()
    inputs, candidates = torch.randn(2, 4, 16), torch.randn(2, 5, 16)
    logits = likelihood.logits(inputs, candidates, "regions")
    torch.testing.assert_close(logits[1], likelihood.logits(inputs[1], candidates[1], "regions"))


def test_every_family_has_its_own_temperature_unless_shared():
    likelihood = make()
    with torch.no_grad():
        likelihood.log_logit_scale["pairs"].fill_(math.log(3.0))
    scales = {family: likelihood.logit_scale(family).item() for family in TEMPERATURE_FAMILIES}
    assert scales.pop("pairs") == pytest.approx(3.0)
    assert list(scales.values()) == pytest.approx([1 / 0.07] * 3)
    shared = make(shared=True)
    with torch.no_grad():
        next(iter(shared.log_logit_scale.values())).fill_(math.log(3.0))
    assert len(shared.log_logit_scale) == 1
    for family in TEMPERATURE_FAMILIES:
        assert shared.logit_scale(family).item() == pytest.approx(3.0)


def test_clamping_bounds_the_scale_from_above_alone():
    likelihood = make()
    with torch.no_grad():
        likelihood.log_logit_scale["labels"].fill_(9.0)
        likelihood.log_logit_scale["pairs"].fill_(-9.0)
    likelihood.clamp_()
    assert likelihood.logit_scale("labels").item() == pytest.approx(100.0)
    assert likelihood.log_logit_scale["pairs"].item() == -9.0


def test_region_bias_starts_at_the_focal_prior():
    assert torch.sigmoid(make().region_bias).item() == pytest.approx(0.01)
