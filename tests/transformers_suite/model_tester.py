"""The inputs that transformers' common model tests ask for, from our tiny model."""

from typing import Any

import torch

from tiny_models import IMAGE_SIZE, box_labels, random_images, tiny_config
from transformers_upv2 import UniPerceiverV2Config

LABEL_SETS = {
    "classification": {"names": ["circle", "square", "star"], "token_ids": [[[0, 5, 2]], [[0, 6, 7, 2]], [[0, 8, 2]]]},
    "detection": {"names": ["hat", "tree"], "token_ids": [[[0, 9, 2]], [[0, 10, 11, 2]]]},
}
TEXT_LENGTH = 7
IMAGE_LENGTH = 1 + 2 + (IMAGE_SIZE // 32) ** 2 + 6  # [SPE], pooled tokens, grid, proposals
MASK_TOKEN_ID = 4  # not the last one, since a test cuts the vocabulary's end off
SWIN = {
    "model_type": "swin",
    "image_size": IMAGE_SIZE,
    "embed_dim": 8,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


class TinyModelTester:
    """What transformers calls a model tester.

    Args:
        inputs: Names of the inputs of the model class.
        seq_length: Tokens of the input that g reads, [SPE] first; their states are returned.
        is_training: Whether the class has a loss.
        backbone_config: None for the tiny preset's.
    """

    batch_size = 2
    image_size = IMAGE_SIZE

    def __init__(
        self,
        inputs: tuple[str, ...],
        seq_length: int,
        is_training: bool,
        backbone_config: dict[str, Any] | None,
    ) -> None:
        self.inputs = inputs
        self.seq_length = seq_length
        self.is_training = is_training
        self.backbone_config = backbone_config
        config = self.get_config()
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.decoder_config.num_hidden_layers
        self.num_attention_heads = config.decoder_config.num_attention_heads

    def get_config(self) -> UniPerceiverV2Config:
        """The tiny config with both label sets."""
        config = tiny_config(label_sets=LABEL_SETS, mask_token_id=MASK_TOKEN_ID)
        if self.backbone_config is None:
            return config
        return UniPerceiverV2Config(**config.to_dict() | {"backbone_config": self.backbone_config})

    def all_inputs(self) -> dict[str, Any]:
        """Inputs of all modalities."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(MASK_TOKEN_ID + 1, 300, (self.batch_size, TEXT_LENGTH), generator=generator)
        ids[:, 0] = 0
        return {
            "pixel_values": random_images(self.batch_size),
            "pixel_mask": torch.ones(self.batch_size, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.int64),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }

    def prepare_config_and_inputs_for_common(self) -> tuple[UniPerceiverV2Config, dict[str, Any]]:
        """A config, and the inputs of the model class."""
        inputs = self.all_inputs()
        return self.get_config(), {name: inputs[name] for name in self.inputs}

    def box_labels(self) -> list[dict[str, torch.Tensor]]:
        """Boxes and masks of each image, of the two classes of the label set."""
        return [label | {"class_labels": label["class_labels"] % 2} for label in box_labels([2, 1])]
