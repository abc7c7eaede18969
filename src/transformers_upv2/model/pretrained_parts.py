"""A model put together from pretrained parts: backbone, text encoder, proposal network.

A part that knows its sizes brings them along: its own config replaces that part of the model's config. What cannot
be joined is refused: weights without a config must have the sizes that the model's config says, and a proposal
network must have been made for maps with the backbone's channels.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from .configuration_upv2 import UniPerceiverV2Config, UniPerceiverV2ProposalConfig
from .pretrained_backbone import Part, check_strides, read_backbone
from .pretrained_weights import Copied, copy_tensors
from .proposal_network import ProposalNetwork
from .text_encoder import check_text_config

logger = logging.get_logger(__name__)

SPECIAL_IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "mask_token_id")
PLACES = {
    "backbone": ("image_encoder.backbone", "backbone_config"),
    "text_encoder": ("text_encoder.encoder", "text_config"),
    "proposal_network": ("image_encoder.proposal_network", "proposal_config"),
}
"""Of each part its module in the model and its field of the config."""


def build_from_parts(
    model_class: type[PreTrainedModel], config: UniPerceiverV2Config | None, sources: Mapping[str, Any]
) -> PreTrainedModel:
    """Put a model together; see `UniPerceiverV2PreTrainedModel.from_pretrained_parts`.

    Args:
        model_class: Any of our model classes.
        config: What no part says.
        sources: Hub id, folder or object for keys of ``PLACES``.

    Returns:
        The model in evaluation mode.
    """
    config = UniPerceiverV2Config() if config is None else copy.deepcopy(config)
    parts = _read_parts(model_class, config, sources)
    for name, part in parts.items():
        if part.config is not None:
            part.config.dtype = config.dtype  # a half-precision checkpoint does not decide on the model's
            setattr(config, PLACES[name][1], part.config)
    config.validate_architecture()
    model = model_class(config).eval()
    base: Any = model.base_model
    if "proposal_network" in parts:
        _check_channels(base, parts["proposal_network"])
    copied = {
        name: copy_tensors(base.get_submodule(PLACES[name][0]), part.tensors, name, part.source)
        for name, part in parts.items()
    }
    if "backbone" in parts:
        check_strides(base.image_encoder.backbone, parts["backbone"].source)
    logger.warning(_report(base, parts, copied))
    return model


def _read_parts(
    model_class: type[PreTrainedModel], config: UniPerceiverV2Config, sources: Mapping[str, Any]
) -> dict[str, Part]:
    """Read what is given, each folder once, and put the special ids of a text encoder into the config."""
    wholes: dict[Any, dict[str, Part]] = {}
    parts = {}
    for name, source in sources.items():
        if _is_whole_model(source):
            key = id(source) if isinstance(source, nn.Module) else str(source)
            if key not in wholes:
                wholes[key] = _split_whole_model(model_class, source)
            parts[name] = wholes[key][name]
        elif name == "backbone":
            parts[name] = read_backbone(source, config.backbone_config)
        elif name == "text_encoder":
            parts[name] = _read_text_encoder(source)
        else:
            parts[name] = _read_proposal_network(source)
    if "text_encoder" in parts:
        _set_special_ids(config, parts["text_encoder"])
    return parts


def _is_whole_model(source: Any) -> bool:
    """Whether a source is a whole Uni-Perceiver v2, of which one part is meant."""
    if isinstance(source, str | Path) and not Path(source).is_file():
        model_type = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    else:
        model_type = getattr(getattr(source, "config", None), "model_type", None)
    return model_type == UniPerceiverV2Config.model_type


def _split_whole_model(model_class: type[PreTrainedModel], source: Any) -> dict[str, Part]:
    """Take a whole model apart; tensors that its folder lacks are no part of any part."""
    missing: set[str] = set()
    model = source
    if not isinstance(source, nn.Module):
        loaded: Any = model_class.from_pretrained(source, output_loading_info=True)
        model, info = loaded
        missing = set(info["missing_keys"])
    base: Any = model.base_model
    prefix = "" if base is model else f"{base.base_model_prefix}."
    parts = {}
    for name, (place, field) in PLACES.items():
        module = base.get_submodule(place)
        tensors = {key: value for key, value in module.state_dict().items() if f"{prefix}{place}.{key}" not in missing}
        parts[name] = Part(
            source=type(source).__name__ if isinstance(source, nn.Module) else str(source),
            tensors=tensors,
            config=copy.deepcopy(getattr(base.config, field)),
            special_ids={key: getattr(base.config, key) for key in SPECIAL_IDS},
            feature_channels=getattr(module, "feature_channels", ()),
        )
    return parts


def _read_proposal_network(source: Any) -> Part:
    if not isinstance(source, ProposalNetwork):
        raise ValueError(
            "`proposal_network` must be the Hub id or folder of a saved Uni-Perceiver v2, such as "
            "scripts/convert_maskdino.py writes, a model, or a `ProposalNetwork`, got "
            f"{source if isinstance(source, str | Path) else type(source).__name__}."
        )
    sizes, loss = source.settings, source.loss_settings
    config = UniPerceiverV2ProposalConfig(
        hidden_size=sizes.hidden_size,
        num_feature_levels=sizes.num_feature_levels,
        encoder_layers=sizes.encoder_layers,
        encoder_ffn_size=sizes.encoder_ffn_size,
        decoder_layers=sizes.decoder_layers,
        decoder_ffn_size=sizes.decoder_ffn_size,
        num_attention_heads=sizes.num_heads,
        num_points=sizes.num_points,
        num_queries=sizes.num_queries,
        num_classes=sizes.num_classes,
        initial_box=sizes.initial_box,
        dn_number=sizes.dn_number,
        dn_noise_scale=sizes.dn_noise_scale,
        query_position=sizes.query_position,
        cross_attention=sizes.cross_attention,
        similar_attention=sizes.similar_attention,
        class_weight=loss.class_weight,
        bbox_weight=loss.bbox_weight,
        giou_weight=loss.giou_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
        num_loss_points=loss.num_points,
    )
    return Part("ProposalNetwork", source.state_dict(), config, feature_channels=source.feature_channels)


def _read_text_encoder(source: Any) -> Part:
    if isinstance(source, PreTrainedModel):
        check_text_config(source.config)
        config, tensors = copy.deepcopy(source.config), source.base_model.state_dict()
        ids = {key: getattr(config, key, None) for key in SPECIAL_IDS}
        name = type(source).__name__
    elif isinstance(source, str | Path):
        check_text_config(AutoConfig.from_pretrained(source))
        model = AutoModel.from_pretrained(source, add_pooling_layer=False)
        config, tensors, name = model.config, model.state_dict(), str(source)
        ids = {key: getattr(config, key, None) for key in SPECIAL_IDS} | _tokenizer_ids(source)
    else:
        raise ValueError(
            f"`text_encoder` must be a Hub id, a folder or a model of transformers, got {type(source).__name__}."
        )
    return Part(name, tensors, config, {key: value for key, value in ids.items() if value is not None})


def _tokenizer_ids(source: str | Path) -> dict[str, int]:
    """Read special ids from the tokenizer beside a text encoder, if there is one: many configs name few of them."""
    if cached_file(source, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False) is None:
        return {}
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = {key: getattr(tokenizer, key, None) for key in SPECIAL_IDS}
    # a BERT-like encoder was trained on `[CLS] words [SEP]`, whatever else a tokenizer calls begin and end
    ids |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    return {key: value for key, value in ids.items() if value is not None}


def _set_special_ids(config: UniPerceiverV2Config, part: Part) -> None:
    """Give the config the ids that a text encoder was trained with.

    Raises:
        ValueError: If some ids are neither named by the encoder nor by a config for its kind, or two are equal.
    """
    assert part.config is not None  # every text encoder has one
    unknown = [key for key in SPECIAL_IDS if key not in part.special_ids]
    previous = config.text_config
    if unknown and previous.model_type != part.config.model_type:
        raise ValueError(
            f"`text_encoder` must name its special ids, but {part.source} does not say {unknown}, and the `config` is "
            f"made for {previous.model_type!r}, not {part.config.model_type!r}. Pass a folder with a tokenizer, or "
            "set them in the encoder's config."
        )
    if "mask_token_id" in unknown and config.mask_token_id == previous.vocab_size - 1:
        config.mask_token_id = part.config.vocab_size - 1
    for key, value in part.special_ids.items():
        setattr(config, key, value)
    ids = {key: getattr(config, key) for key in SPECIAL_IDS}
    if len(set(ids.values())) < len(ids) or max(ids.values()) >= part.config.vocab_size:
        raise ValueError(
            f"The special ids must be five different ones below the vocabulary size {part.config.vocab_size} of "
            f"`text_encoder`, got {ids}. Set them in the encoder's config."
        )


def _check_channels(base: Any, part: Part) -> None:
    """Refuse a proposal network for other maps.

    Raises:
        ValueError: If the backbone's maps have other channels.
    """
    channels = tuple(base.image_encoder.backbone.channels)
    if part.feature_channels != channels:
        raise ValueError(
            "`proposal_network` must have been made for maps with the backbone's channels: it was made for "
            f"{part.feature_channels}, the backbone gives {channels}. Pass the `backbone` that belongs to it."
        )


def _report(base: nn.Module, parts: Mapping[str, Part], copied: Mapping[str, Copied]) -> str:
    """Say of every tensor of the model where it comes from."""
    state = base.state_dict()
    filled: set[str] = set()
    lines = ["The model was put together from parts."]
    for name, part in parts.items():
        names = [f"{PLACES[name][0]}.{key}" for key in copied[name].names]
        filled.update(names)
        number = sum(state[key].numel() for key in names)
        how = "converted" if copied[name].renamed else "loaded"
        lines.append(f"- {name}: {how} {len(names)} tensors, {number:,} numbers, from {part.source}")
        if part.config is None:
            lines[-1] += ", which has no config of its own"
        if copied[name].left_out:
            groups = Counter(".".join(key.split(".")[:-1][:2]) for key in copied[name].left_out)
            lines.append("  left out: " + ", ".join(f"{group} ({count})" for group, count in groups.items()))
    new: Counter[str] = Counter()
    for key, value in state.items():
        if key not in filled:
            group = ".".join(key.split(".")[:2]) if key.startswith("image_encoder.") else key.split(".")[0]
            new[group] += value.numel()
    lines.append("- newly initialized: " + ", ".join(f"{group} ({number:,})" for group, number in new.items()))
    lines.append("Train the model before you use it.")
    return "\n".join(lines)
