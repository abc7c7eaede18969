import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import (
    encode_sinusoidal_position_embedding,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding

from transformers_upv2.model.position_encoding import (
    encode_boxes,
    encode_grid,
    encode_positions,
    grid_centers,
)


@pytest.mark.parametrize("masked", [False, True])
def test_grid_agrees_with_mask2former(masked):
    mask = None
    if masked:
        mask = torch.zeros(2, 5, 7, dtype=torch.int64)
        mask[0, :3, :6] = 1
        mask[1] = 1
    reference = Mask2FormerSinePositionEmbedding(16, normalize=True)
    expected = reference(torch.Size((2, 32, 5, 7)), torch.device("cpu"), torch.float32, mask)
    actual = encode_grid((5, 7), 32, mask=mask)
    torch.testing.assert_close(actual.expand(2, -1, -1, -1), expected.permute(0, 2, 3, 1))


def test_boxes_agree_with_grounding_dino():
    boxes = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = encode_sinusoidal_position_embedding(boxes, num_pos_feats=16)
    torch.testing.assert_close(encode_boxes(boxes, 16, (1, 0, 2, 3)), expected)


def test_order_chooses_coordinates():
    boxes = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    plain = encode_boxes(boxes, 8).unflatten(-1, (4, 8))
    swapped = encode_boxes(boxes, 8, (3, 1)).unflatten(-1, (2, 8))
    assert torch.equal(swapped, plain[..., [3, 1], :])


def test_codes_are_float32():
    assert encode_boxes(torch.rand(2, 4).bfloat16(), 8).dtype == torch.float32
    assert encode_grid((2, 2), 8).dtype == torch.float32


def test_odd_number_of_features_is_refused():
    with pytest.raises(ValueError, match=r"`num_features` must be even.*got 5"):
        encode_positions(torch.zeros(1), 5)


def test_grid_centers_lists_maps_row_by_row():
    assert grid_centers([(1, 2), (2, 1)]).tolist() == [
        [0.25, 0.5],
        [0.75, 0.5],
        [0.5, 0.25],
        [0.5, 0.75],
    ]
