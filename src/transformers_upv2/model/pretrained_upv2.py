"""What all model classes share with transformers: config, initialisation, attention."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .conditional_moe import ExpertLinear
from .configuration_upv2 import UniPerceiverV2Config
from .image_encoder import ImageEncoder
from .image_tokens import AttentionPools

_PACKAGE = __name__.rpartition(".")[0] + "."


class UniPerceiverV2PreTrainedModel(PreTrainedModel):
    """Base of all model classes."""

    config: UniPerceiverV2Config
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = [
        "UnifiedDecoderLayer",
        "ProposalEncoderLayer",
        "ProposalDecoderLayer",
        "RobertaLayer",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ExpertLinear | AttentionPools | ImageEncoder):
            module.reset_parameters(self.config.initializer_range)
        elif type(module).__module__.startswith(_PACKAGE):
            reset_parameters = getattr(module, "reset_parameters", None)
            if callable(reset_parameters):
                reset_parameters()
