"""The models that scripts/benchmark.py compares: ours and the specialists a user would otherwise run.

All have random weights, since only time is measured, and the Swin of one preset as backbone.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    VisionEncoderDecoderModel,
    VisionTextDualEncoderModel,
)

from transformers_upv2 import UniPerceiverV2Config, UniPerceiverV2ForInstanceSegmentation
from transformers_upv2.model.tasks import routes_of

NUM_CLASSES = 1000
NUM_OBJECTS = 80
SMALL: dict[str, Any] = {
    "backbone_config": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 2},
    "text_config": {
        "vocab_size": 300,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "proposal_config": {
        "hidden_size": 32,
        "encoder_layers": 1,
        "encoder_ffn_size": 32,
        "decoder_layers": 2,
        "decoder_ffn_size": 32,
        "num_queries": 10,
    },
    "decoder_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "num_proposals": 6,
}
"""Numbers with which the benchmark runs in seconds; its times then say nothing. From 64 x 64 on."""


def make_config(preset: str, *, small: bool) -> UniPerceiverV2Config:
    """Take the config of a preset with a Swin, with as many made-up labels as ImageNet and COCO have."""
    config = UniPerceiverV2Config.preset(preset, **(SMALL if small else {}))
    if config.backbone_config.model_type != "swin":
        raise ValueError(
            f"`--preset` must have a Swin backbone, which Mask2Former needs, got {preset!r} with "
            f"{config.backbone_config.model_type!r}."
        )
    config.label_sets = {
        "classification": make_labels(NUM_CLASSES, config.vocab_size),
        "detection": make_labels(NUM_OBJECTS, config.vocab_size),
    }
    return config


def make_labels(number: int, vocab_size: int) -> dict[str, Any]:
    """Make up labels of two tokens each."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(4, vocab_size - 1, (number, 2), generator=generator).tolist()
    return {
        "names": [f"label {index}" for index in range(number)],
        "token_ids": [[[0, *pair, 2]] for pair in words],
    }


def make_ours(
    config: UniPerceiverV2Config, tasks: list[str], num_levels: int | None = None
) -> UniPerceiverV2ForInstanceSegmentation:
    """Build our model, deployed for some tasks: with one dense FFN for each of their routes."""
    config = copy.deepcopy(config)
    config.decoder_config.merged_routes = routes_of(tasks)
    if num_levels is not None:
        config.proposal_config.num_feature_levels = num_levels
    return UniPerceiverV2ForInstanceSegmentation(config).eval()


def make_mask2former(config: UniPerceiverV2Config) -> Mask2FormerForUniversalSegmentation:
    """Build Mask2Former with its own defaults (100 queries, pixel encoder FFN of 1024) and widths like ours."""
    proposals = config.proposal_config
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=copy.deepcopy(config.backbone_config),
            feature_size=proposals.hidden_size,
            mask_feature_size=proposals.hidden_size,
            hidden_dim=proposals.hidden_size,
            encoder_layers=proposals.encoder_layers,
            encoder_feedforward_dim=proposals.encoder_ffn_size,
            decoder_layers=proposals.decoder_layers + 1,  # it counts the prediction of the queries themselves
            dim_feedforward=proposals.decoder_ffn_size,
            num_attention_heads=proposals.num_attention_heads,
            num_labels=NUM_OBJECTS,
        )
    ).eval()


def make_classifier(config: UniPerceiverV2Config) -> SwinForImageClassification:
    """Build an ImageNet classifier."""
    return SwinForImageClassification(_swin(config, num_labels=NUM_CLASSES)).eval()


def make_dual_encoder(config: UniPerceiverV2Config) -> VisionTextDualEncoderModel:
    """Build a CLIP-like model for retrieval."""
    text = RobertaModel(RobertaConfig(**_fields(config.text_config)))
    return VisionTextDualEncoderModel(vision_model=SwinModel(_swin(config)), text_model=text).eval()


def make_captioner(config: UniPerceiverV2Config) -> VisionEncoderDecoderModel:
    """Build a captioner: the Swin, and a RoBERTa that attends to it."""
    text = RobertaConfig(**{**_fields(config.text_config), "is_decoder": True, "add_cross_attention": True})
    captioner = VisionEncoderDecoderModel(
        encoder=SwinModel(_swin(config), add_pooling_layer=False), decoder=RobertaForCausalLM(text)
    )
    for generation in (captioner.config, captioner.generation_config):
        generation.decoder_start_token_id = config.bos_token_id
        generation.pad_token_id = config.pad_token_id
        generation.eos_token_id = config.eos_token_id
    return captioner.eval()


def parts_of_ours(model: UniPerceiverV2ForInstanceSegmentation) -> dict[str, nn.Module]:
    """The modules whose share is measured, in the names of `upv2 info`."""
    encoder = model.model.image_encoder
    return {
        "backbone": encoder.backbone,
        "pixel_decoder": encoder.proposal_network.pixel_decoder,
        "query_decoder": encoder.proposal_network.query_decoder,
        "unified_decoder": model.model.decoder,
    }


def parts_of_mask2former(model: Mask2FormerForUniversalSegmentation) -> dict[str, nn.Module]:
    """The modules that do the same work."""
    pixels = model.model.pixel_level_module
    return {
        "backbone": pixels.encoder,
        "pixel_decoder": pixels.decoder,
        "query_decoder": model.model.transformer_module,
    }


def _swin(config: UniPerceiverV2Config, **fields: Any) -> SwinConfig:
    return SwinConfig(**{**_fields(config.backbone_config), **fields})


def _fields(config: PreTrainedConfig) -> dict[str, Any]:
    """What differs from the defaults of a config's class, but for the maps that only a backbone gives."""
    hidden = ("model_type", "out_features", "out_indices", "stage_names", "transformers_version")
    return {key: value for key, value in config.to_diff_dict().items() if key not in hidden}
