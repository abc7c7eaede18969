"""Pipelines: three stock tasks that need help for our folders, and two tasks of our own.

A class registered over a stock task gets every model of that task. For a model of another type it
hands over to the stock class before it exists, so those users get an object of the stock class
itself.
"""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BatchFeature, GenerationConfig, PreTrainedTokenizerBase
from transformers.image_utils import load_image
from transformers.modeling_outputs import BaseModelOutput
from transformers.pipelines import (
    ImageTextToTextPipeline,
    ObjectDetectionPipeline,
    Pipeline,
    ZeroShotObjectDetectionPipeline,
)

from .configuration_upv2 import UniPerceiverV2Config
from .image_index import ImageIndex, list_images, stack_embeddings
from .image_processing_upv2 import UniPerceiverV2ImageProcessor
from .processing_upv2 import UniPerceiverV2Processor


class _SavesFolder(Pipeline):
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


class _OverStockTask(_SavesFolder):
    """Base of pipelines that are registered over a stock task, see the module docstring."""

    stock_class: ClassVar[type[Pipeline]]

    def __new__(cls, model: Any, *args: Any, **kwargs: Any) -> Any:
        """Give other models the stock pipeline."""
        if model.config.model_type != UniPerceiverV2Config.model_type:
            return cls.stock_class(model, *args, **kwargs)
        return super().__new__(cls)


class UniPerceiverV2ObjectDetectionPipeline(_OverStockTask, ObjectDetectionPipeline):
    """Stock object detection; only, a tokenizer in the folder does not mean a LayoutLM."""

    stock_class = ObjectDetectionPipeline

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any) -> None:
        super().__init__(model, tokenizer=None, **kwargs)
        self.tokenizer_to_save = tokenizer


class UniPerceiverV2ImageTextToTextPipeline(_OverStockTask, ImageTextToTextPipeline):
    """Stock image-text-to-text; only, a batch of prompts is padded on the left."""

    stock_class = ImageTextToTextPipeline

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer_to_save = self.tokenizer
        self.tokenizer = copy.deepcopy(self.tokenizer)
        self.tokenizer.padding_side = "left"


class UniPerceiverV2ZeroShotObjectDetectionPipeline(_OverStockTask, ZeroShotObjectDetectionPipeline):
    """Zero-shot object detection in one vision pass for any number of labels.

    The stock pipeline makes one for each label. The arguments and the results are the stock ones.
    Spaces around labels are removed.
    """

    stock_class = ZeroShotObjectDetectionPipeline

    def preprocess(self, inputs: dict[str, Any], timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """Prepare the image and keep its labels together, as the only chunk.

        Args:
            inputs: ``{"image", "candidate_labels"}``; labels are a list or joined by commas.
            timeout: Seconds to wait for an image from the web.

        Yields:
            Everything that `_forward` needs.

        Raises:
            ValueError: If there is no label.
        """
        labels = inputs.get("candidate_labels") or []
        labels = labels.split(",") if isinstance(labels, str) else labels
        labels = [label.strip() for label in labels]
        if not labels or not all(labels):
            raise ValueError(f"`candidate_labels` must hold at least one label and no empty one, got {labels}.")
        image = load_image(inputs["image"], timeout=timeout)
        features = self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        size = torch.tensor([[image.height, image.width]], dtype=torch.int32)
        yield {"is_last": True, "target_size": size, "candidate_labels": labels, **features}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:
        """Encode the images once; ask each about its labels."""
        is_last, labels = model_inputs.pop("is_last"), model_inputs.pop("candidate_labels")
        target_size = model_inputs.pop("target_size")
        label_lists = labels if isinstance(labels[0], list) else [labels]
        found = self._detect(label_lists, model_inputs)
        return {"is_last": is_last, "target_size": target_size, "candidate_labels": labels, **found}

    def _detect(self, label_lists: list[list[str]], images: dict[str, Tensor]) -> dict[str, Any]:
        """Detect in one call if all images have the same labels, else image by image."""
        if all(labels == label_lists[0] for labels in label_lists):
            outputs = self.model(**images, **self._tokenize(label_lists[0]))
            return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
        encoding = self.model.model.encode_image(**images)
        outputs = [
            self.model(image_encoding=encoding[i], **self._tokenize(labels)) for i, labels in enumerate(label_lists)
        ]
        return {
            "logits": [output.logits[0] for output in outputs],
            "pred_boxes": [output.pred_boxes[0] for output in outputs],
        }

    def _tokenize(self, labels: list[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(labels, padding=True, return_tensors="pt")
        return {name: value.to(self.device) for name, value in tokens.items()}

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
                "label": outputs["candidate_labels"][label],
                "box": self._get_bounding_box(box),
            }
            for score, label, box in zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"])
        ]


class ImageCaptioningPipeline(_SavesFolder):
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


class ImageTextRetrievalPipeline(_SavesFolder):
    """Index images once, then find them by text or by image.

    ```
    search = pipeline("image-text-retrieval", model=folder)
    search.build_index("photos/")
    search.index.save("photos.safetensors")
    search("a red ball on the left", top_k=3)  # [{"score": 0.31, "image": "photos/7.jpg"}, ...]
    ```

    Args of a call: a query, a list, a generator or a dataset of queries; ``top_k``, how many images
    to find (5). A string is always a text; an image is a PIL image or a ``pathlib.Path``.

    Returns for each query a list of ``{"score": cosine, "image": name}``, by descending score.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    index: ImageIndex | None = None

    def build_index(
        self, source: str | Path | Iterable[str | Path], batch_size: int = 1, progress: bool = True
    ) -> ImageIndex:
        """Embed images; from now on calls search in them.

        Args:
            source: A folder, searched with its subfolders, or image files.
            batch_size: Images at a time; more than one needs a processor with a ``pad_size``.
            progress: Show a progress bar.

        Returns:
            The index, which is also kept as ``self.index``.

        Raises:
            ValueError: If there is no image, or one cannot be read.
        """
        files = list_images(source)
        found = super().__call__((file for file in files), batch_size=batch_size, embed_only=True)
        embeddings = stack_embeddings(tqdm(found, total=len(files), desc="Index images", disable=not progress))
        self.index = ImageIndex([str(file) for file in files], embeddings)
        return self.index

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Search, see the class.

        Args:
            inputs: Queries.
            **kwargs: ``top_k``, ``batch_size``, ``num_workers``.

        Returns:
            The images found for each query.

        Raises:
            ValueError: If there is no index.
        """
        self._searched_index()
        return super().__call__(inputs, **kwargs)

    def _searched_index(self) -> ImageIndex:
        if self.index is None:
            raise ValueError(
                "There must be an index to search in, got none. Call `build_index(folder)` or set "
                "`index` to a saved one."
            )
        return self.index

    def _sanitize_parameters(
        self, top_k: int | None = None, embed_only: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"top_k": top_k, "embed_only": embed_only}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, query: str | Path | Image.Image) -> BatchFeature:
        """Prepare a text or an image."""
        if isinstance(query, str):
            return self.processor(text=[query], return_tensors="pt")
        return self.processor(images=query, return_tensors="pt").to(dtype=self.dtype)

    def _forward(self, model_inputs: BatchFeature) -> dict[str, Tensor]:
        is_image = "pixel_values" in model_inputs
        embed = self.model.get_image_features if is_image else self.model.get_text_features
        return {"embedding": embed(**model_inputs).pooler_output}

    def postprocess(
        self, model_outputs: dict[str, Tensor], top_k: int = 5, embed_only: bool = False
    ) -> Tensor | list[dict[str, Any]]:
        """Search with one embedding, or only return it, ``(1, D)``."""
        if embed_only:
            return model_outputs["embedding"]
        index = self._searched_index()
        scores, positions = index.search(model_outputs["embedding"], top_k)
        return [
            {"score": score, "image": index.names[position]}
            for score, position in zip(scores[0].tolist(), positions[0].tolist())
        ]
