"""An even tinier model than the tiny preset, and batches for it; only numbers differ."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transformers_upv2.model.configuration_upv2 import UniPerceiverV2Config

IMAGE_SIZE = 64
CLASS_NAMES = ["red circle", "blue square", "green star", "hat"]
TEXTS = [
    "a red circle above the big blue square",
    "two small green stars on a dark background",
    "one yellow hat to the left of a green triangle",
]

_PARTS: dict[str, dict[str, Any]] = {
    "backbone_config": {"backbone": "test_efficientnet"},
    "text_config": {
        "vocab_size": 320,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
    },
    "proposal_config": {
        "hidden_size": 32,
        "encoder_layers": 1,
        "encoder_ffn_size": 32,
        "decoder_layers": 2,
        "decoder_ffn_size": 32,
        "num_queries": 10,
        "dn_number": 8,
        "num_loss_points": 32,
    },
    "decoder_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}
_FIELDS: dict[str, Any] = {"num_attention_pools": 2, "num_proposals": 6, "pooled_mask_size": 8}


def tiny_config(**overrides: Any) -> UniPerceiverV2Config:
    """Derive the config from the tiny preset; a dict for a part replaces single fields of that part."""
    fields = _FIELDS | overrides
    for name, part in _PARTS.items():
        fields[name] = part | overrides.get(name, {})
    return UniPerceiverV2Config.preset("tiny", **fields)


def scatter_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter away from its initial value, so that no zero or symmetry hides an error.

    A foreground score then depends on the image, and LayerNorms and biases matter.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "log_logit_scale" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def random_images(number: int, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE, seed: int = 0) -> Tensor:
    """Draw images with structure at several scales, ``(number, 3, height, width)``."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(number, 3, height, width, generator=generator) * 0.3
    for cells in (2, 4, 8):
        coarse = torch.randn(number, 3, cells, cells, generator=generator)
        pixels = pixels + torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return pixels


def pad_images(images: Sequence[Tensor], height: int, width: int, fill: float = 0.0) -> dict[str, Tensor]:
    """Put images ``(3, h, w)`` into the top left corners of a batch."""
    pixel_values = torch.full((len(images), 3, height, width), fill)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.int64)
    for index, image in enumerate(images):
        pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
        pixel_mask[index, : image.shape[1], : image.shape[2]] = 1
    return {"pixel_values": pixel_values, "pixel_mask": pixel_mask}


def box_labels(counts: Sequence[int], size: int = IMAGE_SIZE, with_masks: bool = True) -> list[dict[str, Tensor]]:
    """Draw rectangles whose masks and boxes agree, some number for each image."""
    generator = torch.Generator().manual_seed(3)
    labels = []
    for count in counts:
        corners = torch.randint(0, size // 2, (count, 2), generator=generator)
        extents = torch.randint(size // 8, size // 2, (count, 2), generator=generator)
        masks = torch.zeros(count, size, size, dtype=torch.bool)
        for mask, (left, top), (width, height) in zip(masks, corners.tolist(), extents.tolist()):
            mask[top : top + height, left : left + width] = True
        label = {
            "class_labels": torch.randint(0, len(CLASS_NAMES), (count,), generator=generator),
            "boxes": torch.cat([corners + extents / 2, extents.float()], dim=1) / size,
        }
        labels.append(label | {"masks": masks} if with_masks else label)
    return labels


def task_batches(tokenizer: Any, number: int = 2, size: int = IMAGE_SIZE) -> dict[str, dict[str, Any]]:
    """Make a training batch of every task."""
    texts = [TEXTS[index % len(TEXTS)] for index in range(number)]
    words = tokenizer(texts, padding=True, return_tensors="pt")
    words = {"input_ids": words["input_ids"], "attention_mask": words["attention_mask"]}
    pixels = pad_images(list(random_images(number, size, size)), size, size)
    asked = torch.zeros_like(words["input_ids"], dtype=torch.bool)
    asked[:, 1:4] = True
    return {
        "classification": pixels | {"labels": torch.arange(number) % len(CLASS_NAMES)},
        "detection": pixels | {"labels": box_labels([2, 1, 3, 0][:number], size)},
        "captioning": pixels | words,
        "retrieval": pixels | words,
        "language_modeling": words
        | {
            "input_ids": words["input_ids"].masked_fill(asked, tokenizer.mask_token_id),
            "labels": words["input_ids"].masked_fill(~asked, -100),
        },
    }
