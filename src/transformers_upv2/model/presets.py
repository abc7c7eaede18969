"""The presets: plain numbers, one dict each, for `UniPerceiverV2Config.preset`.

Not stated in the paper, chosen here: everything but the backbones, RoBERTa-base and the six decoder layers of
width 768; see the docs page "What the paper says, what we chose".
"""

from typing import Any

_ROBERTA_BASE = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


def _swin(embed_dim: int, num_heads: list[int]) -> dict[str, Any]:
    # transformers' Swin pads before it rolls and has the per-level norms, unlike timm's
    return {
        "model_type": "swin",
        "image_size": 384,
        "patch_size": 4,
        "window_size": 12,
        "embed_dim": embed_dim,
        "depths": [2, 2, 18, 2],
        "num_heads": num_heads,
        "drop_path_rate": 0.3,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "tf_efficientnet_lite0",
            "out_indices": [1, 2, 3, 4],
            "freeze_batch_norm_2d": True,
        },
        "text_config": {
            **_ROBERTA_BASE,
            "vocab_size": 512,
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "initializer_range": 0.05,
            "max_position_embeddings": 130,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "proposal_config": {
            "hidden_size": 64,
            "encoder_layers": 2,
            "encoder_ffn_size": 128,
            "decoder_layers": 3,
            "decoder_ffn_size": 128,
            "num_attention_heads": 4,
            "num_points": 2,
            "num_queries": 30,
            "initial_box": "bitmask",
            "dn_number": 24,
            "num_loss_points": 256,
        },
        "decoder_config": {
            "hidden_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "drop_path": 0.0,
        },
        "num_attention_pools": 4,
        "num_proposals": 20,
        "region_loss_weight": 8.0,
        "initializer_range": 0.05,
    },
    "resnet50": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "resnet50",
            "out_indices": [1, 2, 3, 4],
            "freeze_batch_norm_2d": True,
        },
        "text_config": _ROBERTA_BASE,
    },
    "swin-base": {
        "backbone_config": _swin(128, [4, 8, 16, 32]),
        "text_config": _ROBERTA_BASE,
        "proposal_config": {"num_feature_levels": 4, "initial_box": "bitmask"},
    },
    "swin-large": {
        "backbone_config": _swin(192, [6, 12, 24, 48]),
        "text_config": _ROBERTA_BASE,
        "proposal_config": {"num_feature_levels": 4, "initial_box": "bitmask"},
    },
}
"""Fields of `UniPerceiverV2Config` by preset."""

PRETRAINED_PARTS: dict[str, dict[str, str]] = {
    "tiny": {"backbone": "timm/tf_efficientnet_lite0.in1k"},
    "resnet50": {"backbone": "timm/resnet50.tv_in1k", "text_encoder": "FacebookAI/roberta-base"},
    "swin-base": {
        "backbone": "microsoft/swin-base-patch4-window12-384-in22k",
        "text_encoder": "FacebookAI/roberta-base",
    },
    "swin-large": {
        "backbone": "microsoft/swin-large-patch4-window12-384-in22k",
        "text_encoder": "FacebookAI/roberta-base",
    },
}
"""Hub ids of the pretrained parts that fit each preset: the paper's backbones (its Swin-Large was trained on
Objects365 as well) and text encoder. All other parts start from random weights."""
