"""One processor for all tasks: an image processor and RoBERTa's tokenizer."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BatchEncoding, BatchFeature
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput

from .image_processing_upv2 import UniPerceiverV2ImageProcessor, UniPerceiverV2ImageProcessorKwargs
from .tokenizer_upv2 import require_words

TRACES_OF_LOADING = ("is_local", "local_files_only")


class UniPerceiverV2ProcessorKwargs(ProcessingKwargs, total=False):
    """Options of `UniPerceiverV2Processor`: those of its two parts."""

    images_kwargs: UniPerceiverV2ImageProcessorKwargs


class UniPerceiverV2Processor(ProcessorMixin):
    """Prepare images, texts, and images with the beginning of a caption.

    Text alone is a whole, ``<s> words </s>``, padded on the right: a caption, a class name, a
    sentence with masks. Text beside images is a prompt, the beginning of a caption that
    ``generate()`` continues: ``<s> words`` without the end, padded on the left; the empty text is
    just ``<s>``. So images and whole texts for retrieval are prepared by two calls.

    Args:
        image_processor: Prepares images and reads boxes and masks from outputs.
        tokenizer: RoBERTa's, with ids 0 ``<s>``, 1 ``<pad>``, 2 ``</s>``, 3 ``<unk>`` and last
            ``<mask>``.

    Raises:
        ValueError: If the tokenizer has no words.
    """

    valid_processor_kwargs = UniPerceiverV2ProcessorKwargs
    text_kwargs = {"padding": True}

    def __init__(self, image_processor: UniPerceiverV2ImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)
        require_words(tokenizer)

    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        annotations: dict[str, Any] | list[dict[str, Any]] | None = None,
        **kwargs: Unpack[UniPerceiverV2ProcessorKwargs],
    ) -> BatchFeature:
        """Turn inputs into a batch.

        Args:
            images: One image or a list, of any kind that the image processor takes.
            text: One text or a list; a prompt if there are images.
            annotations: COCO annotations of each image, see the image processor.
            **kwargs: Options of the image processor and of the tokenizer.

        Returns:
            ``pixel_values``, ``pixel_mask`` and with annotations ``labels``, if there are images;
            ``input_ids`` and ``attention_mask`` ``(batch, tokens)``, if there is text.

        Raises:
            ValueError: If there is nothing to process, or annotations without images.
        """
        self.validate_inputs(images=images, text=text)
        if isinstance(text, list) and not text:
            raise ValueError("`text` must hold at least one text, got an empty list. Pass None if there is none.")
        if annotations is not None and images is None:
            raise ValueError("`annotations` need `images`, got none. Pass the annotated images too.")
        options = self._merge_kwargs(
            UniPerceiverV2ProcessorKwargs,
            tokenizer_init_kwargs=self.tokenizer.init_kwargs,
            **kwargs,
        )
        data: dict[str, Any] = {}
        if images is not None:
            data |= self.image_processor(images, annotations, **options["images_kwargs"])
        if text is not None:
            encode = self._encode_prompts if images is not None else self.tokenizer
            data |= encode(text, **options["text_kwargs"])
        return BatchFeature(data)

    def post_process_object_detection(self, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        """See `UniPerceiverV2ImageProcessor.post_process_object_detection`."""
        return self.image_processor.post_process_object_detection(*args, **kwargs)

    def post_process_instances(self, *args: Any, **kwargs: Any) -> list[dict[str, Tensor]]:
        """See `UniPerceiverV2ImageProcessor.post_process_instances`."""
        return self.image_processor.post_process_instances(*args, **kwargs)

    def post_process_instance_segmentation(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """See `UniPerceiverV2ImageProcessor.post_process_instance_segmentation`."""
        return self.image_processor.post_process_instance_segmentation(*args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        """Save files that tell what the processor is, not where it came from or what it last did.

        A tokenizer would also write its last padding and whether it was loaded from a local folder,
        so saving a loaded processor would change the files.

        Args:
            save_directory: The folder, made if it does not exist.
            **kwargs: Options of the base class, such as ``push_to_hub``.

        Returns:
            The files.
        """
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        for trace in TRACES_OF_LOADING:
            self.tokenizer.init_kwargs.pop(trace, None)
        return super().save_pretrained(save_directory, **kwargs)

    def _encode_prompts(
        self,
        text: TextInput | list[TextInput],
        padding: bool | str = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchEncoding:
        """Tokenize the beginnings of captions: no ``</s>``, padding on the left."""
        prompts = [text] if isinstance(text, str) else text
        options = {name: value for name, value in options.items() if name != "padding_side"}
        encoded = self.tokenizer(prompts, **options)
        for i, ids in enumerate(encoded["input_ids"]):
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                for values in encoded.values():
                    values[i].pop()
        return self.tokenizer.pad(
            encoded,
            padding=padding,
            max_length=options.get("max_length") if padding == "max_length" else None,
            padding_side="left",
            return_tensors=return_tensors,
        )
