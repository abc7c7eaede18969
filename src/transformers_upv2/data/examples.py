"""The examples that every reader returns, and the one way an image file is opened.

An example is a plain dict. A reader is a map-style ``torch.utils.data.Dataset`` of one kind of
example; which kind a training task takes is stated in ``transformers_upv2.model.tasks``.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from transformers_upv2.model.image_inputs import pil_to_rgb

Transform = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


class DataError(ValueError):
    """Bad data: an unreadable file or a malformed annotation. Its message names file and field."""


BAD_SAMPLE_ERRORS = (DataError, OSError)
"""What a data set raises for a sample that cannot be read; PIL's are OSErrors. Others are faults of a program."""


def reason_of(error: Exception) -> str:
    """Return the message of an error, the same whenever a sample fails: without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))


class ClassificationExample(TypedDict):
    """An image and the index of its class in the data set's ``class_names``."""

    image: Image.Image
    label: int
    image_id: str | int


class DetectionExample(TypedDict):
    """An image and its COCO annotations, ``category_id`` being an index into ``class_names``."""

    image: Image.Image
    image_id: int | str
    annotations: list[dict[str, Any]]


class CaptionExample(TypedDict):
    """An image and all its captions, for captioning and for retrieval."""

    image: Image.Image
    image_id: int | str
    captions: list[str]


class TextExample(TypedDict):
    """One document of a text corpus."""

    text: str


class DrawnExample(TypedDict):
    """What ``TaskDataset`` adds to an example of any kind.

    ``replaced`` lists the bad samples, (index, reason), that the example stands for.
    """

    rng_seed: int
    replaced: list[tuple[int, str]]


def image_path(folder: Path, name: str) -> Path:
    """Return where an image lies; a tool on Windows may have written its name with backslashes."""
    path = folder / name
    return path if "\\" not in name or path.is_file() else folder / PureWindowsPath(name).as_posix()


def load_image(
    path: str | Path, annotated_size: tuple[int, int] | None = None, content: bytes | None = None
) -> Image.Image:
    """Open an image file as RGB, the right way up, as the image processor would.

    Not stated in the paper, chosen here: boxes and masks must fit the pixels. Where their frame is
    known (``annotated_size``, as COCO JSON states it) and equals the stored size, the file is taken
    as stored, without its EXIF rotation (old annotation tools ignored it; a square or upside-down
    photograph, where both sizes agree, counts as this case). Where it equals the rotated size,
    or no frame is stated, the image is rotated as a viewer would show it.

    Args:
        path: The file.
        annotated_size: (width, height) of the frame in which the annotations were made.
        content: The bytes of the file, where ``path`` only names it.

    Raises:
        DataError: If the file is missing, unreadable or truncated, or has neither orientation's
            size equal to ``annotated_size``.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as file:
            stored_size = file.size
            as_stored = annotated_size is not None and tuple(annotated_size) == stored_size
            # made of the pixels alone, or whoever gets the image would apply its EXIF rotation
            image = Image.fromarray(pil_to_rgb(file, upright=not as_stored))
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image file must exist, but there is none.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: the image file must be readable, but got: {reason_of(error)}.") from error
    if annotated_size is not None and tuple(annotated_size) != image.size:
        raise DataError(
            f"{path}: `width` and `height` of the annotation file must be the image's, {image.size}"
            f" or as stored {stored_size}, got {tuple(annotated_size)}."
        )
    return image
