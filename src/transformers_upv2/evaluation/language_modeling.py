"""Accuracy of guessing masked words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from transformers_upv2.data.masking import (
    IGNORED_LABEL,
    MaskingVocabulary,
    mask_whole_words,
    number_words,
)
from transformers_upv2.evaluation.evaluator import (
    TaskEvaluator,
    iterate_batches,
    prediction_mode,
    text_inputs,
    to_model,
)
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForMaskedLM,
    UniPerceiverV2TaskModel,
)

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class MaskedWordPredictions:
    """The words that were asked for and the answers, each word as its token ids.

    Attributes:
        words: The true words.
        answers: The predicted ones, each with as many tokens as were masked.
    """

    words: Sequence[TokenIds]
    answers: Sequence[TokenIds]


@dataclass
class LanguageModelingEvaluator(TaskEvaluator[MaskedWordPredictions]):
    """Share of masked words that are guessed whole.

    Inputs: examples with ``text``.
    Not stated in the paper, chosen here: every token of a chosen word is hidden (none is kept or
    replaced as in training), and the choice depends on `seed` and the example's index alone.

    Attributes:
        probability: Share of the words that are masked.
        seed: Chooses the words.
    """

    task_class: type[UniPerceiverV2TaskModel] | None = UniPerceiverV2ForMaskedLM
    probability: float = 0.15
    seed: int = 0

    def predict(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: Dataset,
        *,
        batch_size: int = 16,
        progress: bool = True,
    ) -> MaskedWordPredictions:
        """Guess the masked words of every text."""
        view = self.view(model)
        vocabulary = MaskingVocabulary.from_tokenizer(processor.tokenizer)
        words: list[TokenIds] = []
        answers: list[TokenIds] = []
        num_seen = getattr(dataset, "first_index", 0)  # of a part of a dataset
        with prediction_mode(view):
            for examples in iterate_batches(dataset, batch_size, "language modeling", progress):
                texts = [example["text"] for example in examples]
                inputs = text_inputs(processor, texts, view)
                ids = inputs["input_ids"].cpu()
                lengths = inputs["attention_mask"].sum(dim=1).tolist()
                masked, labels = self.mask_batch(ids, lengths, vocabulary, num_seen)
                inputs |= to_model({"input_ids": masked}, view)
                guesses = view(**inputs).logits.argmax(dim=-1).cpu()
                words += _group_words(ids, ids, labels, vocabulary)
                answers += _group_words(guesses, ids, labels, vocabulary)
                num_seen += len(examples)
        return MaskedWordPredictions(words, answers)

    def asked_words(self, tokenizer: PreTrainedTokenizerBase, dataset: Dataset) -> list[TokenIds]:
        """Return the words that `predict` asks for, without a view."""
        vocabulary = MaskingVocabulary.from_tokenizer(tokenizer)
        words: list[TokenIds] = []
        for index in range(len(dataset)):  # type: ignore[arg-type]
            inputs = tokenizer([dataset[index]["text"]], truncation=True, return_tensors="pt")
            ids = inputs["input_ids"]
            _, labels = self.mask_batch(ids, [ids.shape[1]], vocabulary, index)
            words += _group_words(ids, ids, labels, vocabulary)
        return words

    def mask_batch(
        self,
        input_ids: Tensor,
        lengths: Sequence[int],
        vocabulary: MaskingVocabulary,
        first_index: int,
    ) -> tuple[Tensor, Tensor]:
        """Hide words of each row by its own generator, whatever the batch is.

        Args:
            input_ids: Right-padded rows, ``(batch, length)``.
            lengths: Number of tokens of each row without the padding.
            vocabulary: The tokens' properties.
            first_index: Index of the first row in the dataset.

        Returns:
            Masked ids and labels, both ``(batch, length)``.
        """
        masked, labels = input_ids.clone(), torch.full_like(input_ids, IGNORED_LABEL)
        for row, length in enumerate(lengths):
            rng = np.random.default_rng([self.seed, first_index + row])
            real = slice(row, row + 1), slice(length)
            masked[real], labels[real] = mask_whole_words(
                input_ids[real], vocabulary, rng, self.probability, mask_share=1, random_share=0
            )
        return masked, labels

    def join(self, parts: Sequence[MaskedWordPredictions]) -> MaskedWordPredictions:
        """Put parts together."""
        return MaskedWordPredictions(
            [word for part in parts for word in part.words], [answer for part in parts for answer in part.answers]
        )

    def score(self, predictions: MaskedWordPredictions) -> dict[str, float]:
        """Return ``masked_accuracy`` of words and ``masked_token_accuracy`` of tokens.

        Raises:
            ValueError: If no word was masked.
        """
        pairs = list(zip(predictions.words, predictions.answers, strict=True))
        if not pairs:
            raise ValueError("`dataset` must hold at least one word, got empty texts only.")
        num_tokens = sum(len(word) for word, _ in pairs)
        num_right = sum(a == b for word, answer in pairs for a, b in zip(word, answer))
        return {
            "masked_accuracy": sum(word == answer for word, answer in pairs) / len(pairs),
            "masked_token_accuracy": num_right / num_tokens,
        }


def text_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[TokenIds]:
    """Return all words of some texts, each as its token ids."""
    vocabulary = MaskingVocabulary.from_tokenizer(tokenizer)
    ids = [torch.tensor([row]) for row in tokenizer(list(texts), truncation=True)["input_ids"]]
    return [word for row in ids for word in _group_words(row, row, row, vocabulary)]


def _group_words(
    token_ids: Tensor, input_ids: Tensor, labels: Tensor, vocabulary: MaskingVocabulary
) -> list[TokenIds]:
    """Cut the asked positions of `token_ids` into the words of `input_ids`."""
    numbers = torch.from_numpy(number_words(input_ids.numpy(), vocabulary))
    groups: list[TokenIds] = []
    for row_ids, row_numbers, row_labels in zip(token_ids, numbers, labels, strict=True):
        asked = row_labels != IGNORED_LABEL
        groups.extend(
            tuple(row_ids[row_numbers == number].tolist())
            for number in row_numbers[asked & (row_numbers >= 0)].unique_consecutive()
        )
    return groups
