"""Tokenizers that fit the model: of a folder without one transformers makes an empty one, in silence."""

from typing import Any

from transformers import PreTrainedTokenizerBase, RobertaTokenizer

from .configuration_upv2 import UniPerceiverV2Config


class FolderTokenizer:
    """What ``AutoTokenizer`` loads from a folder that names no tokenizer: RoBERTa's, if its files are there."""

    @staticmethod
    def from_pretrained(*args: Any, **kwargs: Any) -> RobertaTokenizer:
        """Load a `RobertaTokenizer`; the arguments are its own.

        Raises:
            ValueError: If the folder holds no words.
        """
        tokenizer = RobertaTokenizer.from_pretrained(*args, **kwargs)
        require_words(tokenizer)
        return tokenizer


def require_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without words.

    Raises:
        ValueError: If it knows nothing but its special tokens.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(
            f"`tokenizer` must know words, got only its {len(tokenizer)} special tokens: there is no `tokenizer.json` "
            f"in '{tokenizer.name_or_path}'. Save the model's processor there too, "
            "`AutoProcessor.from_pretrained(original_folder).save_pretrained(folder)`."
        )


def require_fit(tokenizer: PreTrainedTokenizerBase, config: UniPerceiverV2Config) -> None:
    """Refuse a tokenizer of another model.

    Raises:
        ValueError: If it has no words, another mask token, or more tokens than the model.
    """
    require_words(tokenizer)
    if tokenizer.mask_token_id != config.mask_token_id or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"`tokenizer` must be the model's, with at most {config.vocab_size} tokens and the mask token "
            f"{config.mask_token_id}, got {len(tokenizer)} tokens and the mask token {tokenizer.mask_token_id}. "
            "Load it from the model's folder."
        )
