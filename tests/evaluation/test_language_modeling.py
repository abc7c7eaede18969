import numpy as np
import pytest
import torch
from heart_models import HeartModel, ListDataset
from transformers.utils import ModelOutput

from transformers_upv2.data.masking import MaskingVocabulary
from transformers_upv2.evaluation.language_modeling import (
    LanguageModelingEvaluator,
    MaskedWordPredictions,
    text_words,
)

TEXTS = [
    "a red circle above the big blue square.",
    "two small green stars",
    "unheard vocabulary makes longer words, and the rest is a red square on a dark background",
]


class MaskedReader(HeartModel):
    """Answers with the token ids of `answer(texts seen so far)`, and keeps what it was shown."""

    def __init__(self, tokenizer, answers):
        super().__init__(answer=None)
        self.vocab_size, self.answers = len(tokenizer), list(answers)
        self.shown = []

    def forward(self, input_ids, attention_mask):
        assert not self.training
        self.shown += [row[mask.bool()] for row, mask in zip(input_ids, attention_mask)]
        ids = torch.full_like(input_ids, 5)
        for row in range(len(ids)):
            answer = self.answers.pop(0)
            ids[row, : len(answer)] = answer
        logits = torch.nn.functional.one_hot(ids, self.vocab_size).float()
        return ModelOutput(logits=logits)


@pytest.fixture
def truth(tokenizer):
    return [torch.tensor(row) for row in tokenizer(TEXTS).input_ids]


def dataset():
    return ListDataset({"text": text} for text in TEXTS)


def run(processor, answers, batch_size=2, **options):
    model = MaskedReader(processor.tokenizer, answers)
    evaluator = LanguageModelingEvaluator(None, **options)
    metrics = evaluator(model, processor, dataset(), batch_size=batch_size, progress=False)
    return metrics, model.shown


def test_true_words_are_right_and_others_wrong(processor, truth):
    metrics, _ = run(processor, truth)
    assert metrics == {"masked_accuracy": 1.0, "masked_token_accuracy": 1.0}
    wrong = [torch.full_like(row, processor.tokenizer.unk_token_id) for row in truth]
    assert run(processor, wrong)[0] == {"masked_accuracy": 0.0, "masked_token_accuracy": 0.0}


def test_masks_do_not_depend_on_the_batch_but_on_the_seed(processor, truth):
    _, one_by_one = run(processor, truth, batch_size=1, probability=0.5)
    _, together = run(processor, truth, batch_size=3, probability=0.5)
    _, other_seed = run(processor, truth, batch_size=3, probability=0.5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, together, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one_by_one, other_seed, strict=True))


def test_asked_tokens_are_hidden_and_all_others_shown(processor, truth):
    evaluator = LanguageModelingEvaluator(None, probability=0.3)
    _, shown = run(processor, truth, probability=0.3)
    hidden = [row[seen == processor.tokenizer.mask_token_id] for row, seen in zip(truth, shown)]
    words = evaluator.asked_words(processor.tokenizer, dataset())
    assert torch.cat(hidden).tolist() == [token for word in words for token in word]
    for row, seen in zip(truth, shown, strict=True):
        kept = seen != processor.tokenizer.mask_token_id
        assert torch.equal(row[kept], seen[kept])


def test_a_word_of_several_tokens_counts_once_and_only_whole():
    words = [(7, 8, 9), (4,)]
    metrics = LanguageModelingEvaluator(None).score(MaskedWordPredictions(words, [(7, 8, 0), (4,)]))
    assert metrics == {"masked_accuracy": 1 / 2, "masked_token_accuracy": 3 / 4}


def test_empty_texts_are_an_error():
    with pytest.raises(ValueError, match="at least one word"):
        LanguageModelingEvaluator(None).score(MaskedWordPredictions([], []))


def test_text_words_are_the_whole_text(tokenizer, truth):
    words = text_words(tokenizer, TEXTS)
    flat = [token for word in words for token in word]
    assert flat == torch.cat([row[1:-1] for row in truth]).tolist()
    assert tuple(tokenizer.encode("red", add_special_tokens=False)) in words


def test_vocabulary_is_needed_for_masking_only(tokenizer, truth):
    vocabulary = MaskingVocabulary.from_tokenizer(tokenizer)
    evaluator = LanguageModelingEvaluator(None, probability=1.0)
    masked, labels = evaluator.mask_batch(truth[0][None], [len(truth[0])], vocabulary, 0)
    np.testing.assert_array_equal(labels[0, 1:-1], truth[0][1:-1])
    assert (masked[0, 1:-1] == tokenizer.mask_token_id).all()
