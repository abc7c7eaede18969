"""ImageEncoding: what the model has perceived of a batch of images, f(x), to be asked any number of times.

Not a ``ModelOutput``: there ``len`` and ``[i]`` count fields, here they count images.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from .saved_tensors import open_tensors

# Numbers whose precision decides about a pixel stay in fp32 whatever the model's dtype.
_FULL_PRECISION = ("boxes", "image_sizes", "canvas_sizes", "token_mask")


@dataclasses.dataclass(eq=False)  # two of them have no one answer to ==
class ImageEncoding:
    """f(x) of a batch of images (Eq. 1), and everything that a task can ask of it.

    Args:
        tokens: Pooled, grid and proposal tokens, ``(batch, tokens, D)``.
        token_mask: True for tokens that show the image, ``(batch, tokens)``.
        semantic: Content of the N proposals in the order of their foreground score, ``(batch, N, D_p)``.
        boxes: Their boxes, cxcywh in [0, 1] of the canvas, fp32, ``(batch, N, 4)``.
        objectness_logits: Their foreground logits, ``(batch, N)``.
        mask_embeddings: Dot products with ``mask_features`` are their mask logits, ``(batch, N, D_p)``.
        pooled_masks: Their mask logits, average-pooled over the canvas, ``(batch, N, side, side)``.
        image_sizes: Height and width of the real image in pixels of the input, ``(batch, 2)``.
        canvas_sizes: Height and width of the canvas that it was computed on, ``(batch, 2)``.
        mask_features: ``(batch, D_p, H/4, W/4)``; only kept with ``keep_mask_features=True``.
        fingerprint: State of the weights that made it; another state is refused.
        decoded: g(f(x)) by route, filled when first asked, ``(batch, 1 + tokens, D)``.
    """

    tokens: Tensor
    token_mask: Tensor
    semantic: Tensor
    boxes: Tensor
    objectness_logits: Tensor
    mask_embeddings: Tensor
    pooled_masks: Tensor
    image_sizes: Tensor
    canvas_sizes: Tensor
    mask_features: Tensor | None = None
    fingerprint: int | None = None
    decoded: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __iter__(self) -> Iterator[ImageEncoding]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> ImageEncoding:
        """Select images; one number, of whatever type, keeps the batch dimension."""
        if isinstance(index, list):
            index = torch.tensor(index)
        if not isinstance(index, slice) and getattr(index, "ndim", 0) == 0:
            index = operator.index(index)  # type: ignore[arg-type]  # refuses what is no number
            if not -len(self) <= index < len(self):
                raise IndexError(f"`index` must be in [-{len(self)}, {len(self)}), got {index}.")
            index = slice(index % len(self), index % len(self) + 1)
        return self._map(lambda _, value: value[index])

    def repeat_interleave(self, repeats: int) -> ImageEncoding:
        """Repeat each image, for beams and several returned sequences."""
        return self._map(lambda _, value: value.repeat_interleave(repeats, dim=0))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ImageEncoding:
        """Move or cast; boxes stay in fp32."""
        return self._map(lambda name, value: value.to(device, None if name in _FULL_PRECISION else dtype))

    def detach(self) -> ImageEncoding:
        """Cut the graph."""
        return self._map(lambda _, value: value.detach())

    @classmethod
    def cat(cls, encodings: Sequence[ImageEncoding]) -> ImageEncoding:
        """Join encodings of equal token counts into one batch.

        Raises:
            ValueError: If they have different token counts, or come from different weights.
        """
        sizes = {tuple(encoding.tokens.shape[1:]) for encoding in encodings}
        if len(sizes) != 1:
            raise ValueError(
                f"Encodings must have one (tokens, D) to be joined, got {sorted(sizes)}. "
                "Pad the images to one size before encoding them."
            )
        if len({encoding.fingerprint for encoding in encodings}) != 1:
            raise ValueError(
                "Encodings must come from one state of the weights to be joined. Encode the images again."
            )
        first = encodings[0]
        routes = set(first.decoded).intersection(*(encoding.decoded for encoding in encodings))
        joined = {
            name: torch.cat([encoding._tensors()[name] for encoding in encodings])
            for name in first._tensors()
            if not name.startswith("decoded.") or name.removeprefix("decoded.") in routes
        }
        return first._from_tensors(joined)

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file."""
        tensors = {name: value.contiguous() for name, value in self._tensors().items()}
        save_file(tensors, path, metadata={"format": "image_encoding"})

    @classmethod
    def load(cls, path: str | Path) -> ImageEncoding:
        """Read what `save` wrote; it can be used with any model, and the caller vouches for the weights.

        Raises:
            ValueError: If the file does not hold an image encoding, or is damaged.
        """
        with open_tensors(path, "ImageEncoding.save") as file:
            if (file.metadata() or {}).get("format") != "image_encoding":
                raise ValueError(f"{path} must be a file written by `ImageEncoding.save`.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fields = {name: value for name, value in tensors.items() if "." not in name}
        decoded = {
            name.removeprefix("decoded."): value for name, value in tensors.items() if name.startswith("decoded.")
        }
        return cls(**fields, decoded=decoded)

    def _tensors(self) -> dict[str, Tensor]:
        named = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return named | {f"decoded.{route}": value for route, value in self.decoded.items()}

    def _from_tensors(self, tensors: dict[str, Tensor]) -> ImageEncoding:
        fields = {name: value for name, value in tensors.items() if "." not in name}
        decoded = {name.removeprefix("decoded."): value for name, value in tensors.items() if "." in name}
        return ImageEncoding(**fields, fingerprint=self.fingerprint, decoded=decoded)

    def _map(self, function: Callable[[str, Tensor], Tensor]) -> ImageEncoding:
        return self._from_tensors({name: function(name, value) for name, value in self._tensors().items()})
