"""Pipelines: three stock tasks that need help for our folders, and captioning, a task of our own.

A class registered over a stock task gets every model of that task. For a model of another type it
hands over to the stock class before it exists, so those users get an object of the stock class
itself.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, GenerationConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput
from transformers.pipelines import (
    ImageTextToTextPipeline,
    ObjectDetectionPipeline,
    Pipeline,
    ZeroShotObjectDetectionPipeline,
)

from .candidates import MAX_KEPT_LABELS, label_texts
from .configuration_upv2 import UniPerceiverV2Config
from .image_inputs import TIMEOUT, open_image
from .image_processing_upv2 import UniPerceiverV2ImageProcessor
from .processing_upv2 import UniPerceiverV2Processor


class FolderPipeline(Pipeline):
    """Base of pipelines that save all that any of our tasks can load."""

    model: Any
    processor: Any
    image_processor: UniPerceiverV2ImageProcessor
    tokenizer: PreTrainedTokenizerBase
    tokenizer_to_save: PreTrainedTokenizerBase | None = None

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save a complete folder: model and processor.

        Args:
            save_directory: The folder, made if it does not exist.
            **kwargs: Options of the two ``save_pretrained``.
        """
        self.model.save_pretrained(save_directory, **kwargs)
        tokenizer = self.tokenizer_to_save or self.tokenizer
        processor = UniPerceiverV2Processor(self.image_processor, tokenizer)
        processor.save_pretrained(save_directory, **kwargs)


class _OverStockTask(FolderPipeline):
    """Base of pipelines that are registered over a stock task, see the module docstring."""

    stock_class: ClassVar[type[Pipeline]]

    def __new__(cls, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Give other models the stock pipeline; copies and unpickled ones, which come without a model, are ours."""
        if model is not None and model.config.model_type != UniPerceiverV2Config.model_type:
            return cls.stock_class(model, *args, **kwargs)
        return super().__new__(cls)


class UniPerceiverV2ObjectDetectionPipeline(_OverStockTask, ObjectDetectionPipeline):
    """Stock object detection; only, a tokenizer in the folder does not mean a LayoutLM; images are read our way."""

    stock_class = ObjectDetectionPipeline

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any) -> None:
        super().__init__(model, tokenizer=None, **kwargs)
        self.tokenizer_to_save = tokenizer

    def preprocess(self, image: Any, timeout: float | None = TIMEOUT) -> BatchFeature:
        """Prepare an image; the stock loader would clip 16 bits and drop transparency."""
        return super().preprocess(open_image(image, timeout), timeout=timeout)


class UniPerceiverV2ImageTextToTextPipeline(_OverStockTask, ImageTextToTextPipeline):
    """Stock image-text-to-text; only, a batch of prompts is padded on the left; images are read our way."""

    stock_class = ImageTextToTextPipeline

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer_to_save = self.tokenizer
        self.tokenizer = copy.deepcopy(self.tokenizer)
        self.tokenizer.padding_side = "left"

    def preprocess(self, inputs: Any = None, timeout: float | None = TIMEOUT, **kwargs: Any) -> BatchFeature:
        """Prepare images and a prompt; the stock loader would clip 16 bits and drop transparency."""
        if isinstance(inputs, dict):
            inputs = {**inputs, "images": _open_all(inputs["images"], timeout)}
        return super().preprocess(inputs, timeout=timeout, **kwargs)


class UniPerceiverV2ZeroShotObjectDetectionPipeline(_OverStockTask, ZeroShotObjectDetectionPipeline):
    """Zero-shot object detection in one vision pass for any number of labels.

    The stock pipeline makes one for each label. The arguments and the results are the stock ones. In addition,
    ``candidate_labels`` may be a dict of names and their synonyms, and ``templates`` are sentences with one ``{}``
    that each name is put into; the embeddings of a label are averaged. Each label is encoded once and kept until the
    weights change. Spaces around labels are removed.
    """

    stock_class = ZeroShotObjectDetectionPipeline

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_ids: dict[str, list[int]] = {}

    def __call__(
        self,
        image: Any,
        candidate_labels: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Detect, see the class.

        Args:
            image: An image (path, URL, PIL image), a list, a generator or a dataset of them.
            candidate_labels: What to look for: a list, a text with commas, or names and their synonyms; or a list
                with these for each image.
            **kwargs: ``threshold``, ``top_k``, ``templates``, ``timeout``, ``batch_size``.

        Returns:
            A list of detections for each image.

        Raises:
            ValueError: If there are other labels than texts, or not as many lists of labels as images.
        """
        ask: Any = super().__call__  # whose types know less than it takes
        if candidate_labels is None or isinstance(image, dict):  # images that bring their labels
            return ask(image, candidate_labels, **kwargs)
        if isinstance(image, str | Path | Image.Image | bytes | np.ndarray | Tensor):  # the last three are refused
            return ask({"image": image, "candidate_labels": candidate_labels}, **kwargs)
        images: Any = image
        labels: Any = itertools.repeat(candidate_labels)
        if isinstance(candidate_labels, list | tuple) and not all(isinstance(name, str) for name in candidate_labels):
            images, labels = list(image), candidate_labels
            if len(images) != len(labels):
                raise ValueError(
                    "`candidate_labels` must be texts, or hold the labels of each image, got "
                    f"{len(labels)} for {len(images)} images."
                )
        found = ask(
            ({"image": one, "candidate_labels": its_labels} for one, its_labels in zip(images, labels)), **kwargs
        )
        return list(found) if isinstance(image, list | tuple) else found

    def _sanitize_parameters(
        self, templates: Sequence[str] | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess_params, forward_params, postprocess_params = super()._sanitize_parameters(**kwargs)
        if templates is not None:
            preprocess_params["templates"] = templates
        return preprocess_params, forward_params, postprocess_params

    def preprocess(
        self, inputs: dict[str, Any], timeout: float | None = TIMEOUT, templates: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Prepare the image and keep its labels together, as the only chunk.

        Args:
            inputs: ``{"image", "candidate_labels"}``; labels are a list, joined by commas, or a dict of synonyms.
            timeout: Seconds to wait for an image from the web.
            templates: Sentences with one ``{}``; None: the bare names.

        Yields:
            Everything that `_forward` needs.

        Raises:
            ValueError: If there is no label, or one is empty or no text.
        """
        given = inputs.get("candidate_labels") or []
        given = given.split(",") if isinstance(given, str) else given
        if not given or not all(isinstance(name, str) and name.strip() for name in given):
            raise ValueError(
                f"`candidate_labels` must hold at least one label and no empty one, all of them texts, got {given}."
            )
        names = [name.strip() for name in given]
        texts = label_texts(given if isinstance(given, dict) else names, templates)
        image = open_image(inputs["image"], timeout)
        features = self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        size = torch.tensor([[image.height, image.width]], dtype=torch.int32)
        labels = {"names": names, "texts": texts}
        yield {"is_last": True, "target_size": size, "labels": labels, **features}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """Encode the images once; ask each about its labels."""
        is_last, labels = model_inputs.pop("is_last"), model_inputs.pop("labels")
        target_size = model_inputs.pop("target_size")
        found = self._detect(labels if isinstance(labels, list) else [labels], model_inputs)
        return {"is_last": is_last, "target_size": target_size, "labels": labels, **found}

    def _detect(self, label_lists: list[dict[str, Any]], images: dict[str, Tensor]) -> dict[str, Any]:
        """Detect in one call if all images have the same labels, else image by image."""
        if all(labels == label_lists[0] for labels in label_lists):
            outputs = self.model(**images, candidates=self._candidates(label_lists[0]["texts"]))
            return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
        encoding = self.model.model.encode_image(**images)
        outputs = [
            self.model(image_encoding=encoding[i], candidates=self._candidates(labels["texts"]))
            for i, labels in enumerate(label_lists)
        ]
        return {
            "logits": [output.logits[0] for output in outputs],
            "pred_boxes": [output.pred_boxes[0] for output in outputs],
        }

    def _candidates(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """Encode labels; each text is tokenized once, since that would take longer than asking about it."""
        new = list({text for variants in texts for text in variants if text not in self._token_ids})
        if new:
            self._token_ids.update(zip(new, self.tokenizer(new)["input_ids"]))
        token_ids = [[self._token_ids[text] for text in variants] for variants in texts]
        if len(self._token_ids) > MAX_KEPT_LABELS:
            self._token_ids.clear()
        return self.model.model.text_candidates(token_ids)

    def postprocess(
        self, model_outputs: list[Any], threshold: float = 0.1, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Read the detections of one image.

        Args:
            model_outputs: The only chunk.
            threshold: A score must be greater.
            top_k: Number of detections at most; None for all.

        Returns:
            ``{"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}}`` of each, by descending
            score.
        """
        outputs = BaseModelOutput(model_outputs[0])
        found = self.image_processor.post_process_object_detection(outputs, threshold, outputs["target_size"], top_k)[
            0
        ]
        return [
            {
                "score": score,
                "label": outputs["labels"]["names"][label],
                "box": self._get_bounding_box(box),
            }
            for score, label, box in zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"])
        ]


class ImageCaptioningPipeline(FolderPipeline):
    """Caption images: ``pipeline("image-captioning", model=folder)("photo.jpg")``.

    Args of a call: an image (path, URL, PIL image), a list, a generator or a dataset of them;
    ``prompt``, the beginning of the caption; ``max_new_tokens`` and ``generate_kwargs`` for
    ``generate()``.

    Returns for each image a list of ``{"generated_text": str}``, one for each returned sequence,
    the prompt included.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True
    _default_generation_config = GenerationConfig(max_new_tokens=64)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        max_new_tokens: int | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        generate_kwargs = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            generate_kwargs["max_new_tokens"] = max_new_tokens
        if not isinstance(prompt, str | None):
            raise ValueError(
                f"`prompt` must be one text for all images of a call, got {prompt!r}. Call once for each."
            )
        preprocess_params = {} if prompt is None else {"prompt": prompt}
        return (
            preprocess_params,
            {"generate_kwargs": generate_kwargs} if generate_kwargs else {},
            {},
        )

    def preprocess(self, image: Any, prompt: str = "") -> BatchFeature:
        """Prepare an image and the beginning of its caption."""
        inputs = self.processor(images=image, text=prompt, return_tensors="pt")
        return inputs.to(dtype=self.dtype)

    def _forward(self, model_inputs: BatchFeature, generate_kwargs: dict[str, Any] | None = None) -> dict[str, Tensor]:
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs or {})
        sequences = self.model.generate(**model_inputs, **generate_kwargs)
        batch_size = len(model_inputs["input_ids"])
        return {"sequences": sequences.unflatten(0, (batch_size, -1))}  # (batch, returned, tokens)

    def postprocess(self, model_outputs: dict[str, Tensor]) -> list[dict[str, str]]:
        """Decode the captions of one image."""
        texts = self.processor.post_process_image_text_to_text(model_outputs["sequences"][0])
        return [{"generated_text": text.strip()} for text in texts]


def _open_all(images: Any, timeout: float | None) -> Any:
    """Open images, which may be lists of lists."""
    if isinstance(images, list | tuple):
        return [_open_all(image, timeout) for image in images]
    return open_image(images, timeout)
