"""Train the demo world's tokenizer: RoBERTa's byte-level BPE on the words of the world.

Reference: RoBERTa, section 4.4 (https://arxiv.org/abs/1907.11692); the special ids are RoBERTa's.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import RobertaTokenizer

VOCABULARY_SIZE = 512
FIRST_TOKENS, MASK_TOKEN = ["<s>", "<pad>", "</s>", "<unk>"], "<mask>"


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE, max_length: int = 64
) -> RobertaTokenizer:
    """Train a tokenizer in which a word at the start of a text equals one after a space.

    Args:
        texts: Texts to learn the merges from.
        vocabulary_size: Number of tokens, the 256 bytes and 5 special tokens included; less if the
            texts have too few words for it.
        max_length: Longest input in tokens that the tokenizer states (``model_max_length``).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 1,  # the mask token is put behind all others
        special_tokens=FIRST_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**trained["vocab"], MASK_TOKEN: len(trained["vocab"])}
    return RobertaTokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in trained["merges"]],  # type: ignore[misc]
        add_prefix_space=True,
        model_max_length=max_length,
    )
