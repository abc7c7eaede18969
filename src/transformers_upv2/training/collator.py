"""Turn examples of one task into a batch for ``UniPerceiverV2ForMultiTask.forward``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from transformers_upv2.data.masking import IGNORED_LABEL, MaskingVocabulary, mask_whole_words
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.training.seeding import seed_from

Example = dict[str, Any]
Batch = dict[str, Any]

DETECTION_LABEL_KEYS = ("class_labels", "boxes", "masks", "has_mask")


class UniPerceiverV2Collator:
    """Turn the examples of one task into a batch.

    Every example carries its ``rng_seed``, the only source of what is drawn here (which caption,
    which words are masked), so a batch depends on nothing but its examples.

    Args:
        processor: Image processor and tokenizer.
        task: Key of the task.
        image_options: Options of the image processor for this task, such as ``size``.
        max_text_length: Longest text in tokens, ``<s>`` and ``</s>`` included; the rest is cut off.
        mask_probability: Share of the words that masked language modeling asks for.

    Raises:
        ValueError: If there is no such task.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        task: str,
        image_options: Mapping[str, Any] | None = None,
        max_text_length: int = 64,
        mask_probability: float = 0.15,
    ) -> None:
        if task not in COLLATE_FUNCTIONS:
            raise ValueError(f"`task` must be one of {sorted(COLLATE_FUNCTIONS)}, got {task!r}.")
        self.processor = processor
        self.task = task
        self.image_options = dict(image_options or {})
        self.max_text_length = max_text_length
        self.mask_probability = mask_probability
        self.masking_vocabulary = MaskingVocabulary.from_tokenizer(processor.tokenizer)

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Collate.

        Args:
            examples: Examples of the task with ``rng_seed``, and ``replaced`` where a bad sample
                had to be replaced.

        Returns:
            The keyword arguments of ``forward``, and under ``"replaced"`` the replaced samples.
        """
        batch = COLLATE_FUNCTIONS[self.task](self, examples)
        replaced = [item for example in examples for item in example.get("replaced", ())]
        return {**batch, "replaced": replaced} if replaced else batch

    def encode_images(self, examples: Sequence[Example], annotations: list[dict[str, Any]] | None = None) -> Batch:
        """Return ``pixel_values``, ``pixel_mask`` and, with annotations, ``labels``.

        Examples may carry an ``"image_encoding"`` instead of an ``"image"``: perceived once by a frozen image encoder,
        they cost nothing but the unified decoder. Then that is what is returned.
        """
        if "image_encoding" in examples[0]:
            return {"image_encoding": ImageEncoding.cat([example["image_encoding"] for example in examples])}
        encoded = self.processor.image_processor(
            images=[example["image"] for example in examples],
            annotations=annotations,
            return_tensors="pt",
            **self.image_options,
        )
        return {k: encoded[k] for k in ("pixel_values", "pixel_mask", "labels") if k in encoded}

    def encode_texts(self, texts: list[str]) -> Batch:
        """Return ``input_ids`` and ``attention_mask``, ``(batch, length)``, right-padded."""
        encoded = self.processor.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.max_text_length,
            return_tensors="pt",
        )
        return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def _collate_classification(collator: UniPerceiverV2Collator, examples: Sequence[Example]) -> Batch:
    labels = torch.tensor([example["label"] for example in examples])  # (batch,)
    return {**collator.encode_images(examples), "labels": labels}


def _collate_detection(collator: UniPerceiverV2Collator, examples: Sequence[Example]) -> Batch:
    annotations = [
        {
            "image_id": example["image_id"],
            "annotations": [a for a in example["annotations"] if not a.get("iscrowd", 0)],
        }
        for example in examples
    ]
    batch = collator.encode_images(examples, annotations)
    batch["labels"] = [{key: label[key] for key in DETECTION_LABEL_KEYS if key in label} for label in batch["labels"]]
    return batch


def _collate_image_text(collator: UniPerceiverV2Collator, examples: Sequence[Example]) -> Batch:
    captions = [
        example["captions"][seed_from(example["rng_seed"], "caption") % len(example["captions"])]
        for example in examples
    ]
    return {**collator.encode_images(examples), **collator.encode_texts(captions)}


def _collate_language_modeling(collator: UniPerceiverV2Collator, examples: Sequence[Example]) -> Batch:
    batch = collator.encode_texts([example["text"] for example in examples])
    labels = torch.full_like(batch["input_ids"], IGNORED_LABEL)
    for row, example in enumerate(examples):
        batch["input_ids"][row : row + 1], labels[row : row + 1] = mask_whole_words(
            batch["input_ids"][row : row + 1],
            collator.masking_vocabulary,
            np.random.default_rng(seed_from(example["rng_seed"], "masking")),
            probability=collator.mask_probability,
        )
    return {**batch, "labels": labels}


COLLATE_FUNCTIONS: dict[str, Callable[[UniPerceiverV2Collator, Sequence[Example]], Batch]] = {
    "classification": _collate_classification,
    "detection": _collate_detection,
    "captioning": _collate_image_text,
    "retrieval": _collate_image_text,
    "language_modeling": _collate_language_modeling,
}
