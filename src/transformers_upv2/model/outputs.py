"""What the model classes return; a shape on every field."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .image_encoding import ImageEncoding


@dataclass
class UniPerceiverV2ModelOutput(ModelOutput):
    """Output of the base model.

    Args:
        last_hidden_state: Unit vectors of all tokens, [SPE] first, ``(batch, 1 + tokens, D)``.
        pooler_output: Unit vector of [SPE], the embedding of the whole, ``(batch, D)``.
        hidden_states: Input and output of every layer of g, ``(batch, 1 + tokens, D)`` each, if asked for.
        attentions: Weights of every layer of g, ``(batch, heads, queries, keys)`` each, if asked for.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class TaskOutput(ModelOutput):
    """What every task adds when it is given an answer to learn from.

    Args:
        loss: Weighted sum of the terms, scalar.
        loss_terms: Detached terms by name, scalars.
        logits: The task's logits; their shape is stated by the subclass.
        image_encoding: The encoding that was asked, to be asked again.
        hidden_states: Input and output of every layer of g for the input, ``(batch, 1 + tokens, D)`` each, if asked
            for; the last one covers the tokens that are read.
        attentions: Weights of every layer of g for the input, ``(batch, heads, queries, keys)`` each, if asked for.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    image_encoding: ImageEncoding | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "image_encoding" in self:
            self.move_to_end("image_encoding")  # so that `output[0]` is the loss or an answer


@dataclass
class ImageClassificationOutput(TaskOutput):
    """``logits``: cosine over temperature for every label, ``(batch, labels)``."""


@dataclass
class ObjectDetectionOutput(TaskOutput):
    """``logits``: their sigmoid is the score of a label for a proposal, ``(batch, N, labels)``.

    Args:
        pred_boxes: cxcywh in [0, 1] of the real image, ``(batch, N, 4)``.
        image_sizes: Height and width of the real image in pixels of the input, ``(batch, 2)``.
        objectness_logits: Foreground logits, ``(batch, N)``.
        pred_masks: Mask logits over the padded input at stride 4, ``(batch, N, H/4, W/4)``, for instance segmentation.
    """

    pred_boxes: Tensor | None = None
    image_sizes: Tensor | None = None
    objectness_logits: Tensor | None = None
    pred_masks: Tensor | None = None


@dataclass
class ImageTextOutput(TaskOutput):
    """Images against texts; ``logits`` is unused.

    Args:
        logits_per_image: ``(images, texts)``.
        logits_per_text: ``(texts, images)``.
        image_embeds: Unit vectors, ``(images, D)``.
        text_embeds: Unit vectors, ``(texts, D)``.
    """

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


@dataclass
class VocabularyOutput(TaskOutput):
    """``logits``: for every token of the vocabulary, ``(batch, tokens, vocab_size)``; special ones get the minimum."""
