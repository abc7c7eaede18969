"""Tiny models with every kind of backbone that ViSFT can adapt; importable without peft."""

from timm.models import davit, register_model

from tiny_models import tiny_config
from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config


@register_model
def tiny_davit(pretrained=False, **kwargs):
    """Hierarchical, with fused projections."""
    sizes = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4), "window_size": 4}
    return davit._create_davit("tiny_davit", pretrained=False, **sizes, **kwargs)


BACKBONES = {
    # one Linear each for queries, keys and values
    "swin": {
        "model_type": "swin",
        "image_size": 64,
        "embed_dim": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 3, 4],
        "window_size": 2,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "davit": {"backbone": "tiny_davit", "out_indices": [0, 1, 2, 3]},
    # with running statistics that training would move
    "efficientnet": {"freeze_batch_norm_2d": False},
}


def config_with(backbone: str, vocab_size: int) -> UniPerceiverV2Config:
    return tiny_config(backbone_config=BACKBONES[backbone], text_config={"vocab_size": vocab_size})
