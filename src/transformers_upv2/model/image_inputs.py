"""Whatever a user calls an image, as an upright 8-bit RGB array with at least one pixel.

Not stated in the paper, chosen here: 16-bit values map linearly to 8 bits, and transparency is
composed onto white, as transformers does.
"""

import base64
import io
import os
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import Image, ImageOps
from torch import Tensor
from transformers.image_transforms import convert_to_rgb
from transformers.utils import logging

logger = logging.get_logger(__name__)

SIXTEEN_TO_EIGHT_BITS = 257  # 65535 / 255
WIDE_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint32, torch.uint64)
TIMEOUT = 30.0
"""Seconds to wait for an image from the web."""
WEB = ("http://", "https://")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises about a file that is no image, or a broken one."""


def open_image(source: str | Path | Image.Image, timeout: float | None = TIMEOUT) -> Image.Image:
    """Read an image from a file, a URL or a base64 string; all three give the same pixels.

    Args:
        source: Where the image is, or a PIL image of any mode.
        timeout: Seconds to wait for the web; None: without end.

    Returns:
        The upright RGB image.

    Raises:
        ValueError: If there is no image, it cannot be reached, is broken, or has so many pixels that it may be a bomb.
    """
    if isinstance(source, Image.Image):
        return Image.fromarray(pil_to_rgb(source))
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"An image must be a path, an http(s) address, base64 data or a PIL image, got {type(source).__name__}. "
            "Make an array or bytes a PIL image: `Image.fromarray(array)`, `Image.open(io.BytesIO(data))`."
        )
    name = str(source) if len(str(source)) < 500 else f"{str(source)[:50]}..."  # base64 data
    try:
        image = Image.open(_as_file(str(source), timeout))
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
        httpx.HTTPError,
        httpx.InvalidURL,
    ) as error:
        raise ValueError(
            f"'{name}' cannot be opened as an image: {error}. Pass an image file, an http(s) address or base64 data."
        ) from error
    with image:
        image.filename = name  # which errors name
        return Image.fromarray(pil_to_rgb(image))


def _as_file(source: str, timeout: float | None) -> str | io.BytesIO:
    """Find what PIL reads: a file, or bytes from the web or of base64 data."""
    if not source:
        raise ValueError("the name is empty")
    if os.path.isdir(source):
        raise ValueError("it is a folder")
    if os.path.isfile(source):  # Path.is_file raises on a long base64 string
        return source
    if source.startswith(WEB):
        return io.BytesIO(httpx.get(source, timeout=timeout, follow_redirects=True).raise_for_status().content)
    data = source.partition(",")[2] if source.startswith("data:image/") else source
    try:
        return io.BytesIO(base64.b64decode("".join(data.split()), validate=True))
    except ValueError as error:
        raise ValueError("there is no such file") from error


def pil_to_rgb(image: Image.Image, *, upright: bool = True) -> np.ndarray:
    """Convert an image of any mode to RGB.

    Args:
        image: A PIL image, its pixels may still have to be read from its file.
        upright: Turn it by its EXIF orientation; False: as stored.

    Returns:
        ``(height, width, 3)`` uint8.

    Raises:
        ValueError: If the image is empty or broken or its mode has no defined range.
    """
    file = getattr(image, "filename", "")
    name = f"'{file}'" if file else f"of mode '{image.mode}'"
    if 0 in image.size:
        raise ValueError(f"An image must have at least one pixel, got a size of {image.size}.")
    if image.mode == "F":
        raise ValueError(
            f"The image {name} holds floating point values without a defined range. "
            "Scale it to 0..255 and convert it to mode 'L' or 'RGB'."
        )
    try:
        image = ImageOps.exif_transpose(image) if upright else image
        if image.mode.startswith("I"):
            gray = np.asarray(image).clip(0, 65535).astype(np.uint16)
            return np.repeat(to_eight_bits(gray).numpy()[..., None], 3, axis=-1)
        return np.asarray(convert_to_rgb(image, return_numpy=True))
    except UNREADABLE as error:
        raise ValueError(f"The image {name} cannot be decoded: {error}") from error


def to_eight_bits(array: np.ndarray | Tensor) -> Tensor:
    """Bring 16-bit integers and booleans to the range 0..255 that the rescaling expects.

    Args:
        array: Pixels of any shape. Other types must be 0..255 already.

    Returns:
        The pixels, as a tensor of the same shape; uint8 if they had to change.

    Raises:
        ValueError: If floating point values are not finite, or other integers are outside of 0..255.
    """
    # a copy of what is read-only, as arrays of PIL images are: torch would warn
    values = torch.from_numpy(np.require(array, requirements=["C", "W"])) if isinstance(array, np.ndarray) else array
    if values.dtype == torch.bool:
        return values.to(torch.uint8) * 255
    if values.dtype == torch.uint16:
        return (values.to(torch.float32) / SIXTEEN_TO_EIGHT_BITS).round().to(torch.uint8)
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise ValueError("`images` must hold finite numbers, got NaN or infinity.")
    if values.dtype in WIDE_INTEGERS:
        least, most = (int(bound) for bound in values.to(torch.int64).aminmax())
        if least < 0 or most > 255:
            raise ValueError(
                f"`images` of type {values.dtype} must hold 0..255, got {least}..{most}. Values up to 65535 must be "
                "uint16, others must be scaled."
            )
    return values


def warn_of_rescaled(images: list[Tensor]) -> None:
    """Warn of floating point images in 0..1, as transformers does; rescaled once more they are black.

    Args:
        images: Of any shape.
    """
    if any(image.is_floating_point() and 0 < image.max() <= 1 for image in images):
        logger.warning_once(
            "`images` with floating point values in 0..1 look already rescaled, but `do_rescale` divides them once "
            "more. Pass `do_rescale=False`, or values in 0..255."
        )
