"""What all model classes share with transformers: config, initialisation, attention."""

import os
from contextlib import suppress
from typing import Any, Self

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from .conditional_moe import ExpertLinear
from .configuration_upv2 import UniPerceiverV2Config
from .image_encoder import ImageEncoder
from .image_tokens import AttentionPools
from .pretrained_parts import build_from_parts
from .unified_decoder import UnifiedDecoderLayer, UniPerceiverV2Attention

_PACKAGE = __name__.rpartition(".")[0] + "."
_KEYS_OF_PLACES = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


class UniPerceiverV2PreTrainedModel(PreTrainedModel):
    """Base of all model classes.

    All of them read, keep and write ``generation_config``, so that captions are the same whichever class came before.
    """

    config: UniPerceiverV2Config
    generation_config: GenerationConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": UnifiedDecoderLayer, "attentions": UniPerceiverV2Attention}
    _no_split_modules = [
        "UnifiedDecoderLayer",
        "ProposalEncoderLayer",
        "ProposalDecoderLayer",
        "RobertaLayer",
    ]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, which reads the ``generation_config`` for the captioning class alone."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        if pretrained_model_name_or_path is not None and not cls.can_generate():
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            place = {key: kwargs[key] for key in _KEYS_OF_PLACES if key in kwargs}
            with suppress(OSError):  # without a file the model keeps its defaults
                model.generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **place)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save as transformers does, which writes the ``generation_config`` of the captioning class alone.

        Other classes write it if it says more than the config.
        """
        super().save_pretrained(save_directory, **kwargs)
        is_known = self.can_generate() or self.generation_config == GenerationConfig.from_model_config(self.config)
        if kwargs.get("is_main_process", True) and not is_known:
            self.generation_config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained_parts(
        cls,
        backbone: Any = None,
        text_encoder: Any = None,
        proposal_network: Any = None,
        config: UniPerceiverV2Config | None = None,
    ) -> Self:
        """Put a model together from pretrained parts; what no part gives is newly initialized, and all is logged.

        Each part is a Hub id, a local folder or an object, and may be a whole Uni-Perceiver v2, of which the part is
        taken. A part with a config of its own (all but bare weights) brings its sizes, and a text encoder its
        special ids: they replace those of ``config``.

        Args:
            backbone: A backbone of transformers or timm with maps at strides 4, 8, 16 and 32; or bare weights of
                the backbone that ``config`` names: a checkpoint file (MoCo v2's as well), a module, a state dict.
            text_encoder: RoBERTa, BERT or a model with the same layers, of any width.
            proposal_network: Of a saved Uni-Perceiver v2, such as ``scripts/convert_maskdino.py`` makes from a
                Mask DINO checkpoint, or a `ProposalNetwork`.
            config: All that the parts do not say; None: the config's defaults.

        Returns:
            The model in evaluation mode.

        Raises:
            ValueError: If a part does not fit; both sides' sizes are named.
        """
        parts = {"backbone": backbone, "text_encoder": text_encoder, "proposal_network": proposal_network}
        given = {name: source for name, source in parts.items() if source is not None}
        return build_from_parts(cls, config, given)  # type: ignore[return-value]

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:  # noqa: ARG002
        """Initialize every module that has something to say, although our code is not transformers' own.

        In other code transformers passes over modules whose own parameters are initialized, and so over those that
        have none of their own but set those of their Linears, such as a head with its prior. It fears initial values
        that are written in place; ours are written by `transformers.initialization`, which spares what was loaded.
        """
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ExpertLinear | AttentionPools | ImageEncoder):
            module.reset_parameters(self.config.initializer_range)
        elif type(module).__module__.startswith(_PACKAGE):
            reset_parameters = getattr(module, "reset_parameters", None)
            if callable(reset_parameters):
                reset_parameters()
