"""Images and COCO annotations to tensors, and outputs back to boxes and masks in pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import (
    get_size_with_aspect_ratio,
    group_images_by_shape,
    reorder_images,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .coco_labels import labels_from_coco, resize_and_pad_labels
from .image_inputs import open_image, pil_to_rgb, to_eight_bits, warn_of_rescaled
from .post_processing import (
    TargetSizes,
    instances_to_list,
    instances_to_map,
    select_detections,
    select_instances,
)


class UniPerceiverV2ImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of `UniPerceiverV2ImageProcessor`.

    Attributes:
        size_divisor: Without ``pad_size``, a batch is padded to a multiple of this. The strides of
            the proposal network ask for 32.
    """

    size_divisor: int | None


class UniPerceiverV2ImageProcessor(TorchvisionBackend):
    """Prepare images, and training labels if there are annotations; read the model's outputs.

    An image is made upright RGB, resized, normalized and put into the top left corner of the padded
    tensor. ``size`` keeps the aspect ratio as ``{"shortest_edge", "longest_edge"}`` (the shortest
    edge is reached unless the longest would exceed its limit) or ``{"longest_edge"}`` (reached
    exactly); ``{"height", "width"}`` does not keep it. The padded size is ``pad_size`` if given,
    else the largest height and width of the batch, rounded up to a multiple of ``size_divisor``.

    Not stated in the paper, chosen here: the defaults, the usual ones of detection on COCO; a set
    ``pad_size`` lets stock pipelines batch images of different shapes.

    Some pipelines for our models are the stock classes themselves: image-classification, image-segmentation,
    zero-shot-image-classification and image-feature-extraction. They open images by transformers' ``load_image``,
    which clips 16-bit values and drops transparency before this class sees them; give them what `open_image` returns.
    """

    valid_kwargs = UniPerceiverV2ImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 800, "longest_edge": 1333}
    default_to_square = False
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    pad_size = None
    size_divisor = 32

    def __init__(self, **kwargs: Unpack[UniPerceiverV2ImageProcessorKwargs]) -> None:
        """Check the sizes once, so that a saved processor can be trusted."""
        super().__init__(**kwargs)
        _check_size(self.size)
        _check_divisor(self.size_divisor)

    def preprocess(
        self,
        images: ImageInput,
        annotations: dict[str, Any] | list[dict[str, Any]] | None = None,
        **kwargs: Unpack[UniPerceiverV2ImageProcessorKwargs],
    ) -> BatchFeature:
        """Turn images, and their COCO annotations if given, into a batch.

        Args:
            images: One image or a list: PIL of any mode, arrays or tensors with values 0..255
                (uint16: 0..65535), file paths or URLs.
            annotations: For each image ``{"image_id": int or str, "annotations": [COCO
                annotation, ...]}``, with ``category_id`` already a label and polygons or run lengths as
                ``segmentation``.
            **kwargs: Options for this call only.

        Returns:
            ``pixel_values`` ``(batch, 3, H, W)``, ``pixel_mask`` ``(batch, H, W)`` with 1 = real
            pixel, and with annotations ``labels``, a list of dicts: ``class_labels``, ``boxes``
            cxcywh in [0, 1] of the real image, ``masks`` ``(n, H, W)`` on the padded tensor if
            annotated (with ``has_mask`` ``(n,)`` where some objects are not), ``area``, ``iscrowd``,
            ``orig_size``, ``size`` of the real image in the tensor, ``image_id`` unless it is a
            text. Crowd annotations are left out.

        Raises:
            ValueError: If there is no image, one cannot be decoded, is empty or holds integers
                outside of 0..255, a size is impossible, or an annotation is malformed or outside its
                image.
        """
        _check_divisor(kwargs.get("size_divisor"))
        return super().preprocess(images, annotations, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:  # noqa: D102 - as in the base class
        if isinstance(image_url_or_urls, list | tuple):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, str | Path):
            return open_image(image_url_or_urls)
        if isinstance(image_url_or_urls, np.ndarray | Tensor) and image_url_or_urls.ndim == 2:
            return image_url_or_urls[None]  # gray
        return super().fetch_images(image_url_or_urls)

    def process_image(self, image: Image.Image | np.ndarray | Tensor, **kwargs: Any) -> Tensor:
        """Turn one image into a tensor.

        Args:
            image: A PIL image of any mode, an array or a tensor.
            **kwargs: Options of the call.

        Returns:
            ``(3, height, width)``, values 0..255.

        Raises:
            ValueError: If the image is empty or cannot be decoded.
        """
        if isinstance(image, Image.Image):
            image = pil_to_rgb(image)
            kwargs["input_data_format"] = ChannelDimension.LAST
        elif 0 in image.shape:
            raise ValueError(f"An image must have at least one pixel, got shape {tuple(image.shape)}.")
        return super().process_image(to_eight_bits(image), **kwargs)

    def resize(self, image: Tensor, size: SizeDict, **kwargs: Any) -> Tensor:
        """Resize images to what ``size`` makes of their shape.

        Args:
            image: ``(..., channels, height, width)``.
            size: See the class.
            **kwargs: Options of the base class, such as ``resample``.

        Returns:
            ``(..., channels, new height, new width)``.
        """
        height, width = resized_size(_size(image), size)
        return super().resize(image, SizeDict(height=height, width=width), **kwargs)

    def _preprocess(
        self,
        images: list[Tensor],
        annotations: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        if not images:
            raise ValueError("`images` must hold at least one image, got none.")
        if options["do_rescale"]:
            warn_of_rescaled(images)
        labels = _labels_of_batch(annotations, images)
        groups, order = group_images_by_shape(images, disable_grouping=options["disable_grouping"])
        for shape, stacked in groups.items():
            if options["do_resize"]:
                stacked = self.resize(stacked, options["size"], resample=options["resample"])
            groups[shape] = self.rescale_and_normalize(
                stacked,
                options["do_rescale"],
                options["rescale_factor"],
                options["do_normalize"],
                options["image_mean"],
                options["image_std"],
            )
        images = list(reorder_images(groups, order))
        sizes = [_size(image) for image in images]
        padded_size = _padded_size(sizes, options)
        data = {"pixel_values": torch.stack([_pad(image, padded_size) for image in images])}
        if options["do_pad"]:
            real = [torch.ones_like(image[0], dtype=torch.int64) for image in images]
            data["pixel_mask"] = torch.stack([_pad(ones, padded_size) for ones in real])
        batch = BatchFeature(data, tensor_type=return_tensors)
        if labels is not None:
            batch["labels"] = [
                {
                    name: value.to(images[0].device)
                    for name, value in resize_and_pad_labels(item, size, padded_size).items()
                }
                for item, size in zip(labels, sizes)
            ]
        return batch

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: TargetSizes = None,
        top_k: int | None = 100,
    ) -> list[dict[str, Tensor]]:
        """Read detections from the outputs of an object detection model.

        Args:
            outputs: With ``logits`` ``(batch, proposals, classes)`` whose sigmoid is the score, and
                ``pred_boxes`` ``(batch, proposals, 4)`` cxcywh in [0, 1] of the real image.
            threshold: A score must be greater.
            target_sizes: (height, width) of each original image; None for boxes in [0, 1].
            top_k: Number of (proposal, class) pairs an image at most; None for all.

        Returns:
            One dict an image, by descending score: ``scores`` ``(n,)``, ``labels`` ``(n,)``,
            ``boxes`` ``(n, 4)`` xyxy, clipped to the image.

        Raises:
            ValueError: If there are not as many target sizes as images.
        """
        return [
            {"scores": found.scores, "labels": found.labels, "boxes": found.boxes}
            for found in select_detections(outputs, threshold, target_sizes, top_k)
        ]

    def post_process_instances(
        self,
        outputs: Any,
        target_sizes: TargetSizes,
        top_k: int | None = 100,
        threshold: float = 0.0,
    ) -> list[dict[str, Tensor]]:
        """Read instances with whole masks, as an evaluation needs them.

        Args:
            outputs: Of `UniPerceiverV2ForInstanceSegmentation`.
            target_sizes: (height, width) of each original image; None for the sizes in the tensor.
            top_k: Number of (proposal, class) pairs an image at most; None for all.
            threshold: A score must be greater.

        Returns:
            One dict an image, by descending score (class score times mean mask probability):
            ``scores``, ``labels``, ``boxes`` ``(n, 4)`` xyxy and ``masks`` ``(n, height, width)``
            bool, which may overlap.

        Raises:
            ValueError: If masks are missing or there are not as many target sizes as images.
        """
        return select_instances(outputs, threshold, 0.5, target_sizes, top_k)

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        target_sizes: TargetSizes = None,
        return_coco_annotation: bool = False,
        return_binary_maps: bool = False,
        top_k: int | None = 100,
    ) -> list[dict[str, Any]]:
        """Read segments from the outputs of an instance segmentation model.

        Args:
            outputs: Of `UniPerceiverV2ForInstanceSegmentation`.
            threshold: A score (class score times mean mask probability) must be greater.
            mask_threshold: A pixel belongs to a mask if its probability is greater.
            overlap_mask_area_threshold: In the id map, an instance of which less than this share is
                visible is left out.
            target_sizes: (height, width) of each original image; None for the sizes in the tensor.
            return_coco_annotation: Give a list of compressed COCO run lengths in place of the id
                map.
            return_binary_maps: Give ``(n, height, width)`` bool masks in place of the id map.
            top_k: Number of (proposal, class) pairs an image at most; None for all.

        Returns:
            One dict an image: ``segmentation``, the id map ``(height, width)`` int32 with 0 = no
            instance, or the whole masks, which may overlap; and ``segments_info``, ``{"id",
            "label_id", "was_fused", "score"}`` of each.

        Raises:
            ValueError: If both other formats are asked for, masks are missing, or there are not as
                many target sizes as images.
        """
        if return_coco_annotation and return_binary_maps:
            raise ValueError(
                "`return_coco_annotation` and `return_binary_maps` must not both be True: "
                "they are two formats of the same masks. Choose one."
            )
        images = select_instances(outputs, threshold, mask_threshold, target_sizes, top_k)
        if return_coco_annotation or return_binary_maps:
            return [instances_to_list(image, as_coco=return_coco_annotation) for image in images]
        return [instances_to_map(image, overlap_mask_area_threshold) for image in images]


def resized_size(image_size: tuple[int, int], size: SizeDict) -> tuple[int, int]:
    """Compute the size that an image is resized to.

    Args:
        image_size: (height, width).
        size: One of the forms that `UniPerceiverV2ImageProcessor` names.

    Returns:
        (height, width), each at least 1.

    Raises:
        ValueError: If ``size`` has another form.
    """
    given = _check_size(size)
    if "height" in given:
        return given["height"], given["width"]
    longest = given["longest_edge"]
    if "shortest_edge" in given:
        height, width = get_size_with_aspect_ratio(image_size, given["shortest_edge"], longest)
    else:
        height, width = (round(side * longest / max(image_size)) for side in image_size)
    return max(1, height), max(1, width)


def _check_size(size: SizeDict | dict[str, int]) -> dict[str, int]:
    """Refuse sizes without a bound on both sides: a panorama must not grow without limit."""
    given = dict(size)
    forms = ({"height", "width"}, {"longest_edge"}, {"shortest_edge", "longest_edge"})
    if set(given) not in forms or min(given.values()) < 1:
        raise ValueError(
            "`size` must have the keys {'height', 'width'}, {'longest_edge'} or "
            f"{{'shortest_edge', 'longest_edge'}} with positive values, got {given}."
        )
    return given


def _check_divisor(size_divisor: int | None) -> None:
    if size_divisor is not None and size_divisor < 1:
        raise ValueError(f"`size_divisor` must be at least 1, got {size_divisor}.")


def _size(image: Tensor) -> tuple[int, int]:
    """(height, width) of an image, ``(..., height, width)``."""
    return image.shape[-2], image.shape[-1]


def _labels_of_batch(
    annotations: dict[str, Any] | list[dict[str, Any]] | None, images: list[Tensor]
) -> list[dict[str, Tensor]] | None:
    """Read the annotations of a batch, which must be as many as images."""
    if annotations is None:
        return None
    if isinstance(annotations, dict):
        annotations = [annotations]
    if len(annotations) != len(images):
        raise ValueError(
            f"`annotations` must hold one dict for each image, got {len(annotations)} for {len(images)} images."
        )
    return [labels_from_coco(target, _size(image)) for target, image in zip(annotations, images)]


def _padded_size(sizes: list[tuple[int, int]], options: dict[str, Any]) -> tuple[int, int]:
    """Find the common size of a batch."""
    largest = tuple(max(side) for side in zip(*sizes))
    if not options["do_pad"]:
        if len(set(sizes)) > 1:
            raise ValueError(
                "With `do_pad=False` all images of a batch must have one size, got (height, width) "
                f"{sorted(set(sizes))}. Pad, or pass images of one size."
            )
        return largest
    pad_size, divisor = options["pad_size"], options["size_divisor"] or 1
    if pad_size is None:
        return tuple(-(-side // divisor) * divisor for side in largest)
    if largest[0] > pad_size.height or largest[1] > pad_size.width:
        raise ValueError(
            f"`pad_size` {dict(pad_size)} must hold every resized image, got (height, width) up to "
            f"{largest}. Choose a smaller `size` or a larger `pad_size`."
        )
    return pad_size.height, pad_size.width


def _pad(image: Tensor, padded_size: tuple[int, int]) -> Tensor:
    """Add zeros to the right and below."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, padded_size[1] - width, 0, padded_size[0] - height))
