"""What stock pipelines read by position or by key is where they look for it."""

import torch

from transformers_upv2.model.outputs import ImageClassificationOutput, UniPerceiverV2ModelOutput


def test_the_first_field_of_the_base_output_is_the_hidden_state():
    hidden = torch.zeros(1, 3, 4)
    output = UniPerceiverV2ModelOutput(last_hidden_state=hidden, pooler_output=hidden[:, 0])
    assert output[0] is hidden


def test_fields_without_a_value_are_absent():
    output = ImageClassificationOutput(logits=torch.zeros(1, 2))
    assert list(output) == ["logits"]
    assert output["logits"] is output[0]
