"""The caption layout: who sees whom, and where each slot stands."""

import torch

from transformers_upv2.model.caption_layout import step_layout, training_layout

MASK = 99
IDS = torch.tensor([[0, 10, 11, 12, 2], [0, 20, 2, 1, 1]])
PADDING = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
POSITIONS = torch.tensor([[2, 3, 4, 5, 6], [2, 3, 4, 1, 1]])


def test_training_layout_row_by_row():
    layout = training_layout(IDS, PADDING, POSITIONS, MASK)
    assert layout.num_words == 4
    assert layout.input_ids.tolist() == [[0, 10, 11, 12] + [MASK] * 4, [0, 20, 2, 1] + [MASK] * 4]
    # a slot has the position of the word that it predicts
    assert layout.position_ids[0].tolist() == [2, 3, 4, 5, 3, 4, 5, 6]
    seen = [row.nonzero().flatten().tolist() for row in layout.allowed[0]]
    assert seen[:4] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert seen[4:] == [[0, 4], [0, 1, 5], [0, 1, 2, 6], [0, 1, 2, 3, 7]]


def test_no_word_sees_padding():
    layout = training_layout(IDS, PADDING, POSITIONS, MASK)
    assert not layout.allowed[1, :, 3].any()
    assert layout.allowed[1, 5].nonzero().flatten().tolist() == [0, 1, 5]


def test_steps_see_what_training_sees():
    """Word by word, the rows of a step are the rows of training without the other slots."""
    whole = training_layout(IDS[:1], PADDING[:1], POSITIONS[:1], MASK)
    for total in range(1, 5):
        for new in {1, total}:
            mask = torch.ones(1, total, dtype=torch.long)
            step = step_layout(IDS[:1, total - new : total], mask, POSITIONS[:1, :total], MASK)
            words = whole.allowed[0, total - new : total, :total]
            assert torch.equal(step.allowed[0, :new, :total], words)
            assert not step.allowed[0, :new, total].any()
            assert torch.equal(step.allowed[0, new, :total], whole.allowed[0, 3 + total, :total])
            assert step.allowed[0, new, total]
            assert step.num_words == new
            assert step.input_ids[0].tolist() == [*IDS[0, total - new : total].tolist(), MASK]
            assert step.position_ids[0, -1] == whole.position_ids[0, 3 + total]


def test_step_with_a_left_padded_beginning():
    mask = torch.tensor([[0, 0, 1, 1]])
    layout = step_layout(torch.tensor([[1, 1, 0, 10]]), mask, torch.tensor([[1, 1, 2, 3]]), MASK)
    seen = [row.nonzero().flatten().tolist() for row in layout.allowed[0]]
    assert seen == [[], [], [2], [2, 3], [2, 3, 4]]
    assert layout.position_ids.tolist() == [[1, 1, 2, 3, 4]]
