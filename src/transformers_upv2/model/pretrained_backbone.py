"""Pretrained backbones of any origin: transformers, timm, or a file of weights.

`AutoBackbone.from_pretrained` asks the Hub whether a folder exists, and takes the name of a folder with a timm
backbone for a timm model; so folders are read here.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.utils import cached_file

from .image_encoder import BACKBONE_STRIDES
from .pretrained_weights import read_checkpoint

STRIDE_TEST_SIZE = 64
"""Side of the blank image that shows a backbone's strides."""


@dataclass(frozen=True)
class Part:
    """A pretrained part.

    Args:
        source: Where it comes from, for messages.
        tensors: Its weights by name.
        config: Its own config; None: weights alone, which have the sizes that the model's config says.
        special_ids: Of a text encoder, the special ids that it names.
        feature_channels: Of a proposal network, the channels of the maps that it was made for.
    """

    source: str
    tensors: Mapping[str, Tensor]
    config: PreTrainedConfig | None = None
    special_ids: dict[str, int] = field(default_factory=dict)
    feature_channels: tuple[int, ...] = ()


def read_backbone(source: Any, expected: PreTrainedConfig) -> Part:
    """Read a backbone.

    Args:
        source: Hub id or folder of transformers or timm, a checkpoint file, a module, or a state dict.
        expected: The backbone's config in the model's config, for weights that bring none.

    Returns:
        The part.

    Raises:
        ValueError: If it is nothing of the kind.
    """
    if isinstance(source, nn.Module):
        config = getattr(source, "config", None)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
        else:
            architecture = (getattr(source, "pretrained_cfg", None) or {}).get("architecture")
            config = _timm_config(architecture, expected) if architecture else None
        return Part(type(source).__name__, source.state_dict(), config)
    if isinstance(source, Mapping):
        return Part("the state dict", source)
    if isinstance(source, str | Path):
        if Path(source).is_file():
            return Part(str(source), read_checkpoint(Path(source))[0])
        return _read_folder(str(source), expected)
    raise ValueError(
        "`backbone` must be a Hub id, a folder, a checkpoint file, a module or a state dict, got "
        f"{type(source).__name__}."
    )


def check_strides(backbone: nn.Module, source: str) -> None:
    """Refuse a backbone whose maps are not what the proposal network and Eq. 3 need.

    Raises:
        ValueError: If the maps have other strides.
    """
    was_training = backbone.training
    blank = torch.zeros(1, 3, STRIDE_TEST_SIZE, STRIDE_TEST_SIZE)
    with torch.no_grad():
        maps = backbone.eval()(blank).feature_maps
    backbone.train(was_training)
    strides = tuple(STRIDE_TEST_SIZE // feature_map.shape[-1] for feature_map in maps)
    if strides != BACKBONE_STRIDES:
        raise ValueError(
            f"`backbone` must give maps at strides {BACKBONE_STRIDES}, channels first, got {source} with maps of "
            f"shapes {[tuple(feature_map.shape[1:]) for feature_map in maps]} for an image of {STRIDE_TEST_SIZE} "
            "pixels. Choose a hierarchical backbone."
        )


def _timm_config(architecture: str, expected: PreTrainedConfig) -> TimmBackboneConfig:
    """Describe a timm backbone: as in the model's config if it is the same one, else with frozen BatchNorms."""
    if isinstance(expected, TimmBackboneConfig) and expected.backbone == architecture:
        return copy.deepcopy(expected)
    options: dict[str, Any] = {"out_indices": [-4, -3, -2, -1], "freeze_batch_norm_2d": True}
    return TimmBackboneConfig(backbone=architecture, **options)


def _read_folder(source: str, expected: PreTrainedConfig) -> Part:
    fields, _ = PreTrainedConfig.get_config_dict(source)
    if fields.get("model_type") == TimmBackboneConfig.model_type:
        return Part(source, _read_safetensors(source), TimmBackboneConfig.from_dict(fields))
    if "architecture" in fields:  # a folder of timm
        return Part(source, _read_safetensors(source), _timm_config(fields["architecture"], expected))
    config = AutoConfig.from_pretrained(source)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"`backbone` must be a backbone of transformers or timm, got {source} of the type "
            f"{config.model_type!r}, which `AutoBackbone` does not know."
        )
    if len(config.out_indices) != len(BACKBONE_STRIDES):
        config.out_features = config.stage_names[-len(BACKBONE_STRIDES) :]
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    model, info = backbone_class.from_pretrained(source, config=config, output_loading_info=True)
    missing = set(info["missing_keys"])
    tensors = {name: value for name, value in model.state_dict().items() if name not in missing}
    return Part(source, tensors, model.config)


def _read_safetensors(source: str) -> dict[str, Tensor]:
    path = cached_file(source, "model.safetensors")
    assert path is not None  # a missing file is an OSError
    return read_checkpoint(Path(path))[0]
