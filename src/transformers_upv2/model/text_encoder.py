"""The text encoder f_text (Eq. 4): the last hidden states of RoBERTa, under any attention mask.

The layers are those of a BERT-like encoder of transformers, but they are walked here: its own forward builds a
bidirectional mask and keeps no cache, while a caption's slots need both (design of the captioning task).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.cache_utils import Cache

from .attention import attend, extend_cache, split_heads

BERT_LIKE = ("bert", "camembert", "data2vec-text", "roberta", "xlm-roberta")
"""Model types of transformers whose layers can be walked as here."""


def check_text_config(config: PreTrainedConfig) -> None:
    """Refuse an encoder whose layers are not those of BERT.

    Raises:
        ValueError: If the model type is another.
    """
    if config.model_type not in BERT_LIKE:
        raise ValueError(
            f"The text encoder must be a model of one of the types {list(BERT_LIKE)}, got {config.model_type!r}."
        )


class TextEncoder(nn.Module):
    """A BERT-like encoder and, where its width is not D, a Linear.

    Args:
        config: Config of the encoder; special ids, position offset and width are its own.
        hidden_size: Width D of the tokens that come out.
    """

    def __init__(self, config: PreTrainedConfig, hidden_size: int) -> None:
        super().__init__()
        check_text_config(config)
        self.encoder = AutoModel.from_config(config, add_pooling_layer=False)
        self.output_projection = (
            nn.Identity() if config.hidden_size == hidden_size else nn.Linear(config.hidden_size, hidden_size)
        )

    @property
    def num_layers(self) -> int:
        """Transformer layers, which take the first places of a shared cache."""
        return len(self.encoder.encoder.layer)

    def position_ids(self, attention_mask: Tensor) -> Tensor:
        """Number the real tokens of each row as the encoder was trained to.

        RoBERTa starts behind its padding id and gives padding that id; BERT starts at 0.

        Args:
            attention_mask: ``(batch, tokens)``, 1 = real token.

        Returns:
            ``(batch, tokens)``.
        """
        padding = self.encoder.embeddings.position_embeddings.padding_idx
        first = -1 if padding is None else padding
        positions = attention_mask.long().cumsum(dim=1) * attention_mask.long()
        return (positions + first).clamp(min=0)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        num_kept: int = 0,
    ) -> Tensor:
        """Encode tokens.

        Args:
            input_ids: ``(batch, tokens)``.
            position_ids: ``(batch, tokens)``, see `position_ids`.
            mask: Additive attention mask, ``(batch, 1, tokens, cached + tokens)``.
            cache: Keys and values of earlier tokens; the first ``num_kept`` of these tokens are added.
            num_kept: Tokens that later calls may attend to.

        Returns:
            ``(batch, tokens, D)``.

        Raises:
            ValueError: If the text is longer than the encoder has positions.
        """
        limit = self.encoder.config.max_position_embeddings
        is_known = not (torch.compiler.is_compiling() or position_ids.is_meta)
        if is_known and int(position_ids.max()) >= limit:
            raise ValueError(
                f"`input_ids` must stay within the text encoder's {limit} positions, got position "
                f"{int(position_ids.max())}. Truncate the text."
            )
        states = self.encoder.embeddings(
            input_ids=input_ids,
            position_ids=position_ids,
            token_type_ids=torch.zeros_like(input_ids),
        )
        for index, layer in enumerate(self.encoder.encoder.layer):
            run = partial(_run_layer, layer, mask=mask, cache=cache, index=index, num_kept=num_kept)
            if layer.gradient_checkpointing and layer.training and torch.is_grad_enabled() and cache is None:
                states = layer._gradient_checkpointing_func(run, states)
            else:
                states = run(states)
        return self.output_projection(states)


def _run_layer(layer: Any, states: Tensor, *, mask: Tensor, cache: Cache | None, index: int, num_kept: int) -> Tensor:
    """Run one layer of the encoder, ``(batch, tokens, width)``, which takes the place ``index`` of a cache."""
    attention = layer.attention.self
    query, key, value = (
        split_heads(projection(states), attention.num_attention_heads)
        for projection in (attention.query, attention.key, attention.value)
    )
    key, value = extend_cache(cache, index, key, value, num_kept)
    context, _ = attend(attention, query, key, value, mask, dropout=attention.dropout.p)
    states = layer.attention.output(context, states)
    return layer.output(layer.intermediate(states), states)
