"""What ``generate()`` returns besides ids: transformers expects one state a word, ours also cover the image."""

from typing import Any

import torch
from model_tester import IMAGE_LENGTH, TinyModelTester


class GenerationChecks:
    """Overrides the checks of the GenerationTesterMixin that count tokens.

    A pass of g covers [SPE], the image and the words, and then one slot that is not cached; its last layer computes
    the slot alone. The cache has the text encoder's layers, which see no image, and then those of g.
    """

    model_tester: TinyModelTester

    def _check_hidden_states_for_generate(
        self,
        batch_size: int,
        hidden_states: tuple[tuple[torch.Tensor, ...], ...],
        prompt_length: int,
        output_length: int,
        config: Any,
        use_cache: bool = False,
    ) -> None:
        assert len(hidden_states) == output_length - prompt_length
        for step, states in enumerate(hidden_states):
            words = prompt_length + step
            tokens = 2 if use_cache and step else IMAGE_LENGTH + words + 1
            lengths = [tokens] * self.model_tester.num_hidden_layers + [1]
            assert [state.shape for state in states] == [
                (batch_size, length, self.model_tester.hidden_size) for length in lengths
            ]

    def _check_attentions_for_generate(
        self,
        batch_size: int,
        attentions: tuple[tuple[torch.Tensor, ...], ...],
        prompt_length: int,
        output_length: int,
        config: Any,
        decoder_past_key_values: Any,
    ) -> None:
        assert len(attentions) == output_length - prompt_length
        for step, weights in enumerate(attentions):
            seen = IMAGE_LENGTH + prompt_length + step + 1
            tokens = 2 if decoder_past_key_values is not None and step else seen
            lengths = [tokens] * (self.model_tester.num_hidden_layers - 1) + [1]
            assert [weight.shape for weight in weights] == [
                (batch_size, self.model_tester.num_attention_heads, length, seen) for length in lengths
            ]

    def _check_past_key_values_for_generate(
        self, batch_size: int, past_key_values: Any, seq_length: int, config: Any
    ) -> None:
        parts = self.model_tester.get_config()
        expected = [
            (batch_size, part.num_attention_heads, length, part.hidden_size // part.num_attention_heads)
            for part, length in ((parts.text_config, seq_length), (parts.decoder_config, IMAGE_LENGTH + seq_length))
            for _ in range(part.num_hidden_layers)
        ]
        assert [layer.keys.shape for layer in past_key_values.layers] == expected
        assert [layer.values.shape for layer in past_key_values.layers] == expected
