"""Candidates: label sets and the vocabulary, encoded once and kept until the weights change."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def weights_fingerprint(module: nn.Module) -> int:
    """A number that changes whenever a weight is replaced or written in place, as by an optimizer's step."""
    return hash(tuple((p.data_ptr(), p._version, p.dtype) for p in module.parameters()))


class CandidateCache:
    """Encoded candidates by what they are and for which route, valid for one state of the weights.

    Never part of a state dict; empty while the model trains.
    """

    def __init__(self) -> None:
        self._fingerprint: int | None = None
        self._entries: dict[Any, Tensor] = {}

    def get(self, model: nn.Module, key: Any, encode: Callable[[], Tensor]) -> Tensor:
        """Return the candidates, encoding them unless they are kept.

        Args:
            model: Whose weights encode.
            key: What is encoded; hashable.
            encode: Does it, without gradient.

        Returns:
            Unit vectors, ``(candidates, D)``.
        """
        fingerprint = weights_fingerprint(model)
        if fingerprint != self._fingerprint:
            self.clear()
            self._fingerprint = fingerprint
        if key not in self._entries:
            with torch.no_grad():
                self._entries[key] = encode()
        return self._entries[key]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._fingerprint = None


def predictable_ids(config: PreTrainedConfig) -> Tensor:
    """Token ids of the vocabulary that can be predicted: all but ``<s> <pad> <unk> <mask>``, ascending."""
    excluded = [config.bos_token_id, config.pad_token_id, config.unk_token_id, config.mask_token_id]
    ids = torch.arange(config.vocab_size)
    return ids[~torch.isin(ids, torch.tensor(excluded))]


def freeze_ids(token_ids: Sequence[Sequence[Sequence[int]]]) -> tuple:
    """Make the token ids of a label set hashable."""
    return tuple(tuple(tuple(ids) for ids in variants) for variants in token_ids)


def pad_ids(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack token id lists of different lengths.

    Args:
        rows: Token ids with ``<s>`` and ``</s>``.
        pad_token_id: Fills the right side.
        device: Where the tensors go.

    Returns:
        ``input_ids`` and ``attention_mask``, ``(rows, longest)``.
    """
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids.to(device), attention_mask.to(device)


def average_variants(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """Average the unit vectors of each label's variants (templates, synonyms) and normalize again.

    Args:
        embeddings: Of all variants in order, ``(variants, D)``.
        counts: Variants of each label.

    Returns:
        ``(labels, D)``.
    """
    if all(count == 1 for count in counts):
        return embeddings
    label = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts), output_size=len(embeddings)).to(
        embeddings.device
    )
    sums = embeddings.new_zeros(len(counts), embeddings.shape[1]).index_add(0, label, embeddings)
    return F.normalize(sums, dim=-1)


def build_label_set(
    labels: Sequence[str] | dict[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    templates: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Tokenize labels for the config.

    Args:
        labels: Names, or names with their synonyms.
        tokenizer: The model's tokenizer.
        templates: Sentences with one ``{}``; each label is put into each. None: the bare name, as the paper's.

    Returns:
        ``{"names": [str], "token_ids": [[[int]]]}``.

    Raises:
        ValueError: If there is no label, an empty or a double one, or a template without ``{}``.
    """
    names = list(labels)
    if not names or len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ValueError(f"`labels` must be different non-empty names, got {names}.")
    for template in templates or ():
        if "{}" not in template:
            raise ValueError(f"Each of `templates` must contain '{{}}', got {template!r}.")
    synonyms = labels if isinstance(labels, dict) else {name: [name] for name in names}
    token_ids = [
        [
            tokenizer(template.format(synonym))["input_ids"]
            for synonym in synonyms[name]
            for template in templates or ("{}",)
        ]
        for name in names
    ]
    return {"names": names, "token_ids": token_ids}
