"""A searchable index of images: their names and their embeddings, in one safetensors file."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "transformers_upv2.image_index"


@dataclasses.dataclass
class ImageIndex:
    """Embeddings of images that any embedding can be compared with.

    Args:
        names: How the user knows each image, n of them; usually its path.
        embeddings: Unit vectors, ``(n, D)`` float32.
    """

    names: list[str]
    embeddings: Tensor

    def __post_init__(self) -> None:
        if len(self.names) != len(self.embeddings):
            raise ValueError(
                f"`names` and `embeddings` must be equally many, got {len(self.names)} and {len(self.embeddings)}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def search(self, queries: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
        """Find the images that are closest to each query.

        Args:
            queries: Unit vectors, ``(queries, D)``.
            top_k: How many images to find; all of them if there are fewer.

        Returns:
            Cosines and positions of the images, both ``(queries, top_k)``, by descending cosine.
        """
        similarity = queries.float().cpu() @ self.embeddings.T
        found = similarity.topk(min(top_k, len(self)), dim=-1)
        return found.values, found.indices

    def save(self, path: str | Path) -> None:
        """Write the index to one safetensors file.

        Args:
            path: Where to; an existing file is replaced.
        """
        metadata = {"format": FORMAT, "names": json.dumps(self.names)}
        save_file({"embeddings": self.embeddings.contiguous()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> "ImageIndex":
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The index. The caller vouches that the weights that made it are the ones that query it.

        Raises:
            ValueError: If the file holds something else.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"`path` must be a file written by `ImageIndex.save`, got '{path}'.")
            return cls(json.loads(metadata["names"]), file.get_tensor("embeddings"))


def list_images(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the image files of a folder and its subfolders in the order of their names.

    Args:
        source: A folder, or the files themselves, which are taken as they are.

    Returns:
        The files, at least one.

    Raises:
        ValueError: If there is no folder or no image in it.
    """
    if not isinstance(source, str | Path):
        files = [Path(file) for file in source]
    elif Path(source).is_dir():
        suffixes = Image.registered_extensions()
        files = sorted(file for file in Path(source).rglob("*") if file.suffix.lower() in suffixes)
    else:
        raise ValueError(f"`source` must be a folder or a list of files, got '{source}'.")
    if not files:
        raise ValueError(f"`source` must hold at least one image file, got none in '{source}'.")
    return files


def stack_embeddings(embeddings: Iterable[Tensor]) -> Tensor:
    """Collect embeddings for an index.

    Args:
        embeddings: Unit vectors, ``(1, D)`` each.

    Returns:
        ``(n, D)`` float32 on the CPU.
    """
    return torch.cat([embedding.float().cpu() for embedding in embeddings])
