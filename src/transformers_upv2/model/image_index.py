"""A searchable index of images: names, embeddings, and what tells whether both are still true.

Not stated in the paper, chosen here: the search is exact, by all cosines; FAISS, where it is installed, gives the same
answers sooner. A file counts as unchanged while its size and its time of change are the same.
"""

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from .saved_tensors import open_tensors

FORMAT = "transformers_upv2.image_index"
BACKENDS = ("torch", "faiss")
NO_IMAGES = {None, "BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
"""Formats whose suffixes PIL knows, but that it only writes, or only recognizes."""

MAX_SIMILARITIES = 2**24
"""Cosines that exist at one time during a search (64 MB)."""

FileStamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


@dataclasses.dataclass(eq=False)
class ImageIndex:
    """Embeddings of images that any embedding can be compared with.

    Args:
        names: How the user knows each image, n of them; usually its path.
        embeddings: Unit vectors, ``(n, D)`` float32.
        stamps: State of each file when it was embedded; None if the images are no files.
        weights: `weights_digest` of the model that made the embeddings; None: the caller vouches for them.
    """

    names: list[str]
    embeddings: Tensor
    stamps: Sequence[FileStamp] | None = None
    weights: str | None = None
    _faiss: Any = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.embeddings):
            raise ValueError(
                f"`names` and `embeddings` must be equally many, got {len(self.names)} and {len(self.embeddings)}."
            )
        if self.stamps is not None and len(self.stamps) != len(self.names):
            raise ValueError(
                f"`names` and `stamps` must be equally many, got {len(self.names)} and {len(self.stamps)}."
            )

    def __len__(self) -> int:
        return len(self.names)

    def search(self, queries: Tensor, top_k: int, backend: str = "torch") -> tuple[Tensor, Tensor]:
        """Find the images that are closest to each query.

        Args:
            queries: Unit vectors, ``(queries, D)``.
            top_k: How many images to find; all of them if there are fewer.
            backend: One of ``BACKENDS``.

        Returns:
            Cosines and positions of the images, both ``(queries, top_k)``, by descending cosine.

        Raises:
            ImportError: If FAISS is asked for and not installed.
            ValueError: If there is no such backend or ``top_k`` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, got {top_k}.")
        if backend not in BACKENDS:
            raise ValueError(f"`backend` must be one of {list(BACKENDS)}, got {backend!r}.")
        queries, top_k = queries.detach().float().cpu(), min(top_k, len(self))
        if backend == "faiss":
            scores, positions = self._faiss_index().search(queries.numpy(), top_k)
            return torch.from_numpy(scores), torch.from_numpy(positions)
        chunks = queries.split(max(1, MAX_SIMILARITIES // max(1, len(self))))
        found = [(chunk @ self.embeddings.T).topk(top_k, dim=-1) for chunk in chunks]
        return torch.cat([values for values, _ in found]), torch.cat([positions for _, positions in found])

    def outdated(self) -> dict[str, str]:
        """Look for files that are no longer what was embedded.

        Returns:
            ``"missing"`` or ``"changed"`` for each of them, by name.
        """
        states = {}
        for name, stamp in zip(self.names, self.stamps or ()):
            present = file_stamp(name)
            if present != tuple(stamp):
                states[name] = "missing" if present is None else "changed"
        return states

    def save(self, path: str | Path) -> None:
        """Write the index to one safetensors file, whose header holds everything else as JSON.

        Args:
            path: Where to; an existing file is replaced, a missing folder is made.
        """
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        fields = {"names": self.names, "stamps": self.stamps, "weights": self.weights}
        # one entry, since safetensors writes several in any order
        save_file({"embeddings": self.embeddings.contiguous()}, path, metadata={FORMAT: json.dumps(fields)})

    @classmethod
    def load(cls, path: str | Path) -> "ImageIndex":
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The index. A pipeline refuses it if other weights made it, and tells which files changed.

        Raises:
            ValueError: If the file holds something else, or is damaged.
        """
        with open_tensors(path, "ImageIndex.save") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(f"`path` must be a file written by `ImageIndex.save`, got '{path}'.")
            return cls(embeddings=file.get_tensor("embeddings"), **json.loads(metadata[FORMAT]))

    def _faiss_index(self) -> Any:
        """Build FAISS's exact index once."""
        if self._faiss is None:
            if importlib.util.find_spec("faiss") is None:
                raise ImportError(
                    "`backend='faiss'` needs FAISS. Install it with `pip install transformers_upv2[retrieval]`."
                )
            faiss = importlib.import_module("faiss")  # not an import statement: the Hub would demand it of everyone
            self._faiss = faiss.IndexFlatIP(self.embeddings.shape[1])
            self._faiss.add(self.embeddings.float().numpy())
        return self._faiss


def file_stamp(path: str | Path) -> FileStamp | None:
    """Size and time of change of a file; None if there is none."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def is_image_name(path: str | Path) -> bool:
    """Whether a name ends like those of images that PIL can read."""
    return Image.registered_extensions().get(Path(path).suffix.lower()) not in NO_IMAGES


def list_images(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """List the image files of a folder and its subfolders in the order of their names, without hidden ones.

    Args:
        source: A folder, or the files themselves, which are taken as they are, each once.

    Returns:
        The files, at least one.

    Raises:
        ValueError: If there is no folder or no image in it.
    """
    if not isinstance(source, str | Path):
        files = list(dict.fromkeys(Path(file) for file in source))
    elif Path(source).is_dir():
        files = sorted(file for file in Path(source).rglob("*") if is_image_name(file))
        files = [file for file in files if not any(part[0] == "." for part in file.relative_to(source).parts)]
    else:
        raise ValueError(f"`source` must be a folder or a list of files, got '{source}'.")
    if not files:
        raise ValueError(f"`source` must hold at least one image file, got none in '{source}'.")
    return files
