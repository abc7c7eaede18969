"""The base model: perceive images, encode texts, decode both with g, compare with candidates.

Reference: Uni-Perceiver v2 (https://arxiv.org/abs/2211.09808), sections 3 and 4.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers import initialization as init
from transformers.cache_utils import Cache

from .attention import additive_mask
from .candidate_encoding import CandidateEncodingModel
from .candidates import CandidateCache, weights_fingerprint
from .caption_layout import CaptionLayout
from .conditional_moe import TokenGroup
from .configuration_upv2 import UniPerceiverV2Config
from .image_encoder import ImageEncoder
from .image_encoding import ImageEncoding
from .likelihood import Likelihood
from .output_recording import records_input
from .outputs import UniPerceiverV2ModelOutput
from .tasks import TASKS, routes_of
from .text_encoder import TextEncoder
from .unified_decoder import ALL, UnifiedDecoder


class UniPerceiverV2Model(CandidateEncodingModel):
    """Uni-Perceiver v2 without a question: f, g, and the likelihood."""

    def __init__(self, config: UniPerceiverV2Config) -> None:
        super().__init__(config)
        decoder = config.decoder_config
        decoder._attn_implementation = config._attn_implementation
        self.image_encoder = ImageEncoder(config)
        self.text_encoder = TextEncoder(config.text_config, config.hidden_size)
        self.spe_token = nn.Parameter(torch.empty(config.hidden_size))
        self.text_type = nn.Parameter(torch.empty(config.hidden_size))
        self.decoder = UnifiedDecoder(decoder, first_cache_index=self.text_encoder.num_layers)
        self.likelihood = Likelihood(
            config.hidden_size,
            temperature=config.initial_temperature,
            shared=config.share_temperature,
            max_logit_scale=config.max_logit_scale,
            layer_norm_eps=decoder.layer_norm_eps,
        )
        self.candidate_cache = CandidateCache()
        self.generation_config = GenerationConfig.from_model_config(config)
        self.post_init()

    def reset_parameters(self) -> None:
        """Fill the two tokens that belong to no part."""
        for parameter in (self.spe_token, self.text_type):
            init.normal_(parameter, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's word embeddings."""
        return self.text_encoder.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.text_encoder.encoder.set_input_embeddings(value)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write the names of the task classes, so that every class writes the same file."""
        state_dict = kwargs.pop("state_dict", None) or self.state_dict()
        state_dict = {f"{self.base_model_prefix}.{name}": value for name, value in state_dict.items()}
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def encode_image(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        keep_mask_features: bool = False,
    ) -> ImageEncoding:
        """Perceive images once, f(x), to ask any number of questions about them.

        Args:
            pixel_values: Normalized images in the top left corner, ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``; None: the whole tensor is the image.
            keep_mask_features: Keep what is needed to ask for full masks later.

        Returns:
            The encoding.
        """
        encoding = self.image_encoder(pixel_values, pixel_mask, keep_mask_features=keep_mask_features)
        if not torch.compiler.is_compiling():
            encoding.fingerprint = weights_fingerprint(self)
        return encoding

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read texts in both directions, f(x) of Eq. 4.

        Args:
            input_ids: ``<s> words </s>``, ``(batch, tokens)``.
            attention_mask: 1 = real token, ``(batch, tokens)``.

        Returns:
            Text tokens, ``(batch, tokens, D)``.
        """
        allowed = attention_mask[:, None, :].bool().expand(-1, input_ids.shape[1], -1)
        return self.text_encoder(
            input_ids,
            self.text_encoder.position_ids(attention_mask),
            additive_mask(allowed, self.spe_token.dtype),
        )

    def run_decoder(
        self, tokens: Tensor, token_mask: Tensor, route: str, step_seed: int | None = None, read: slice = ALL
    ) -> Tensor:
        """Run g over [SPE] and a sequence of one route, and embed every output.

        Args:
            tokens: ``(batch, tokens, D)``.
            token_mask: True for real tokens, ``(batch, tokens)``.
            route: Key of ``ROUTES``.
            step_seed: Seed of the gate noise in training.
            read: Neighbouring outputs that are read; [SPE] is the first.

        Returns:
            Unit vectors, [SPE] first, ``(batch, 1 + tokens, D)``, or those of ``read``.
        """
        spe = self.spe_token.expand(tokens.shape[0], 1, -1)
        states = torch.cat([spe.to(tokens.dtype), tokens], dim=1)
        valid = nn.functional.pad(token_mask.bool(), (1, 0), value=True)[:, None, :]
        mask = additive_mask(valid, states.dtype).expand(-1, -1, states.shape[1], -1)
        groups = [TokenGroup(route, states.shape[1])]
        return self.likelihood.embed(self.decoder(states, mask, groups, step_seed, read=read))

    def decode_image(self, encoding: ImageEncoding, route: str, step_seed: int | None = None) -> Tensor:
        """g(f(x)) of images, computed once for each route of an encoding.

        Args:
            encoding: Of the images.
            route: Key of ``ROUTES``.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors of [SPE], pooled, grid and proposal tokens, ``(batch, 1 + tokens, D)``.

        Raises:
            ValueError: If the weights changed since the encoding was made.
        """
        if self.training:
            return self.run_decoder(encoding.tokens, encoding.token_mask, route, step_seed)
        self.check_encoding(encoding)
        if route not in encoding.decoded:
            encoding.decoded[route] = self.run_decoder(encoding.tokens, encoding.token_mask, route)
        return encoding.decoded[route]

    def decode_text(
        self, input_ids: Tensor, attention_mask: Tensor, route: str, step_seed: int | None = None, read: slice = ALL
    ) -> Tensor:
        """g(f(x)) of texts.

        Args:
            input_ids: ``(batch, tokens)``.
            attention_mask: 1 = real token, ``(batch, tokens)``.
            route: Key of ``ROUTES``.
            step_seed: Seed of the gate noise in training.
            read: Neighbouring outputs that are read; [SPE] is the first.

        Returns:
            Unit vectors, [SPE] first, ``(batch, 1 + tokens, D)``, or those of ``read``.
        """
        tokens = self.encode_text(input_ids, attention_mask) + self.text_type
        return self.run_decoder(tokens, attention_mask, route, step_seed, read)

    def decode_caption(
        self,
        layout: CaptionLayout,
        image_tokens: Tensor | None,
        prefix_mask: Tensor,
        cache: Cache | None = None,
        step_seed: int | None = None,
    ) -> Tensor:
        """Run g over an image, words and slots; only the slots are read.

        Args:
            layout: Words and slots of this pass.
            image_tokens: Tokens of an encoding, ``(batch, image tokens, D)``; None if ``cache`` already holds them.
            prefix_mask: True for [SPE] and real image tokens, ``(batch, 1 + image tokens)``.
            cache: Keys and values of earlier passes; this pass adds the image and the words, never the slots.
            step_seed: Seed of the gate noise in training.

        Returns:
            Unit vectors of the slots, ``(batch, slots, D)``.
        """
        dtype = self.spe_token.dtype
        text_mask = additive_mask(layout.allowed, dtype)
        states = self.text_encoder(layout.input_ids, layout.position_ids, text_mask, cache, layout.num_words)
        states = states + self.text_type
        length = states.shape[1]
        seen = prefix_mask[:, None, :].expand(-1, length, -1)
        allowed = torch.cat([seen, layout.allowed], dim=2)
        groups = [TokenGroup("caption_text", length)]
        num_kept = layout.num_words
        if image_tokens is not None:
            prefix = prefix_mask.shape[1]
            spe = self.spe_token.expand(states.shape[0], 1, -1)
            states = torch.cat([spe.to(dtype), image_tokens, states], dim=1)
            unseen = allowed.new_zeros(states.shape[0], prefix, layout.allowed.shape[2])
            image_rows = torch.cat([prefix_mask[:, None, :].expand(-1, prefix, -1), unseen], dim=2)
            allowed = torch.cat([image_rows, allowed], dim=1)
            groups = [TokenGroup("caption_image", prefix), *groups]
            num_kept += prefix
        mask = additive_mask(allowed, dtype)
        slots = slice(states.shape[1] - length + layout.num_words, None)
        return self.likelihood.embed(self.decoder(states, mask, groups, step_seed, cache, num_kept, slots))

    def check_encoding(self, encoding: ImageEncoding) -> None:
        """Refuse an encoding that other weights made.

        Raises:
            ValueError: If the weights changed since.
        """
        if encoding.fingerprint is None or torch.compiler.is_compiling():
            return
        if encoding.fingerprint != weights_fingerprint(self):
            raise ValueError(
                "`image_encoding` must come from the present weights, but they changed since it was made. "
                "Call `encode_image` again."
            )

    @torch.no_grad()
    def merge_experts(self, tasks: Sequence[str] | None = None) -> None:
        """Deploy: replace the experts by one dense network for each route, in place, with the same outputs.

        The merged model is saved and loaded like any other; it cannot be trained further as a mixture.

        Args:
            tasks: Keys of ``TASKS`` that must still work; None: all. The routes of other tasks are given up.

        Raises:
            ValueError: If there is no such task, or the model is merged already and lacks a route.
        """
        routes = routes_of(tasks)
        self.decoder.merge_experts(routes)
        self.config.decoder_config.merged_routes = routes

    @records_input
    def get_image_features(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        **_: Any,
    ) -> UniPerceiverV2ModelOutput:
        """Embed images for retrieval; ``pooler_output`` is the unit vector, ``(batch, D)``."""
        encoding = self.resolve_encoding(pixel_values, pixel_mask, image_encoding)
        states = self.decode_image(encoding, TASKS["retrieval"].input_routes[0])
        return UniPerceiverV2ModelOutput(last_hidden_state=states, pooler_output=states[:, 0])

    @records_input
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> UniPerceiverV2ModelOutput:
        """Embed texts for retrieval; ``pooler_output`` is the unit vector, ``(batch, D)``."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        states = self.decode_text(input_ids, attention_mask, TASKS["retrieval"].candidate_route)
        return UniPerceiverV2ModelOutput(last_hidden_state=states, pooler_output=states[:, 0])

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        **kwargs: Any,
    ) -> UniPerceiverV2ModelOutput:
        """Embed images or texts.

        Args:
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            input_ids: ``(batch, tokens)``.
            attention_mask: 1 = real token, ``(batch, tokens)``.
            image_encoding: In place of ``pixel_values``.
            **kwargs: ``output_hidden_states``, ``output_attentions``, ``return_dict``.

        Raises:
            ValueError: If there is neither an image nor a text, or both.
        """
        has_image = pixel_values is not None or image_encoding is not None
        if has_image == (input_ids is not None):
            raise ValueError(
                "Pass either an image (`pixel_values` or `image_encoding`) or a text (`input_ids`), "
                f"got {'both' if has_image else 'neither'}."
            )
        if input_ids is None:
            return self.get_image_features(pixel_values, pixel_mask, image_encoding=image_encoding, **kwargs)
        return self.get_text_features(input_ids, attention_mask, **kwargs)

    def resolve_encoding(
        self,
        pixel_values: Tensor | None,
        pixel_mask: Tensor | None,
        image_encoding: ImageEncoding | None,
        *,
        keep_mask_features: bool = False,
    ) -> ImageEncoding:
        """Take the encoding, or perceive the images.

        Raises:
            ValueError: If neither or both are given, or if masks are asked of an encoding that kept none.
        """
        if pixel_values is not None and image_encoding is None:
            return self.encode_image(pixel_values, pixel_mask, keep_mask_features=keep_mask_features)
        if image_encoding is None or pixel_values is not None:
            raise ValueError(
                f"Pass either `pixel_values` or `image_encoding`, got {'neither' if pixel_values is None else 'both'}."
            )
        if keep_mask_features and image_encoding.mask_features is None:
            raise ValueError("Full masks need an encoding made with `encode_image(..., keep_mask_features=True)`.")
        return image_encoding
