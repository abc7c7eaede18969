"""What the web page asks one model: perceive an image once, then detect, caption and search from that encoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import pipeline

from transformers_upv2.evaluation.drawing import class_colors, draw_detections
from transformers_upv2.model.generation_upv2 import UniPerceiverV2ForConditionalGeneration
from transformers_upv2.model.image_encoding import ImageEncoding
from transformers_upv2.model.image_index import ImageIndex
from transformers_upv2.model.image_inputs import open_image
from transformers_upv2.model.modeling_tasks_upv2 import (
    UniPerceiverV2ForImageTextRetrieval,
    UniPerceiverV2ForZeroShotObjectDetection,
)
from transformers_upv2.model.processing_upv2 import UniPerceiverV2Processor
from transformers_upv2.model.registration import register
from transformers_upv2.model.task_forward import full_masks

MOST_DETECTIONS = 50
MOST_WORDS = 30


@dataclass(frozen=True)
class Perceived:
    """An image and what the model has perceived of it.

    Args:
        image: The user's, upright and RGB.
        encoding: Of this one image, with what full masks are made of.
    """

    image: Image.Image
    encoding: ImageEncoding


class Answers:
    """One model with all tasks.

    Args:
        folder: A saved model with its processor, or its name on the Hub.
        images: A folder of images to search in; None: no search.
        index: File of their index, read if it exists and written again if images changed.
    """

    def __init__(self, folder: str | Path, images: str | Path | None = None, index: str | Path | None = None) -> None:
        register()
        self.processor: Any = UniPerceiverV2Processor.from_pretrained(folder)
        self.writer = UniPerceiverV2ForConditionalGeneration.from_pretrained(folder).eval()
        self.detector = UniPerceiverV2ForZeroShotObjectDetection.from_model(self.writer)
        self.retrieval: Any = None
        if images is not None:
            self.retrieval = self._build_retrieval(images, index)

    @property
    def known_labels(self) -> list[str]:
        """The names that the model was trained to detect."""
        return list(self.writer.config.label_sets.get("detection", {}).get("names", []))

    @torch.inference_mode()
    def perceive(self, image: Image.Image) -> Perceived:
        """Encode an image, the only slow step.

        Args:
            image: Any PIL image.

        Returns:
            What the other methods take.
        """
        image = open_image(image)
        inputs = self.processor(images=image, return_tensors="pt").to(self.writer.device, self.writer.dtype)
        return Perceived(image, self.writer.encode_image(**inputs, keep_mask_features=True))

    @torch.inference_mode()
    def detect(self, perceived: Perceived, labels: Sequence[str], threshold: float = 0.3) -> list[dict[str, Any]]:
        """Find everything that has one of the labels.

        Args:
            perceived: The image.
            labels: Any names; each is encoded only the first time.
            threshold: A score must be greater.

        Returns:
            ``{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}, "mask"}`` of each, by descending score; the
            mask is an array ``(height, width)`` of bool.
        """
        if not labels:
            return []
        candidates = self.detector.encode_labels(labels, self.processor.tokenizer)
        outputs = self.detector(image_encoding=perceived.encoding, candidates=candidates)
        outputs.pred_masks = full_masks(perceived.encoding)
        size = (perceived.image.height, perceived.image.width)
        found = self.processor.image_processor.post_process_instances(outputs, [size], MOST_DETECTIONS, threshold)[0]
        return [
            {
                "score": score,
                "label": labels[label],
                "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(value) for value in box))),
                "mask": mask,
            }
            for score, label, box, mask in zip(
                found["scores"].tolist(),
                found["labels"].tolist(),
                found["boxes"].tolist(),
                found["masks"].cpu().numpy(),
            )
        ]

    def caption(self, perceived: Perceived, beginning: str = "") -> str:
        """Describe the image.

        Args:
            perceived: The image.
            beginning: The first words of the caption.

        Returns:
            The whole caption.
        """
        words = self.processor(images=perceived.image, text=beginning, return_tensors="pt").to(self.writer.device)
        written = self.writer.generate(
            image_encoding=perceived.encoding,
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
            max_new_tokens=MOST_WORDS,
        )
        return self.processor.post_process_image_text_to_text(written)[0].strip()

    def search(self, query: str | Perceived, top_k: int = 8) -> list[dict[str, Any]]:
        """Find images of the folder.

        Args:
            query: A text, or an image to find similar ones.
            top_k: How many.

        Returns:
            ``{"score": cosine, "image": path}`` of each, by descending score.

        Raises:
            ValueError: If there is no folder to search in.
        """
        if self.retrieval is None:
            raise ValueError("`images` must name a folder to search in, got None. Pass one to `Answers`.")
        return self.retrieval(query.encoding if isinstance(query, Perceived) else query, top_k=top_k)

    def _build_retrieval(self, images: str | Path, index: str | Path | None) -> Any:
        search: Any = pipeline(  # type: ignore[call-overload]  # whose types know the stock tasks only
            "image-text-retrieval",
            model=UniPerceiverV2ForImageTextRetrieval.from_model(self.writer),
            processor=self.processor,
            device=self.writer.device,
        )
        if index is not None and Path(index).is_file():
            search.index = ImageIndex.load(index)
        search.build_index(images)
        if index is not None:
            search.index.save(index)
        return search


def draw(perceived: Perceived, detections: Sequence[dict[str, Any]], labels: Sequence[str]) -> Image.Image:
    """Draw what was found onto the image; a label keeps its color whatever is found."""
    return draw_detections(perceived.image, detections, colors=class_colors(labels))


def read_labels(text: str) -> list[str]:
    """Read names that commas or line breaks separate, each once."""
    names = (name.strip() for name in text.replace("\n", ",").split(","))
    return list(dict.fromkeys(name for name in names if name))
