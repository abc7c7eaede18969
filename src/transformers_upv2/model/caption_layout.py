"""How a caption is laid out: words, and slots that predict them (design of the captioning task).

The sequence is ``<s> w_1..w_T`` followed by slots ``s_1..s_{T+1}``. Slot i is a ``<mask>`` with the position of w_i;
it sees the image, ``<s>``, the words before w_i and itself, and predicts w_i, the last one ``</s>``. The text encoder
runs under the same mask as g, or future words would leak through it.

Not stated in the paper, chosen here: masks inside RoBERTa as well (the layout itself is inherited from Uni-Perceiver).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CaptionLayout:
    """Tokens of one pass: words that later passes may see, then slots that nobody sees.

    Args:
        input_ids: Words and slots, ``(batch, words + slots)``.
        position_ids: ``(batch, words + slots)``.
        allowed: What each may attend to, ``(batch, words + slots, cached + words + slots)``.
        num_words: Leading tokens that are words.
    """

    input_ids: Tensor
    position_ids: Tensor
    allowed: Tensor
    num_words: int


def training_layout(
    input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, mask_token_id: int
) -> CaptionLayout:
    """Lay out whole captions with a slot for every word.

    Args:
        input_ids: ``<s> w_1..w_T </s>``, padded on the right, ``(batch, T + 2)``.
        attention_mask: 1 = real token, ``(batch, T + 2)``.
        position_ids: Of these tokens, ``(batch, T + 2)``.
        mask_token_id: The slots' token.

    Returns:
        T + 1 words (``<s>`` first) and T + 1 slots.
    """
    length = input_ids.shape[1] - 1
    index = torch.arange(length, device=input_ids.device)
    valid = attention_mask[:, None, :-1].bool()  # (batch, 1, words)
    word_to_word = (index[None, :] <= index[:, None]) & valid
    # slot i stands at column i - 1 and sees the words 0..i-1, the same columns as word i - 1 does
    slot_to_word = word_to_word
    itself = torch.eye(length, dtype=torch.bool, device=input_ids.device).expand_as(word_to_word)
    allowed = torch.cat(
        [
            torch.cat([word_to_word, torch.zeros_like(itself)], dim=2),
            torch.cat([slot_to_word, itself], dim=2),
        ],
        dim=1,
    )
    slots = torch.full_like(input_ids[:, 1:], mask_token_id)
    return CaptionLayout(
        input_ids=torch.cat([input_ids[:, :-1], slots], dim=1),
        position_ids=torch.cat([position_ids[:, :-1], position_ids[:, 1:]], dim=1),
        allowed=allowed,
        num_words=length,
    )


def step_layout(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, mask_token_id: int) -> CaptionLayout:
    """Lay out the new words of a generation step and the one slot that predicts the next.

    Args:
        input_ids: New words, ``(batch, new)``.
        attention_mask: 1 = real token, of all words so far, ``(batch, cached + new)``.
        position_ids: Of all words so far, ``(batch, cached + new)``.
        mask_token_id: The slot's token.

    Returns:
        The new words and one slot.
    """
    new, total = input_ids.shape[1], attention_mask.shape[1]
    index = torch.arange(total, device=input_ids.device)
    valid = attention_mask.bool()
    word_to_word = (index[None, :] <= index[total - new :, None]) & valid[:, None, :]
    words = torch.nn.functional.pad(word_to_word, (0, 1))  # (batch, new, total + 1)
    slot = torch.nn.functional.pad(valid[:, None, :], (0, 1), value=True)  # (batch, 1, total + 1)
    slot_ids = torch.full_like(input_ids[:, :1], mask_token_id)
    return CaptionLayout(
        input_ids=torch.cat([input_ids, slot_ids], dim=1),
        position_ids=torch.cat([position_ids[:, total - new :], position_ids[:, -1:] + 1], dim=1),
        allowed=torch.cat([words, slot], dim=1),
        num_words=new,
    )
