import numpy as np
import pytest
import torch

from transformers_upv2.data.masking import (
    IGNORED_LABEL,
    MaskingVocabulary,
    mask_whole_words,
    number_words,
)
from transformers_upv2.data.world_tokenizer import train_tokenizer

TEXT = "a red circle (small), extraordinarily far above the unforeseeable square."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red circle above the small square."], vocabulary_size=300)


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return MaskingVocabulary.from_tokenizer(tokenizer)


@pytest.fixture
def input_ids(tokenizer):
    return tokenizer([TEXT, "a square", ""], padding=True, return_tensors="pt").input_ids


def mask(input_ids, vocabulary, seed=0, **options):
    return mask_whole_words(input_ids, vocabulary, np.random.default_rng(seed), **options)


def test_words_are_those_of_the_text(tokenizer, vocabulary, input_ids):
    numbers = number_words(input_ids.numpy(), vocabulary)[0]
    words = [tokenizer.decode(input_ids[0][numbers == n]) for n in range(numbers.max() + 1)]
    expected = "a red circle ( small ), extraordinarily far above the unforeseeable square ."
    assert [word.strip() for word in words] == expected.split()


def test_words_are_masked_whole(vocabulary, input_ids):
    numbers = torch.from_numpy(number_words(input_ids.numpy(), vocabulary))
    long_words = [n for n in numbers[0].unique() if n >= 0 and (numbers[0] == n).sum() > 2]
    assert long_words
    for seed in range(50):
        _, labels = mask(input_ids, vocabulary, seed, probability=0.4)
        for number in numbers[0].unique():
            assert len((labels[0] != IGNORED_LABEL)[numbers[0] == number].unique()) == 1


def test_special_tokens_are_never_asked(vocabulary, input_ids):
    masked, labels = mask(input_ids, vocabulary, probability=1.0)
    special = torch.from_numpy(vocabulary.is_special)[input_ids]
    assert torch.equal(labels != IGNORED_LABEL, ~special)
    assert torch.equal(masked[special], input_ids[special])


def test_every_text_with_a_word_is_asked_at_least_one(vocabulary, input_ids):
    _, labels = mask(input_ids, vocabulary, probability=0.01)
    assert (labels != IGNORED_LABEL).any(dim=1).tolist() == [True, True, False]


def test_labels_are_the_truth_and_the_rest_is_untouched(vocabulary, input_ids):
    before = input_ids.clone()
    masked, labels = mask(input_ids, vocabulary, probability=0.5)
    asked = labels != IGNORED_LABEL
    assert torch.equal(labels[asked], input_ids[asked])
    assert torch.equal(masked[~asked], input_ids[~asked])
    assert torch.equal(input_ids, before)
    assert masked.dtype == labels.dtype == torch.int64


def test_shares_are_kept(tokenizer, vocabulary):
    """4000 rows of 20 one-token words: three of each are asked, four sigma around the shares."""
    word = tokenizer.encode(" red", add_special_tokens=False)
    assert len(word) == 1
    row = [tokenizer.bos_token_id, *word * 20, tokenizer.eos_token_id]
    ids = torch.tensor([row] * 4000)
    masked, labels = mask(ids, vocabulary)
    asked = labels != IGNORED_LABEL
    assert (asked.sum(dim=1) == 3).all()
    positions = asked[:, 1:-1].float().mean(dim=0)
    assert (positions - 0.15).abs().max() < 4 * (0.15 * 0.85 / 4000) ** 0.5
    count = asked.sum().item()
    hidden = (masked[asked] == tokenizer.mask_token_id).sum().item() / count
    kept = (masked[asked] == ids[asked]).sum().item() / count
    assert abs(hidden - 0.8) < 4 * (0.8 * 0.2 / count) ** 0.5
    assert abs(kept - 0.1) < 4 * (0.1 * 0.9 / count) ** 0.5 + 1 / 200
    others = masked[asked & (masked != ids) & (masked != tokenizer.mask_token_id)]
    assert not torch.from_numpy(vocabulary.is_special)[others].any()
    assert len(others.unique()) > 100


def test_only_the_generator_decides(vocabulary, input_ids):
    first, second, other = (mask(input_ids, vocabulary, seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_bad_shares_are_errors(vocabulary, input_ids):
    with pytest.raises(ValueError, match=r"`probability` must lie in \(0, 1\], got 0"):
        mask(input_ids, vocabulary, probability=0)
    with pytest.raises(ValueError, match=r"at most 1 together, got 0\.8 and 0\.3"):
        mask(input_ids, vocabulary, random_share=0.3)


def test_tokenizer_without_a_mask_token_is_an_error():
    class NoMask:
        mask_token_id = None

    with pytest.raises(ValueError, match="must have a mask token"):
        MaskingVocabulary.from_tokenizer(NoMask())


def test_special_tokens_end_words_even_without_a_space():
    """Ids: 0 special, 1 letters without a space before them, 2 a mark."""
    flags = np.eye(3, dtype=bool)
    by_hand = MaskingVocabulary(
        mask_token_id=0,
        is_special=flags[0],
        starts_with_space=np.zeros(3, dtype=bool),
        is_space=np.zeros(3, dtype=bool),
        is_punctuation=flags[2],
    )
    numbers = number_words(np.array([[0, 1, 1, 2, 0, 1, 0], [1, 0, 0, 1, 1, 1, 2]]), by_hand)
    assert numbers.tolist() == [[-1, 0, 0, 1, -1, 2, -1], [0, -1, -1, 1, 1, 1, 2]]
