"""The pipeline ``image-text-retrieval``: index images once, then find them by text or by image."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import BatchFeature
from transformers.utils import logging

from .candidates import weights_digest, weights_fingerprint
from .image_encoding import ImageEncoding
from .image_index import FileStamp, ImageIndex, file_stamp, list_images
from .image_inputs import open_image
from .pipelines_upv2 import FolderPipeline

logger = logging.get_logger(__name__)


class ImageTextRetrievalPipeline(FolderPipeline):
    """Index images once, then find them by text or by image.

    ```
    search = pipeline("image-text-retrieval", model=folder)
    search.build_index("photos/")
    search.index.save("photos.safetensors")
    search("a red ball on the left", top_k=3)  # [{"score": 0.31, "image": "photos/7.jpg"}, ...]

    search.index = ImageIndex.load("photos.safetensors")  # another day: warns of files that changed
    search.build_index("photos/")  # embeds only what is new or changed
    ```

    Args of a call: a query, a list, a generator or a dataset of queries; ``top_k``, how many images
    to find (5); ``backend``, ``"torch"`` or ``"faiss"`` with equal results. A string is always a text; an image is a
    PIL image, a ``pathlib.Path`` or an `ImageEncoding` of one image.

    Returns for each query a list of ``{"score": cosine, "image": name}``, by descending score.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    unreadable: dict[str, str] = {}
    """Files that the last `build_index` left out, and why."""

    _index: ImageIndex | None = None
    _digest: tuple[int, str] | None = None

    @property
    def index(self) -> ImageIndex | None:
        """What calls search in."""
        return self._index

    @index.setter
    def index(self, index: ImageIndex | None) -> None:
        outdated = {} if index is None else index.outdated()
        if outdated:
            logger.warning(
                f"{len(outdated)} of {len(index or ())} images of the index changed or are missing, the first is "
                f"'{next(iter(outdated))}'. Call `build_index` to renew it."
            )
        self._index = index

    def build_index(
        self, source: str | Path | Iterable[str | Path], batch_size: int = 1, progress: bool = True
    ) -> ImageIndex:
        """Embed images; from now on calls search in them.

        What the present index knows of unchanged files is taken over. In a folder, files that cannot be read are
        left out, with a warning; ``self.unreadable`` names them.

        Args:
            source: A folder, searched with its subfolders, or image files.
            batch_size: Images at a time; more than one needs a processor with a ``pad_size``.
            progress: Show a progress bar.

        Returns:
            The index, which is also kept as ``self.index``.

        Raises:
            ValueError: If there is no image that can be read, or one of a list cannot be read.
        """
        stamps = {str(file): file_stamp(file) for file in list_images(source)}  # before the files are read
        known = self._known_embeddings()
        new = [name for name in stamps if name not in known]
        self.unreadable = {}
        if new:
            bar = tqdm(new, desc="Index images", disable=not progress)
            images = self._open_images(bar, strict=not isinstance(source, str | Path))
            # without workers, so that the names that are left out arrive here
            found = super().__call__(images, batch_size=batch_size, num_workers=0, embed_only=True)
            rows = [embedding[0].float().cpu() for embedding in found]
            known.update(zip([name for name in new if name not in self.unreadable], rows))
        stamps = self._without_unreadable(stamps)
        self._index = ImageIndex(
            names=list(stamps),
            embeddings=torch.stack([known[name] for name in stamps]),
            stamps=[stamp or (0, 0) for stamp in stamps.values()],
            weights=self._weights(),
        )
        return self._index

    def _open_images(self, names: Iterable[str], strict: bool) -> Iterator[Image.Image]:
        """Open files one by one; those that cannot be read are noted instead, unless strict."""
        for name in names:
            try:
                image = open_image(Path(name))
            except ValueError as error:
                if strict:
                    raise
                self.unreadable[name] = str(error)
                logger.warning(f"Left out of the index: {error}")
            else:
                yield image

    def _without_unreadable(self, stamps: dict[str, FileStamp | None]) -> dict[str, FileStamp | None]:
        """Drop what could not be read, and tell how many these are."""
        readable = {name: stamp for name, stamp in stamps.items() if name not in self.unreadable}
        if not readable:
            raise ValueError(
                f"`source` must hold at least one image that can be read, got {len(stamps)} files without one. The "
                f"first: {self.unreadable[next(iter(stamps))]}"
            )
        if self.unreadable:
            logger.warning(f"{len(self.unreadable)} of {len(stamps)} files cannot be read and are not in the index.")
        return readable

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Search, see the class.

        Args:
            inputs: Queries.
            **kwargs: ``top_k``, ``backend``, ``batch_size``, ``num_workers``.

        Returns:
            The images found for each query.

        Raises:
            ValueError: If there is no index, or other weights made it.
        """
        index = self._searched_index()
        if index.weights not in (None, self._weights()):
            raise ValueError(
                "`index` must come from the present weights and type of numbers, but others made it. "
                "Call `build_index` again."
            )
        return super().__call__(inputs, **kwargs)

    def _searched_index(self) -> ImageIndex:
        if self._index is None:
            raise ValueError(
                "There must be an index to search in, got none. Call `build_index(folder)` or set "
                "`index` to a saved one."
            )
        return self._index

    def _known_embeddings(self) -> dict[str, Tensor]:
        """Embeddings of the present index that are still true, by name."""
        index = self._index
        if index is None or index.stamps is None or index.weights != self._weights():
            return {}
        outdated = index.outdated()
        return {name: row for name, row in zip(index.names, index.embeddings) if name not in outdated}

    def _weights(self) -> str:
        """Digest of the weights, computed again only if they changed."""
        state = weights_fingerprint(self.model)
        if self._digest is None or self._digest[0] != state:
            self._digest = state, weights_digest(self.model.base_model)
        return self._digest[1]

    def _sanitize_parameters(
        self, top_k: int | None = None, embed_only: bool | None = None, backend: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"top_k": top_k, "embed_only": embed_only, "backend": backend}
        return {}, {}, {name: value for name, value in given.items() if value is not None}

    def preprocess(self, query: str | Path | Image.Image | ImageEncoding) -> dict[str, Any] | BatchFeature:
        """Prepare a text or an image."""
        if isinstance(query, ImageEncoding):
            return {"image_encoding": query}
        if isinstance(query, str):
            return self.processor(text=[query], return_tensors="pt")
        return self.processor(images=query, return_tensors="pt").to(dtype=self.dtype)

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Tensor]:
        is_text = "input_ids" in model_inputs
        embed = self.model.get_text_features if is_text else self.model.get_image_features
        return {"embedding": embed(**model_inputs).pooler_output}

    def postprocess(
        self, model_outputs: dict[str, Tensor], top_k: int = 5, embed_only: bool = False, backend: str = "torch"
    ) -> Tensor | list[dict[str, Any]]:
        """Search with one embedding, or only return it, ``(1, D)``."""
        if embed_only:
            return model_outputs["embedding"]
        index = self._searched_index()
        scores, positions = index.search(model_outputs["embedding"], top_k, backend)
        return [
            {"score": score, "image": index.names[position]}
            for score, position in zip(scores[0].tolist(), positions[0].tolist())
        ]
