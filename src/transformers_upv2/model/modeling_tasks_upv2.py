"""The task classes: thin views of one model, without parameters of their own.

Several classes and not one, because the stock pipelines disagree on what ``logits`` is. Any of them loads any
checkpoint, and all write the same weights file.
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .candidates import build_label_set, label_texts
from .configuration_upv2 import UniPerceiverV2Config
from .image_encoding import ImageEncoding
from .modeling_upv2 import UniPerceiverV2Model
from .output_recording import records_input
from .outputs import (
    ImageClassificationOutput,
    ImageTextOutput,
    ObjectDetectionOutput,
    TaskOutput,
    VocabularyOutput,
)
from .pretrained_upv2 import UniPerceiverV2PreTrainedModel
from .task_forward import (
    TASK_FORWARD,
    choose_candidates,
    classification,
    complete_texts,
    detect,
    detection,
    embed_words,
    full_masks,
    image_text_output,
    match_texts,
    restore_words,
    retrieval,
    vocabulary_logits,
)
from .tasks import TASKS, get_task
from .tokenizer_upv2 import require_fit


class UniPerceiverV2TaskModel(UniPerceiverV2PreTrainedModel):
    """What all task classes share: the one model, and the label set that a class presents as ``id2label``."""

    label_set: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = records_input(cls.forward)

    def __init__(self, config: UniPerceiverV2Config, model: UniPerceiverV2Model | None = None) -> None:
        super().__init__(config)
        self.model = UniPerceiverV2Model(config) if model is None else model
        self.post_init()

    @property  # type: ignore[override]
    def config(self) -> UniPerceiverV2Config:
        """The view's config; its ``id2label`` names the present label set, whichever view set it."""
        labels = self._config.label_sets.get(self.label_set)
        if labels is not None and labels is not self._presented:
            self._present_labels(labels)
        return self._config

    @config.setter
    def config(self, config: UniPerceiverV2Config) -> None:
        self._config = config
        self._presented: dict[str, Any] | None = None

    @property
    def generation_config(self) -> GenerationConfig:
        """How to generate, which all views share."""
        return self.model.generation_config

    @generation_config.setter
    def generation_config(self, generation_config: GenerationConfig) -> None:
        if "model" in self._modules:  # transformers sets its own default before there is a model
            self.model.generation_config = generation_config

    @classmethod
    def from_model(cls, model: UniPerceiverV2PreTrainedModel) -> Self:
        """Make a view of a model that shares its parameters.

        Args:
            model: The base model or any task class.

        Returns:
            A task model; training one trains the other.
        """
        base: Any = getattr(model, "model", model)
        view = cls(copy.copy(base.config), model=base)
        return view.train(base.training)

    def _present_labels(self, labels: dict[str, Any]) -> None:
        self._config.id2label = dict(enumerate(labels["names"]))
        self._config.label2id = {name: index for index, name in enumerate(labels["names"])}
        self._presented = labels

    def set_labels(
        self,
        labels: Sequence[str] | dict[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        label_set: str | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        """Choose what to look for: any names, tokenized into the config.

        Args:
            labels: Names, or names with their synonyms, whose embeddings are averaged.
            tokenizer: The model's tokenizer.
            label_set: Which named set to replace; None: the one that this class presents.
            templates: Sentences with one ``{}`` that each name is put into; None: the bare name.

        Raises:
            ValueError: If the class presents no set and none is named, or the labels or the tokenizer are unusable.
        """
        name = label_set or self.label_set
        if name is None:
            raise ValueError(f"`label_set` must be given, since {type(self).__name__} presents none, got None.")
        require_fit(tokenizer, self.model.config)
        # one dict for the model and all its views
        self.model.config.label_sets[name] = build_label_set(labels, tokenizer, templates)

    def encode_labels(
        self,
        labels: Sequence[str] | dict[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        templates: Sequence[str] | None = None,
    ) -> Tensor:
        """Encode any names as candidates; each is encoded once and kept until the weights change.

        Args:
            labels: Names, or names with their synonyms, whose embeddings are averaged.
            tokenizer: The model's tokenizer.
            templates: Sentences with one ``{}`` that each name is put into; None: the bare name.

        Returns:
            Unit vectors, ``(labels, D)``.

        Raises:
            ValueError: If the labels, the templates or the tokenizer are unusable.
        """
        require_fit(tokenizer, self.model.config)
        texts = label_texts(labels, templates)
        return self.model.text_candidates([tokenizer(variants)["input_ids"] for variants in texts])

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's word embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's word embeddings."""
        self.model.set_input_embeddings(value)

    def merge_experts(self, tasks: Sequence[str] | None = None) -> None:
        """Deploy with one dense network a route; see `UniPerceiverV2Model.merge_experts`."""
        self.model.merge_experts(tasks)

    def encode_image(self, *args: Any, **kwargs: Any) -> ImageEncoding:
        """Perceive once; see `UniPerceiverV2Model.encode_image`."""
        return self.model.encode_image(*args, **kwargs)


class UniPerceiverV2ForMultiTask(UniPerceiverV2TaskModel):
    """What the Trainer trains: ``forward(task=..., **batch)``."""

    def forward(self, task: str, step_seed: int | None = None, **batch: Any) -> TaskOutput:
        """Run one training task.

        Args:
            task: Key of ``TASKS``.
            step_seed: Seed of the noise of a training step, equal on all processes.
            **batch: The arguments of that task, see ``TASK_FORWARD``.

        Returns:
            The task's output; while training only its loss and the terms.

        Raises:
            ValueError: If there is no such task.
        """
        output = TASK_FORWARD[get_task(task).name](self.model, step_seed=step_seed, **batch)
        # data-parallel training waits for a gradient of everything that is returned
        return type(output)(loss=output.loss, loss_terms=output.loss_terms) if self.training else output


class UniPerceiverV2ForImageClassification(UniPerceiverV2TaskModel):
    """Image classification among the names of the label set "classification"."""

    label_set = "classification"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        **_: Any,
    ) -> ImageClassificationOutput:
        """Classify images.

        Args:
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            labels: ``(batch,)``, to get a loss.
            image_encoding: In place of ``pixel_values``.

        Returns:
            Logits ``(batch, labels)``.
        """
        return classification(self.model, pixel_values, pixel_mask, labels, image_encoding)


class UniPerceiverV2ForObjectDetection(UniPerceiverV2TaskModel):
    """Object detection among the names of the label set "detection"."""

    label_set = "detection"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        image_encoding: ImageEncoding | None = None,
        **_: Any,
    ) -> ObjectDetectionOutput:
        """Detect objects.

        Args:
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            labels: ``class_labels``, ``boxes`` and optionally ``masks`` of each image, to get a loss; ``has_mask``
                where only some objects have a mask.
            image_encoding: In place of ``pixel_values``.

        Returns:
            Logits ``(batch, N, labels)`` whose sigmoid is the score, and boxes ``(batch, N, 4)``.
        """
        return detection(self.model, pixel_values, pixel_mask, labels, image_encoding)


class UniPerceiverV2ForInstanceSegmentation(UniPerceiverV2TaskModel):
    """Instance segmentation: detection with full masks."""

    label_set = "detection"

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Any]] | None = None,
        image_encoding: ImageEncoding | None = None,
        **_: Any,
    ) -> ObjectDetectionOutput:
        """Detect objects and draw their masks; the arguments are those of `UniPerceiverV2ForObjectDetection`."""
        if labels is None:
            image_encoding = self.model.resolve_encoding(
                pixel_values, pixel_mask, image_encoding, keep_mask_features=True
            )
            pixel_values = None
        output = detection(self.model, pixel_values, pixel_mask, labels, image_encoding)
        output.pred_masks = full_masks(output.image_encoding)
        return output


class UniPerceiverV2ForZeroShotImageClassification(UniPerceiverV2TaskModel):
    """Classification among any texts."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        candidates: Tensor | None = None,
        **_: Any,
    ) -> ImageTextOutput:
        """Compare images with class texts.

        Args:
            pixel_values: ``(images, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(images, H, W)``.
            input_ids: Tokens of each text, ``(texts, tokens)``.
            attention_mask: 1 = real token, ``(texts, tokens)``.
            image_encoding: In place of ``pixel_values``.
            candidates: From `encode_labels`, ``(texts, D)``, in place of ``input_ids``.

        Returns:
            Logits of every image for every text.
        """
        task = TASKS["classification"]
        encoding = self.model.resolve_encoding(pixel_values, pixel_mask, image_encoding)
        images = self.model.decode_image(encoding, task.input_routes[0])[:, 0]
        texts = choose_candidates(self.model, input_ids, attention_mask, candidates)
        return image_text_output(self.model, encoding, images, texts, task.temperature)


class UniPerceiverV2ForZeroShotObjectDetection(UniPerceiverV2TaskModel):
    """Detection of anything that has a name."""

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        candidates: Tensor | None = None,
        **_: Any,
    ) -> ObjectDetectionOutput:
        """Detect what the texts name.

        Args:
            pixel_values: ``(batch, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(batch, H, W)``.
            input_ids: Tokens of each label, ``(labels, tokens)`` for all images or ``(batch, labels, tokens)``.
            attention_mask: 1 = real token, of the same shape.
            image_encoding: In place of ``pixel_values``.
            candidates: From `encode_labels`, ``(labels, D)`` or ``(batch, labels, D)``, in place of ``input_ids``.

        Returns:
            Logits ``(batch, N, labels)`` whose sigmoid is the score, and boxes ``(batch, N, 4)``.
        """
        encoding = self.model.resolve_encoding(pixel_values, pixel_mask, image_encoding)
        candidates = choose_candidates(self.model, input_ids, attention_mask, candidates)
        if candidates.ndim == 3:
            encoding = match_texts(encoding, len(candidates))
        return detect(self.model, encoding, candidates)[0]


class UniPerceiverV2ForImageTextRetrieval(UniPerceiverV2TaskModel):
    """Images and captions as unit vectors in one space."""

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """Embed images; see `UniPerceiverV2Model.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        """Embed captions; see `UniPerceiverV2Model.get_text_features`."""
        return self.model.get_text_features(*args, **kwargs)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_encoding: ImageEncoding | None = None,
        **_: Any,
    ) -> ImageTextOutput:
        """Compare images with captions.

        Args:
            pixel_values: ``(images, 3, H, W)``.
            pixel_mask: 1 = real pixel, ``(images, H, W)``.
            input_ids: ``(texts, tokens)``.
            attention_mask: 1 = real token, ``(texts, tokens)``.
            image_encoding: In place of ``pixel_values``.

        Returns:
            Logits of every image for every text; a contrastive loss if there are as many of both.
        """
        input_ids, attention_mask = complete_texts(input_ids, attention_mask)
        return retrieval(
            self.model, pixel_values, pixel_mask, image_encoding, input_ids=input_ids, attention_mask=attention_mask
        )


class UniPerceiverV2ForMaskedLM(UniPerceiverV2TaskModel):
    """Masked language modeling."""

    main_input_name = "input_ids"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **_: Any,
    ) -> VocabularyOutput:
        """Score the vocabulary at every position.

        Args:
            input_ids: Text with ``<mask>`` tokens, ``(batch, tokens)``.
            attention_mask: 1 = real token, ``(batch, tokens)``.
            labels: True token ids, -100 where not asked, ``(batch, tokens)``, to get a loss.

        Returns:
            Logits ``(batch, tokens, vocab_size)``; while training with ``labels`` only the loss.
        """
        embeddings = embed_words(self.model, *complete_texts(input_ids, attention_mask))
        output = VocabularyOutput() if labels is None else restore_words(self.model, embeddings, labels)
        if labels is None or not self.model.training:  # scoring the whole vocabulary would cost more than the step
            output.logits = vocabulary_logits(self.model, embeddings)
        return output
