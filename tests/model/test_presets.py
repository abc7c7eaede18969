"""A preset is a set of numbers: the same module classes, and no code asks for its name."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import transformers_upv2
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config
from transformers_upv2.model.modeling_upv2 import UniPerceiverV2Model
from transformers_upv2.model.presets import PRESETS

SOURCE = Path(transformers_upv2.__file__).parent


def build_without_memory(name: str) -> UniPerceiverV2Model:
    with torch.device("meta"):
        return UniPerceiverV2Model(UniPerceiverV2Config.preset(name))


def classes_outside_the_backbone(model: nn.Module) -> set[str]:
    backbone = set(model.image_encoder.backbone.modules())
    return {f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules() if m not in backbone}


@pytest.fixture(scope="module")
def models() -> dict[str, UniPerceiverV2Model]:
    return {name: build_without_memory(name) for name in PRESETS}


def test_every_preset_has_the_same_module_classes(models):
    kinds = {name: classes_outside_the_backbone(model) for name, model in models.items()}
    assert kinds["tiny"] == kinds["resnet50"] == kinds["swin-base"] == kinds["swin-large"]
    assert any("RobertaLayer" in kind for kind in kinds["tiny"])


def test_every_preset_has_the_same_parameter_names_per_layer(models):
    def names(model):
        outside = (name for name, _ in model.named_parameters() if ".backbone." not in name)
        return {".".join("#" if part.isdigit() else part for part in name.split(".")) for name in outside}

    # a text encoder as wide as g needs no projection, and none of the presets has one
    assert names(models["tiny"]) == names(models["resnet50"]) == names(models["swin-large"])


def test_the_papers_numbers(models):
    decoder = models["swin-base"].decoder
    assert len(decoder.layers) == 6
    assert decoder.layers[0].attention.qkv_projection.in_features == 768
    assert models["swin-base"].text_encoder.num_layers == 12
    assert sum(p.numel() for p in models["swin-large"].parameters()) > sum(
        p.numel() for p in models["swin-base"].parameters()
    )


def test_every_batch_norm_of_every_backbone_is_frozen(models):
    for model in models.values():
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_no_code_asks_for_the_name_of_a_preset():
    asked = [
        f"{file.relative_to(SOURCE)}:{node.lineno}"
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Compare | ast.Match)
        and any(isinstance(part, ast.Constant) and part.value in PRESETS for part in ast.walk(node))
    ]
    assert not asked


def test_the_names_stand_in_presets_only():
    found = {
        file.relative_to(SOURCE).as_posix()
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and node.value in PRESETS
    }
    # the config takes its defaults from one preset, by its name, and the demo world's model is another
    assert found <= {"model/presets.py", "model/configuration_upv2.py", "studies/world_model.py"}
