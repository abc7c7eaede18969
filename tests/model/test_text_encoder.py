"""The walked layers are transformers' own encoder: RoBERTa's and BERT's."""

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from transformers_upv2.model.attention import additive_mask
from transformers_upv2.model.text_encoder import TextEncoder

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 14,
    "initializer_range": 0.3,
}
ROBERTA = RobertaConfig(**SIZES, type_vocab_size=1, pad_token_id=1)
BERT = BertConfig(**SIZES, pad_token_id=0)


def encode(encoder: TextEncoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    allowed = mask[:, None, :].bool().expand(-1, ids.shape[1], -1)
    return encoder(ids, encoder.position_ids(mask), additive_mask(allowed, torch.float32))


@pytest.mark.parametrize(
    ("config", "reference_class"), [(ROBERTA, RobertaModel), (BERT, BertModel)], ids=["roberta", "bert"]
)
def test_equals_the_encoder_of_transformers(config, reference_class):
    reference = reference_class(config, add_pooling_layer=False).eval()
    encoder = TextEncoder(config, 16).eval()
    encoder.encoder.load_state_dict(reference.state_dict())
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    mask[2, 2:] = 0
    ids = torch.randint(4, 50, (3, 9)).masked_fill(mask == 0, config.pad_token_id)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state
        output = encode(encoder, ids, mask)
    torch.testing.assert_close(output[mask == 1], expected[mask == 1], atol=1e-5, rtol=1e-5)
    # an unpadded row alone
    torch.testing.assert_close(encode(encoder, ids[1:2, :6], mask[1:2, :6])[0], output[1, :6], atol=1e-5, rtol=1e-5)


def test_positions_are_those_that_the_encoder_was_trained_with():
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert TextEncoder(ROBERTA, 16).position_ids(mask).tolist() == [[2, 3, 4, 1], [1, 1, 2, 3]]
    assert TextEncoder(BERT, 16).position_ids(mask).tolist() == [[0, 1, 2, 0], [0, 0, 0, 1]]


def test_left_padding_changes_nothing():
    encoder = TextEncoder(ROBERTA, 16).eval()
    ids = torch.randint(4, 50, (1, 5))
    padded = torch.cat([torch.ones(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 5])
    with torch.no_grad():
        alone = encode(encoder, ids, torch.ones_like(ids))
        torch.testing.assert_close(encode(encoder, padded, mask)[:, 3:], alone, atol=1e-5, rtol=1e-5)


def test_another_width_gets_a_linear_and_an_equal_one_none():
    wide = TextEncoder(ROBERTA, 24).eval()
    assert isinstance(wide.output_projection, torch.nn.Linear)
    ids = torch.randint(4, 50, (2, 5))
    with torch.no_grad():
        assert encode(wide, ids, torch.ones_like(ids)).shape == (2, 5, 24)
    assert not list(TextEncoder(ROBERTA, 16).output_projection.parameters())


def test_the_longest_text_fits_and_one_more_token_is_an_error():
    encoder = TextEncoder(ROBERTA, 16).eval()
    ids = torch.full((1, 13), 7)
    # RoBERTa's positions start at 2, so 14 positions hold 12 tokens
    encode(encoder, ids[:, :12], torch.ones(1, 12, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`input_ids` must stay within the text encoder's 14 positions, got.* 14"):
        encode(encoder, ids, torch.ones(1, 13, dtype=torch.long))
