"""One function for each training task: what it asks of the model, and its loss.

Each function takes the base model, so the task classes and the multi-task class are thin views of the same code.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .boxes import canvas_to_image_boxes
from .caption_layout import training_layout
from .distributed import of_first_rank, true_on_any_rank
from .image_encoder import ProposalTraining, image_sizes
from .image_encoding import ImageEncoding
from .likelihood_losses import (
    encode_sharded,
    label_loss,
    pair_loss,
    region_losses,
    vocabulary_loss,
)
from .modeling_upv2 import UniPerceiverV2Model
from .outputs import (
    ImageClassificationOutput,
    ImageTextOutput,
    ObjectDetectionOutput,
    TaskOutput,
    VocabularyOutput,
)
from .proposal_query_decoder import predict_masks
from .tasks import TASKS, TemperatureFamily

Output = TypeVar("Output", bound=TaskOutput)


def classification(
    model: UniPerceiverV2Model,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    labels: Tensor | None = None,
    image_encoding: ImageEncoding | None = None,
    step_seed: int | None = None,
) -> ImageClassificationOutput:
    """Compare [SPE] of an image with the class names; see `UniPerceiverV2ForImageClassification`."""
    task = TASKS["classification"]
    encoding, _ = perceive(model, pixel_values, pixel_mask, image_encoding)
    embeddings = model.decode_image(encoding, task.input_routes[0], step_seed)[:, 0]
    candidates = model.label_candidates(task.label_set, step_seed)
    logits = model.likelihood.logits(embeddings, candidates, task.temperature)
    output = ImageClassificationOutput(logits=logits, image_encoding=encoding)
    if labels is not None:
        loss = label_loss(logits, labels, model.config.label_smoothing)
        return _with_loss(output, loss, {"loss_label": loss})
    return output


def detection(
    model: UniPerceiverV2Model,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    labels: Sequence[dict[str, Any]] | None = None,
    image_encoding: ImageEncoding | None = None,
    step_seed: int | None = None,
) -> ObjectDetectionOutput:
    """Compare each proposal with the class names; see `UniPerceiverV2ForObjectDetection`."""
    task = TASKS["detection"]
    encoding, training = perceive(model, pixel_values, pixel_mask, image_encoding, labels)
    candidates = model.label_candidates(task.label_set, step_seed)
    output, logits = detect(model, encoding, candidates, step_seed)
    if training is not None:
        terms = region_losses(model.config.detection_score, logits, training.region_labels)
        config = model.config
        loss = config.proposal_loss_weight * training.loss + config.region_loss_weight * sum(terms.values())
        return _with_loss(output, loss, {**terms, **training.terms})
    return output


def captioning(
    model: UniPerceiverV2Model,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    image_encoding: ImageEncoding | None = None,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    step_seed: int | None = None,
) -> VocabularyOutput:
    """Predict every word of a caption from the image and the words before it."""
    encoding, _ = perceive(model, pixel_values, pixel_mask, image_encoding)
    seen = match_texts(encoding, len(input_ids))
    positions = model.text_encoder.position_ids(attention_mask)
    layout = training_layout(input_ids, attention_mask, positions, model.config.mask_token_id)
    slots = model.decode_caption(layout, seen.tokens, prefix_mask(seen), step_seed=step_seed)  # (batch, slots, D)
    asked = attention_mask[:, 1:].bool()
    loss = _word_loss(model, slots[asked], input_ids[:, 1:][asked], step_seed)
    return _with_loss(VocabularyOutput(image_encoding=encoding), loss, {"loss_word": loss})


def retrieval(
    model: UniPerceiverV2Model,
    pixel_values: Tensor | None = None,
    pixel_mask: Tensor | None = None,
    image_encoding: ImageEncoding | None = None,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    step_seed: int | None = None,
) -> ImageTextOutput:
    """Compare images with captions, each pair against the pairs of all processes."""
    task = TASKS["retrieval"]
    encoding, _ = perceive(model, pixel_values, pixel_mask, image_encoding)
    images = model.decode_image(encoding, task.input_routes[0], step_seed)[:, 0]
    texts = model.encode_candidates(input_ids, attention_mask, task.candidate_route, step_seed)
    output = image_text_output(model, encoding, images, texts, task.temperature)
    if len(images) == len(texts):
        scale = model.likelihood.logit_scale(task.temperature)
        config = model.config
        loss = pair_loss(images, texts, scale, config.label_smoothing, gather=config.gather_negatives)
        return _with_loss(output, loss, {"loss_pair": loss})
    if model.training:
        raise ValueError(
            f"Training needs one caption for each image, got {len(images)} images and {len(texts)} captions."
        )
    return output


def language_modeling(
    model: UniPerceiverV2Model,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    step_seed: int | None = None,
) -> VocabularyOutput:
    """Restore the masked words of a text."""
    return restore_words(model, embed_words(model, input_ids, attention_mask, step_seed), labels, step_seed)


TASK_FORWARD: dict[str, Callable[..., TaskOutput]] = {
    "classification": classification,
    "detection": detection,
    "captioning": captioning,
    "retrieval": retrieval,
    "language_modeling": language_modeling,
}
"""The forward function of each of ``TASKS``."""


def perceive(
    model: UniPerceiverV2Model,
    pixel_values: Tensor | None,
    pixel_mask: Tensor | None,
    image_encoding: ImageEncoding | None,
    labels: Sequence[dict[str, Any]] | None = None,
) -> tuple[ImageEncoding, ProposalTraining | None]:
    """Perceive a batch: on one canvas while training or where boxes are given, else each image on its own."""
    if labels is not None and pixel_values is None:
        raise ValueError("`labels` of detection need `pixel_values`, got none: an encoding cannot be learned from.")
    if model.training:
        model.likelihood.clamp_()
    learns = model.training or labels is not None
    if pixel_values is None or image_encoding is not None or not learns:
        return model.resolve_encoding(pixel_values, pixel_mask, image_encoding), None
    sizes = image_sizes(pixel_values, pixel_mask)
    return model.image_encoder.forward_training(pixel_values, sizes, labels)


def detect(
    model: UniPerceiverV2Model,
    encoding: ImageEncoding,
    candidates: Tensor,
    step_seed: int | None = None,
) -> tuple[ObjectDetectionOutput, Tensor]:
    """Score each proposal of an encoding against candidates.

    Args:
        model: The base model.
        encoding: Of the images.
        candidates: Unit vectors, ``(labels, D)`` or ``(batch, labels, D)``.
        step_seed: Seed of the gate noise in training.

    Returns:
        The output with logits whose sigmoid is the score, and the logits that the loss is made of.
    """
    task = TASKS["detection"]
    num_proposals = encoding.boxes.shape[1]
    states = model.decode_image(encoding, task.input_routes[0], step_seed)[:, -num_proposals:]
    logits = model.likelihood.logits(states, candidates, task.temperature)  # (batch, N, labels)
    if model.config.detection_score == "focal":
        logits = logits + model.likelihood.region_bias
        score_logits = logits
    else:
        foreground = encoding.objectness_logits.float().sigmoid()[..., None]
        score_logits = torch.logit(foreground * logits.float().softmax(dim=-1), eps=1e-6)
    output = ObjectDetectionOutput(
        logits=score_logits,
        pred_boxes=canvas_to_image_boxes(encoding.boxes, encoding.image_sizes, encoding.canvas_sizes),
        image_sizes=encoding.image_sizes,
        objectness_logits=encoding.objectness_logits,
        image_encoding=encoding,
    )
    return output, logits


def complete_texts(input_ids: Tensor | None, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Complete the texts of a call: they must be there, and without a mask all tokens are real."""
    if input_ids is None:
        raise ValueError("`input_ids` must hold the texts to compare with, got None. Tokenize them first.")
    return input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask


def choose_candidates(
    model: UniPerceiverV2Model, input_ids: Tensor | None, attention_mask: Tensor | None, candidates: Tensor | None
) -> Tensor:
    """Take the candidates, or encode the texts ``(..., tokens)`` to ``(..., D)``."""
    if candidates is not None:
        if input_ids is not None:
            raise ValueError("Pass either `input_ids` or `candidates`, got both.")
        return candidates
    input_ids, attention_mask = complete_texts(input_ids, attention_mask)
    encoded = model.batch_candidates(input_ids.flatten(0, -2), attention_mask.flatten(0, -2))
    return encoded.unflatten(0, input_ids.shape[:-1])


def match_texts(encoding: ImageEncoding, num_texts: int) -> ImageEncoding:
    """Give each text its image: one image serves all texts.

    Raises:
        ValueError: If there are several images and another number of texts.
    """
    if len(encoding) == 1 and num_texts > 1:
        return encoding.repeat_interleave(num_texts)
    if len(encoding) != num_texts:
        raise ValueError(
            f"There must be one image for all texts or one for each, got {len(encoding)} images and {num_texts} texts."
        )
    return encoding


def full_masks(encoding: ImageEncoding | None) -> Tensor:
    """Mask logits over the padded input at stride 4, ``(batch, N, H/4, W/4)``."""
    # `resolve_encoding(keep_mask_features=True)` and training have seen to it
    assert encoding is not None
    assert encoding.mask_features is not None
    return predict_masks(encoding.mask_embeddings, encoding.mask_features)


def image_text_output(
    model: UniPerceiverV2Model,
    encoding: ImageEncoding,
    images: Tensor,
    texts: Tensor,
    temperature: TemperatureFamily,
) -> ImageTextOutput:
    """Compare unit vectors of images ``(images, D)`` and texts ``(texts, D)``."""
    logits = model.likelihood.logits(images, texts, temperature)
    return ImageTextOutput(
        logits_per_image=logits,
        logits_per_text=logits.transpose(0, 1),
        image_embeds=images,
        text_embeds=texts,
        image_encoding=encoding,
    )


def vocabulary_logits(model: UniPerceiverV2Model, embeddings: Tensor) -> Tensor:
    """Score the whole vocabulary; tokens that are no candidates get the lowest finite number.

    Args:
        model: The base model.
        embeddings: Unit vectors, ``(..., D)``.

    Returns:
        ``(..., vocab_size)``.
    """
    scores = model.likelihood.logits(embeddings, model.vocabulary_candidates(), "vocabulary")
    shape = (*scores.shape[:-1], model.config.vocab_size)
    logits = scores.new_full(shape, torch.finfo(scores.dtype).min)
    return logits.index_copy(-1, model.vocabulary_ids(), scores)


def embed_words(
    model: UniPerceiverV2Model, input_ids: Tensor, attention_mask: Tensor, step_seed: int | None = None
) -> Tensor:
    """Embed every position of a text ``(batch, tokens)`` to compare it with words, ``(batch, tokens, D)``."""
    return model.decode_text(input_ids, attention_mask, TASKS["language_modeling"].input_routes[0], step_seed)[:, 1:]


def restore_words(
    model: UniPerceiverV2Model, embeddings: Tensor, labels: Tensor, step_seed: int | None = None
) -> VocabularyOutput:
    """Compare positions ``(batch, tokens, D)`` with the words that were there, -100 where not asked."""
    if model.training:
        model.likelihood.clamp_()
    asked = labels != -100
    loss = _word_loss(model, embeddings[asked], labels[asked], step_seed)
    return _with_loss(VocabularyOutput(), loss, {"loss_word": loss})


def prefix_mask(encoding: ImageEncoding) -> Tensor:
    """True for [SPE] and for real image tokens, ``(batch, 1 + image tokens)``."""
    return torch.nn.functional.pad(encoding.token_mask, (1, 0), value=True)


def _word_loss(model: UniPerceiverV2Model, embeddings: Tensor, answers: Tensor, step_seed: int | None) -> Tensor:
    """Cross-entropy of words ``(asked,)`` for unit vectors ``(asked, D)`` over the candidates of this step."""
    token_ids, correction = _candidates_of_step(model, answers, step_seed)
    candidates = encode_sharded(token_ids, lambda ids: model.encode_vocabulary(ids, step_seed))
    logits = model.likelihood.logits(embeddings, candidates, "vocabulary")
    return vocabulary_loss(logits + correction, token_ids, answers)


def _candidates_of_step(model: UniPerceiverV2Model, answers: Tensor, step_seed: int | None) -> tuple[Tensor, Tensor]:
    """Choose the batch's words and a random sample, with the log-q correction of each, ``(candidates,)``.

    The sample is drawn uniformly; a word of the batch is there for certain, a sampled one stands for several. All
    processes choose the same, since each encodes a share.
    """
    token_ids = model.vocabulary_ids()
    size = model.config.vocabulary_sample_size
    if len(token_ids) <= size:
        return token_ids, torch.zeros(len(token_ids), device=token_ids.device)
    certain = gather_words(answers, model.config.vocab_size)[token_ids]
    others = token_ids[~certain]
    generator = None if step_seed is None else torch.Generator().manual_seed(step_seed)
    order = of_first_rank(torch.randperm(len(others), generator=generator).to(others.device))
    sampled = others[order[:size]]
    chosen = torch.cat([token_ids[certain], sampled])
    correction = torch.zeros(len(chosen), device=chosen.device)
    correction[int(certain.sum()) :] = torch.log(torch.tensor(len(others) / len(sampled)))
    ascending = chosen.argsort()
    return chosen[ascending], correction[ascending]


def gather_words(answers: Tensor, vocab_size: int) -> Tensor:
    """True for every token id that is an answer on some process, ``(vocab_size,)``."""
    present = torch.zeros(vocab_size, dtype=torch.bool, device=answers.device)
    present[answers] = True
    return true_on_any_rank(present)


def _with_loss(output: Output, loss: Tensor, terms: dict[str, Tensor]) -> Output:
    """Put the loss first, as transformers does."""
    detached = {name: term.detach() for name, term in terms.items()}
    return type(output)(loss=loss, loss_terms=detached, **output)
