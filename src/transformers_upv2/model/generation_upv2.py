"""Captioning with ``generate()``: each step is one pass over the chosen word and the slot that predicts the next."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMode
from transformers.utils.deprecation import deprecate_kwarg

from .caption_layout import step_layout
from .image_encoding import ImageEncoding
from .modeling_tasks_upv2 import UniPerceiverV2TaskModel
from .outputs import VocabularyOutput
from .task_forward import captioning, match_texts, prefix_mask, vocabulary_logits


@dataclass
class CaptioningOutput(VocabularyOutput):
    """``logits`` of the next word, ``(batch, 1, vocab_size)``.

    Args:
        cache: Keys and values of the image and the words so far; never of a slot.
    """

    cache: Cache | None = None


class UniPerceiverV2ForConditionalGeneration(UniPerceiverV2TaskModel, GenerationMixin):
    """Image captioning.

    Example:
        ```python
        inputs = processor(images=image, return_tensors="pt")
        ids = model.generate(**inputs, num_beams=3, max_new_tokens=30)
        processor.batch_decode(ids, skip_special_tokens=True)
        ```
    """

    main_input_name = "input_ids"
    _can_compile_fullgraph = False  # a static cache would be sized for the words alone
    # a pass has one slot, so it cannot check several guessed words as assisted generation does
    _supported_generation_modes = (
        GenerationMode.GREEDY_SEARCH,
        GenerationMode.SAMPLE,
        GenerationMode.BEAM_SEARCH,
        GenerationMode.BEAM_SAMPLE,
    )

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> CaptioningOutput:
        """Predict the next word of each caption.

        Args:
            input_ids: Words that are not in the cache, ``<s>`` first of all, ``(batch, new)``.
            attention_mask: 1 = real token, of all words so far, ``(batch, cached + new)``.
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            image_encoding: In place of ``pixel_values``.
            cache: Keys and values of earlier words.
            labels: Whole captions ``<s> words </s>``, padded with -100 or the padding id, to get a loss.
            use_cache: Make a cache if there is none.

        Returns:
            Logits of the next word ``(batch, 1, vocab_size)`` and the cache.
        """
        model = self.model
        if labels is not None:
            padding = model.config.pad_token_id
            ids = labels.masked_fill(labels < 0, padding)
            mask = (ids != padding).long()
            output = captioning(model, pixel_values, pixel_mask, image_encoding, input_ids=ids, attention_mask=mask)
            return CaptioningOutput(**output)
        encoding = model.resolve_encoding(pixel_values, pixel_mask, image_encoding)
        if input_ids is None:
            input_ids = torch.full((len(encoding), 1), model.config.bos_token_id, device=model.device)
        encoding = match_texts(encoding, len(input_ids))
        if cache is None and use_cache:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        layout = step_layout(
            input_ids,
            attention_mask,
            model.text_encoder.position_ids(attention_mask),
            model.config.mask_token_id,
        )
        if past == 0:  # later passes read the image from the cache
            model.check_encoding(encoding)
        slots = model.decode_caption(layout, encoding.tokens if past == 0 else None, prefix_mask(encoding), cache)
        return CaptioningOutput(logits=vocabulary_logits(model, slots), cache=cache)

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write captions, greedy, sampled or with beams, with the options of `transformers.GenerationMixin.generate`.

        Args:
            inputs: A caption's beginning, ``<s>`` first and without ``</s>``, padded on the left, ``(batch, tokens)``;
                None: just ``<s>``. The keyword ``input_ids`` is the same.
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            image_encoding: In place of ``pixel_values``; one image serves any number of beginnings.
            **kwargs: Generation options, and the ``attention_mask`` of ``inputs``.

        Returns:
            Token ids with ``<s>``, or what the options ask for.

        Raises:
            ValueError: If there are several images and another number of beginnings, or for assisted generation,
                ``inputs_embeds``, guidance or a ``cache_implementation`` other than ``"dynamic"``.
        """
        encoding = self.model.resolve_encoding(pixel_values, pixel_mask, image_encoding)
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None:
            input_ids = torch.full((len(encoding), 1), self.config.bos_token_id, device=self.device)
        encoding = match_texts(encoding, len(input_ids))
        return super().generate(input_ids, image_encoding=encoding, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of a step of `generate`; without ``inputs_embeds``, since RoBERTa reads words and slots as ids."""
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[GenerationConfig, dict[str, Any]]:
        options, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        if options.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                "`cache_implementation` must be 'dynamic', since the cache holds the layers of two networks, one with "
                f"the image and one without, got {options.cache_implementation!r}. Leave it out."
            )
        if options.guidance_scale not in (None, 1):
            raise ValueError(
                "`guidance_scale` must be 1, since guidance compares with words that follow no image, and every "
                f"caption has one, got {options.guidance_scale}. Leave it out."
            )
        return options, model_kwargs

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        # transformers would size it for the text encoder's layers; ours holds the decoder's as well
        if generation_config.use_cache and model_kwargs.get("cache") is None:
            model_kwargs["cache"] = DynamicCache()

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[torch.LongTensor, dict[str, Any]]:
        encoding = model_kwargs.pop("image_encoding", None)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        if encoding is not None:
            model_kwargs["image_encoding"] = encoding if expand_size == 1 else encoding.repeat_interleave(expand_size)
        return input_ids, model_kwargs
