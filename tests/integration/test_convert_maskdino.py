"""Official Mask DINO checkpoints: every tensor finds its place, and the backbones compute what they did."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import AutoBackbone, SwinBackbone, SwinConfig

from maskdino_checkpoint import (
    detectron2_resnet,
    official_heads,
    official_resnet50,
    official_swin,
    official_swin_large,
)
from outside_data import MASKDINO_NAMES, NEEDS_MASKDINO_NAMES
from transformers_upv2 import UniPerceiverV2Config, UniPerceiverV2ImageProcessor, UniPerceiverV2Model

ROOT = Path(__file__).resolve().parents[2]

specification = importlib.util.spec_from_file_location("convert_maskdino", ROOT / "scripts" / "convert_maskdino.py")
script = importlib.util.module_from_spec(specification)
sys.modules["convert_maskdino"] = script  # where its dataclasses look for their module
specification.loader.exec_module(script)

PIXEL, PREDICTOR = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
CHANNELS = [256, 512, 1024, 2048]


@pytest.fixture(scope="module")
def official():
    torch.manual_seed(0)
    return official_resnet50()


@pytest.fixture(scope="module")
def places(official):
    return script.empty_places(script.read_config(official))[1]


@pytest.mark.skipif(not MASKDINO_NAMES.is_dir(), reason=NEEDS_MASKDINO_NAMES)
@pytest.mark.parametrize(("build", "file"), [(official_resnet50, "r50"), (official_swin_large, "swinl")])
def test_the_checkpoints_of_these_tests_have_the_official_names_and_shapes(build, file):
    listed = json.loads((MASKDINO_NAMES / f"maskdino_keys_{file}.json").read_text())["tensors"]
    assert {name: list(value.shape) for name, value in build().items()} == listed


@pytest.mark.parametrize(
    ("build", "levels", "initial_box", "counts"),
    [(official_resnet50, 4, "mask2box", (609, 110, 1)), (official_swin_large, 5, "bitmask", (681, 110, 25))],
    ids=["resnet50", "swin-large"],
)
def test_every_tensor_is_used_an_alias_or_dropped_by_name(build, levels, initial_box, counts, monkeypatch):
    checkpoint = build()
    if "swin" in build.__name__:  # on the meta device nothing can be compared
        monkeypatch.setattr(torch, "equal", lambda one, other: one.shape == other.shape)
    config = script.read_config(checkpoint)
    proposal = config.proposal_config
    assert (proposal.num_feature_levels, proposal.initial_box) == (levels, initial_box)
    assert (proposal.num_classes, proposal.encoder_ffn_size, proposal.decoder_ffn_size) == (80, 2048, 2048)
    assert (proposal.encoder_layers, proposal.decoder_layers) == (6, 9)
    _, expected = script.empty_places(config)
    tensors, fates = script.convert(checkpoint, expected)
    assert {name: value.shape for name, value in tensors.items()} == {n: v.shape for n, v in expected.items()}
    assert [name for name, _ in fates] == list(checkpoint)
    kinds = [fate.split()[0].rstrip(":") for _, fate in fates]
    assert tuple(map(kinds.count, ("used", "alias", "dropped"))) == counts
    # each place is filled once
    used = [name for _, fate in fates if fate.startswith("used") for name in fate.removeprefix("used as ").split(", ")]
    assert sorted(used) == sorted(expected)


def test_names_mean_the_same_module(official, places):
    """By hand, those that a shape cannot tell apart."""
    tensors, _ = script.convert(official, places)
    pixel, query = (script.OUR_NETWORK + name for name in ("pixel_decoder.", "query_decoder."))
    pairs = {
        PIXEL + "transformer.encoder.layers.3.norm1.weight": pixel + "layers.3.self_attention_norm.weight",
        PIXEL + "transformer.encoder.layers.3.norm2.weight": pixel + "layers.3.feed_forward.norm.weight",
        PIXEL + "adapter_1.norm.bias": pixel + "lateral_projection.1.bias",
        PIXEL + "layer_1.norm.bias": pixel + "fusion.1.bias",
        PIXEL + "input_proj.3.1.weight": pixel + "input_projections.3.1.weight",
        PREDICTOR + "decoder.layers.8.norm1.bias": query + "layers.8.cross_attention_norm.bias",
        PREDICTOR + "decoder.layers.8.norm2.bias": query + "layers.8.self_attention_norm.bias",
        PREDICTOR + "decoder.layers.8.norm3.bias": query + "layers.8.feed_forward.norm.bias",
        PREDICTOR + "enc_output_norm.weight": query + "memory_norm.weight",
        PREDICTOR + "decoder_norm.weight": query + "decoder_norm.weight",
        PREDICTOR + "mask_embed.layers.1.weight": query + "mask_head.layers.1.weight",
        PREDICTOR + "_bbox_embed.layers.1.weight": query + "box_head.layers.1.weight",
        PREDICTOR + "decoder.ref_point_head.layers.1.weight": query + "box_position_head.layers.1.weight",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(tensors[ours], official[theirs]), theirs


def test_resnet_computes_what_torchvision_computes(places):
    reference = torchvision.models.resnet50(weights=None).double().eval()
    with torch.no_grad():
        for name, value in reference.named_buffers():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if "var" in name else value.normal_(std=0.1)
    tensors, _ = script.convert(detectron2_resnet(reference) | official_heads(CHANNELS, 4), places)
    backbone = AutoBackbone.from_config(UniPerceiverV2Config.preset("resnet50").backbone_config).double().eval()
    backbone.load_state_dict(own(tensors))
    images = torch.randn(1, 3, 64, 96).double()
    with torch.no_grad():
        states, expected = reference.maxpool(reference.relu(reference.bn1(reference.conv1(images)))), []
        for stage in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            states = stage(states)
            expected.append(states)
        maps = backbone(images).feature_maps
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_swin_computes_what_timm_computes():
    """At a size that all windows divide, where both agree with the original."""
    sizes = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [2, 2, 4, 4], "window_size": 2}
    reference = timm.models.swin_transformer.SwinTransformer(
        img_size=128, num_classes=0, always_partition=True, **sizes
    ).eval()
    norms = nn.ModuleList(nn.LayerNorm(16 * 2**level) for level in range(4))
    with torch.no_grad():
        for parameter in (*reference.parameters(), *norms.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    checkpoint = official_swin(reference, norms, 2)
    stages = [f"stage{level}" for level in (1, 2, 3, 4)]
    backbone = SwinBackbone(SwinConfig(image_size=128, out_features=stages, **sizes)).eval()
    layout = script.BACKBONES["backbone.patch_embed.proj.weight"]
    tensors = {}
    for name, value in checkpoint.items():
        if not name.endswith("relative_position_index"):
            names = script.our_names(name, layout)
            tensors |= zip(names, value.chunk(len(names)), strict=True)
    missing, unexpected = backbone.load_state_dict(own(tensors), strict=False)
    assert (missing, unexpected) == (["swin.layernorm.weight", "swin.layernorm.bias"], [])
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        states = reference.patch_embed(images)
        maps = backbone(images).feature_maps
        for level, (stage, norm) in enumerate(zip(reference.layers, norms)):
            states = stage(states)
            expected = norm(states).permute(0, 3, 1, 2)
            torch.testing.assert_close(maps[level], expected, rtol=1e-5, atol=1e-5)


def own(tensors):
    """Those of the backbone, by its own names."""
    prefix = script.OUR_BACKBONE
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def changed(official, **changes):
    return {name: value for name, value in (official | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone.res4.1.conv2.weight": torch.zeros(9, 9)},
            r"conv2.weight \(9, 9\) does not fit our .*\(256, 256, 3",
        ),
        ({PREDICTOR + "query_feat.weight": torch.zeros(300, 256)}, r"query_feat.weight \(300, 256\) is unknown"),
        ({PREDICTOR + "enc_output.bias": None}, r"our \S+memory_projection.bias \(256,\) finds none"),
        ({PREDICTOR + "decoder.norm.bias": torch.ones(256)}, "decoder.norm.bias is not equal to .*decoder_norm.bias"),
    ],
    ids=["shape", "unknown", "missing", "alias"],
)
def test_what_does_not_fit_is_named(official, places, changes, message):
    with pytest.raises(ValueError, match="must have the tensors of official Mask DINO .*" + message):
        script.convert(changed(official, **changes), places)


@pytest.mark.parametrize("name", ["backbone.stem.conv1.weight", PREDICTOR + "class_embed.weight"])
def test_other_layouts_are_refused(official, name):
    with pytest.raises(ValueError, match=r"must be of official Mask DINO with ResNet-50 or Swin-L.* got 719 tensors"):
        script.read_config(changed(official, **{name: None}))


def test_missing_file_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "no.pth"), str(tmp_path / "out")])
    assert "the checkpoint must be a file" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_the_folder_holds_the_official_numbers(official, places, tmp_path, capsys, class_agnostic):
    file, out = tmp_path / "official.pth", tmp_path / "out"
    torch.save({"model": official, "iteration": 368749, "optimizer": {"state": {}}}, file)
    script.main([str(file), str(out), *["--class-agnostic"] * class_agnostic])
    printed = capsys.readouterr().out
    assert all(name in printed for name in official)
    assert "720 tensors: 609 used, 110 alias, 1 dropped" in printed
    assert "iteration" in printed
    assert "images are RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375]" in printed
    assert UniPerceiverV2ImageProcessor.from_pretrained(out).do_convert_rgb
    model, info = UniPerceiverV2Model.from_pretrained(out, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not [name for name in info["missing_keys"] if script.OUR_BACKBONE in name or script.OUR_NETWORK in name]
    tensors, _ = script.convert(official, places)
    state = model.state_dict()
    replaced = [name for name in tensors if ".class_head." in name or ".label_embedding." in name]
    for name, value in tensors.items():
        if not class_agnostic or name not in replaced:
            assert torch.equal(state[name], value), name
    head = model.image_encoder.proposal_network.query_decoder
    assert head.class_head.out_features == model.config.proposal_config.num_classes == (1 if class_agnostic else 80)
    if class_agnostic:
        torch.testing.assert_close(head.class_head.bias.sigmoid(), torch.tensor([0.01]))
        expected = official[PREDICTOR + "label_enc.weight"].mean(dim=0)
        torch.testing.assert_close(head.label_embedding.weight[0], expected)
