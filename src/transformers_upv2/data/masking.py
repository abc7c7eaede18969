"""Choose the words of a text that a masked language model has to guess.

Reference: Uni-Perceiver v2, section 4.3 names masked language modeling
(https://arxiv.org/abs/2211.09808); the rates are BERT's (https://arxiv.org/abs/1810.04805).
Not stated in the paper, chosen here: whole words are asked for, never a part of one;
of every text that has a word at least one is asked; punctuation is a word of its own.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED_LABEL = -100
_SPACE_MARKS = ("Ġ", "Ċ", "ĉ")  # space, line feed and tab as byte-level BPE writes them


@dataclass(frozen=True)
class MaskingVocabulary:
    """What masking must know about the tokens of a byte-level BPE.

    Attributes:
        mask_token_id: The id that hides a token.
        is_special: Tokens that belong to no word, such as ``<s>`` and ``<pad>``, ``(vocab_size,)``.
        starts_with_space: Tokens that begin a word, ``(vocab_size,)``.
        is_space: Tokens that are a space and nothing else, ``(vocab_size,)``.
        is_punctuation: Other tokens without a letter or digit, ``(vocab_size,)``.
    """

    mask_token_id: int
    is_special: np.ndarray
    starts_with_space: np.ndarray
    is_space: np.ndarray
    is_punctuation: np.ndarray

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Read the vocabulary of a RoBERTa-like tokenizer.

        Raises:
            ValueError: If the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise ValueError("`tokenizer` must have a mask token, got none. Set `mask_token`.")
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        is_special = np.zeros(len(tokens), dtype=bool)
        is_special[tokenizer.all_special_ids] = True
        return cls(
            mask_token_id=tokenizer.mask_token_id,
            is_special=is_special,
            starts_with_space=np.array([token.startswith(_SPACE_MARKS) for token in tokens]),
            is_space=np.array([not _without_space(token) for token in tokens]),
            is_punctuation=np.array([_is_punctuation(_without_space(token)) for token in tokens]),
        )


def number_words(input_ids: np.ndarray, vocabulary: MaskingVocabulary) -> np.ndarray:
    """Tell which word of its row each token belongs to.

    Args:
        input_ids: Token ids, ``(batch, length)``.
        vocabulary: The tokens' properties.

    Returns:
        The number of the word, from 0 in every row, and -1 at special tokens, ``(batch, length)``.
    """
    is_special = vocabulary.is_special[input_ids]
    is_punctuation = vocabulary.is_punctuation[input_ids]
    starts_word = vocabulary.starts_with_space[input_ids]
    changes_kind = is_punctuation[:, 1:] != is_punctuation[:, :-1]
    starts_word[:, 1:] |= is_special[:, :-1] | (changes_kind & ~vocabulary.is_space[input_ids[:, :-1]])
    starts_word[:, :1] = True
    starts_word &= ~is_special
    return np.where(is_special, -1, starts_word.cumsum(axis=1) - 1)


def mask_whole_words(
    input_ids: Tensor,
    vocabulary: MaskingVocabulary,
    rng: np.random.Generator,
    probability: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Hide a share of the words of each row.

    Args:
        input_ids: Token ids, special tokens and padding included, ``(batch, length)`` int64.
        vocabulary: The tokens' properties.
        rng: The only source of randomness.
        probability: Share of the words of a row that are asked for, in (0, 1].
        mask_share: Share of the asked tokens that become the mask token.
        random_share: Share of the asked tokens that become any other token; the rest stays.

    Returns:
        The masked ids and the labels (the true id where asked, -100 elsewhere), both
        ``(batch, length)`` int64.

    Raises:
        ValueError: If a share is out of range.
    """
    if not 0 < probability <= 1:
        raise ValueError(f"`probability` must lie in (0, 1], got {probability}.")
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
        raise ValueError(
            "`mask_share` and `random_share` must be at least 0 and at most 1 together, "
            f"got {mask_share} and {random_share}."
        )
    ids = input_ids.cpu().numpy()
    asked = _choose_words(number_words(ids, vocabulary), rng, probability)
    fate = rng.random(ids.shape)
    ordinary_ids = np.flatnonzero(~vocabulary.is_special)
    replacements = ordinary_ids[rng.integers(len(ordinary_ids), size=ids.shape)]
    masked = np.where(asked & (fate < mask_share), vocabulary.mask_token_id, ids)
    is_random = asked & (fate >= mask_share) & (fate < mask_share + random_share)
    masked = np.where(is_random, replacements, masked)
    labels = np.where(asked, ids, IGNORED_LABEL)
    return torch.from_numpy(masked).to(input_ids), torch.from_numpy(labels).to(input_ids)


def _choose_words(words: np.ndarray, rng: np.random.Generator, probability: float) -> np.ndarray:
    """Mark all tokens of the chosen words, ``(batch, length)`` bool."""
    num_words = words.max(axis=1, initial=-1) + 1  # (batch,)
    num_chosen = np.maximum(np.rint(probability * num_words), 1)  # (batch,)
    priority = rng.random(words.shape)
    priority[np.arange(words.shape[1]) >= num_words[:, None]] = np.inf
    rank = priority.argsort(axis=1).argsort(axis=1)  # of each word, in the order of their numbers
    is_chosen = rank < num_chosen[:, None]
    return np.take_along_axis(is_chosen, np.maximum(words, 0), axis=1) & (words >= 0)


def _without_space(token: str) -> str:
    return token.lstrip("".join(_SPACE_MARKS))


def _is_punctuation(characters: str) -> bool:
    return bool(characters) and not any(character.isalnum() for character in characters)
