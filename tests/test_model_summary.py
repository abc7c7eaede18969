"""The table of a model: counts that a merged model confirms, the paper's totals, multiply-adds of known layers."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tiny_models import tiny_config
from transformers_upv2 import model_summary
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.presets import PRESETS, PRETRAINED_PARTS
from transformers_upv2.model_summary import (
    PARTS,
    ModelSummary,
    count_multiply_adds,
    format_summary,
    part_of,
    summarize_model,
    summarize_preset,
)

SOURCES = {"backbone": "owner/some-backbone"}


@pytest.fixture(scope="module")
def tiny() -> ModelSummary:
    return summarize_model(tiny_config(), (64, 96), sources=SOURCES)


@pytest.mark.parametrize(("preset", "reported"), [("swin-base", 308e6), ("swin-large", 446e6)])
def test_one_ffn_is_what_the_paper_reports(preset, reported):
    model = model_summary._build(UniPerceiverV2Config.preset(preset))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model_summary._deployed_parameters(model, 1) == pytest.approx(reported, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_described(preset):
    summary = summarize_preset(preset)
    assert summary.counts.training > summary.counts.all_routes > summary.counts.tasks > summary.counts.one_ffn
    assert {part.name: part.source for part in summary.parts if part.source} == PRETRAINED_PARTS[preset]


def test_counts_are_those_of_merged_models():
    config = tiny_config()
    summary = summarize_model(config, (64, 64), tasks=["language_modeling"])
    model = UniPerceiverV2Model(config)
    counted = [sum(p.numel() for p in model.parameters())]
    for tasks in (None, ["language_modeling"]):
        merged = UniPerceiverV2Model(config)
        merged.merge_experts(tasks)
        counted.append(sum(p.numel() for p in merged.parameters()))
    assert list(dataclasses.astuple(summary.counts)[:3]) == counted
    # `language_modeling` has two routes
    assert summary.counts.tasks - summary.counts.one_ffn == sum(
        linear.weight[0].numel() + linear.bias[0].numel()
        for layer in model.decoder.layers
        for linear in (layer.feed_forward.up_projection, layer.feed_forward.down_projection)
    )


def test_a_merged_model_is_described_as_it_is():
    config = tiny_config()
    config.decoder_config.merged_routes = ["image", "label"]
    summary = summarize_model(config, (64, 64))
    assert summary.counts.training is None
    assert sum(part.parameters for part in summary.parts) == summary.counts.tasks
    assert "in training" not in format_summary(summary)
    assert config.decoder_config.merged_routes == ["image", "label"]


def test_parts_hold_every_parameter_and_buffer_once(tiny):
    summary = tiny
    model = UniPerceiverV2Model(tiny_config())
    tensors = [*model.parameters(), *model.buffers()]
    assert [part.name for part in summary.parts] == list(PARTS)
    assert all(part.parameters > 0 for part in summary.parts)
    assert sum(part.parameters for part in summary.parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.bytes_fp32 for part in summary.parts) == sum(t.nbytes for t in tensors)
    model.bfloat16()
    tensors = [*model.parameters(), *model.buffers()]
    assert sum(part.bytes_bf16 for part in summary.parts) == sum(t.nbytes for t in tensors)
    with pytest.raises(ValueError, match=r"`name` must begin like one of .*'likelihood'.* got 'head.weight'"):
        part_of("head.weight")


def test_multiply_adds_of_layers_whose_cost_is_known():
    with torch.device("meta"):
        linear, convolution = nn.Linear(5, 7), nn.Conv2d(3, 4, 3)
        queries, maps, points = torch.empty(2, 6, 5), torch.empty(2, 3, 10, 10), torch.empty(2, 4, 9, 2)

        def run() -> None:
            states = linear(queries)
            convolution(maps)
            torch.einsum("bqd,bkd->bqk", states, states)
            F.grid_sample(maps, points, align_corners=False)
            attended = states[:, None]
            F.scaled_dot_product_attention(attended, attended, attended)

        counts = count_multiply_adds(run, {"linear": linear, "convolution": convolution})
    assert counts["linear"] == 2 * 6 * 5 * 7
    assert counts["convolution"] == 2 * 8 * 8 * 4 * 3 * 9
    pairs = 2 * 6 * 6 * 7
    assert counts["rest"] == pairs + 5 * (2 * 3 * 4 * 9) + 2 * pairs


def test_multiply_adds_on_the_meta_device_are_those_of_a_real_run(tiny):
    model = UniPerceiverV2Model(tiny_config()).eval()
    model.merge_experts()
    pixels = torch.zeros(1, 3, 64, 96)

    def run() -> None:
        encoding = model.encode_image(pixels)
        model.decode_image(encoding, "image")

    counts = count_multiply_adds(run, {"text": model.text_encoder, "g": model.decoder})
    parts = {part.name: part for part in tiny.parts}
    assert counts["text"] == parts["text_encoder"].image_multiply_adds == 0
    assert counts["g"] == parts["unified_decoder"].image_multiply_adds > 0
    assert sum(counts.values()) == sum(part.image_multiply_adds for part in tiny.parts)
    assert parts["text_encoder"].label_multiply_adds > 0


def test_pretrained_parts_are_named_for_every_preset():
    assert set(PRETRAINED_PARTS) == set(PRESETS)
    assert {part for sources in PRETRAINED_PARTS.values() for part in sources} == {"backbone", "text_encoder"}


def test_the_table_says_everything(tiny):
    text = format_summary(tiny)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["backbone"].endswith(SOURCES["backbone"])
    assert lines["likelihood"].endswith("trained from scratch")
    assert f"{tiny.counts.one_ffn / 1e6:.2f} M" in lines["with one FFN in each layer of g"]
    assert "64 x 96" in lines["part"]
    assert "deployed for classification, detection, retrieval" in lines
    assert lines["text_encoder"].split()[7] == "-"  # an image needs none
    json.dumps(dataclasses.asdict(tiny))


def test_unknown_task_is_an_error():
    with pytest.raises(ValueError, match="`task` must be one of"):
        summarize_model(tiny_config(), (64, 64), tasks=["painting"])
