"""Stream images with captions from tar shards (webdataset) and parquet files.

Formats: https://github.com/webdataset/webdataset (files of one example share their name up to the first dot, such as
``000123.jpg`` and ``000123.txt``), and parquet with a column of images and one of texts, as `datasets` and img2dataset
write them: an image is its bytes, or the path of its file, which counts from the folder of the shard.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Self

import datasets
import fsspec
import pyarrow
import pyarrow.parquet

from transformers_upv2.data.examples import CaptionExample, DataError, load_image
from transformers_upv2.data.file_patterns import expand_files

Row = dict[str, Any]

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "image")
TEXT_FIELDS = ("txt", "caption", "captions", "text")
ID_FIELDS = ("__key__", "image_id", "key", "id")
# beside a shard's own fields: its name and the row's, why it breaks off, what paths of images start from
WHERE, ERROR, FOLDER = "__where__", "__error__", "__folder__"
PARQUET_ROWS = 32


class ImageTextShards:
    """Images with captions from shards that are never whole in memory.

    It reads in order, through ``datasets.IterableDataset``: ranks and loader workers read different shards, a later
    epoch reads them in another order, and ``state_dict`` says where to go on. Examples of one shard come as they were
    written, so they should be written in random order. A bad example is yielded as a ``DataError``, for a stream that
    has raised is over; so is the rest of a shard that breaks off.

    Attributes:
        files: The shards.
    """

    def __init__(self, files: str | Path | Sequence[str | Path]) -> None:
        """List the shards.

        Args:
            files: Paths or addresses that fsspec opens, ending in ``.tar``, ``.tar.gz``, ``.tgz`` or ``.parquet``,
                or patterns such as ``"cc3m/*.tar"`` and ``"cc3m/{00000..00331}.tar"``; one or several.

        Raises:
            DataError: If there is none, or one ends differently.
        """
        self.files = expand_files(files, "shard")
        for file in self.files:
            reader_of(file)
        if not self.files:
            raise DataError("`files` must name at least one shard, got none.")
        self._rows = datasets.IterableDataset.from_generator(read_shards, gen_kwargs={"files": self.files})

    @property
    def num_shards(self) -> int:
        """Into how many parts it can be divided."""
        return len(self.files)

    def shard(self, num_shards: int, index: int) -> "ImageTextShards":
        """Return part ``index`` of ``num_shards`` disjoint ones."""
        return ImageTextShards(self.files[index::num_shards])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the shards."""
        self._rows.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the example yielded last."""
        return self._rows.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration begin at a position of the chosen epoch."""
        self._rows.load_state_dict(state_dict)

    def __iter__(self) -> Iterator[CaptionExample | DataError]:
        """Yield the examples of an epoch, those of one worker in a loader's worker."""
        for row in self._rows:
            try:
                yield read_row(row)
            except DataError as error:
                yield error


def read_shards(files: Sequence[str]) -> Iterator[Row]:
    """Yield the undecoded rows of all shards; a shard that breaks off ends with a row that has an ``ERROR``."""
    for file in files:
        try:
            yield from reader_of(file)(file)
        except (OSError, EOFError, UnicodeError, tarfile.TarError, pyarrow.ArrowException) as error:
            yield {WHERE: file, ERROR: f"{file}: the shard must be readable to its end, but got: {error}."}


class StrictTarInfo(tarfile.TarInfo):
    """A file in an archive; only the end marker ends it, where `tarfile` takes a broken header for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """Read the next header.

        Raises:
            tarfile.ReadError: If it is broken or missing.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def read_tar(file: str) -> Iterator[Row]:
    """Yield ``{extension: bytes}`` for every group of files with one name; hidden ones and a README are none."""
    row: Row = {}
    with fsspec.open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictTarInfo) as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if not (member.isfile() and stem and extension):
                continue
            field = extension.lower()
            key = f"{folder}/{stem}" if folder else stem
            if row and row["__key__"] != key:
                yield row
                row = {}
            content = archive.extractfile(member)
            if field in row:
                row[ERROR] = f"{file}: {key}: names must be unique in a shard, got {member.name} twice."
            row |= {"__key__": key, WHERE: f"{file}: {key}", field: content.read() if content else b""}
    if row:
        yield row


def read_parquet(file: str) -> Iterator[Row]:
    """Yield the rows of a parquet file, a few at a time."""
    with fsspec.open(file, "rb") as stream:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                yield {**row, WHERE: f"{file}: row {number}", FOLDER: str(PurePath(file).parent)}
                number += 1


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    ".parquet": read_parquet,
    ".tar": read_tar,
    ".tar.gz": read_tar,
    ".tgz": read_tar,
}


def reader_of(file: str) -> Callable[[str], Iterator[Row]]:
    """Return what reads a shard; an address may end in a query, such as ``?download=true``.

    Raises:
        DataError: If its end is that of no shard.
    """
    name = file.partition("?")[0] if "://" in file else file
    for suffix, reader in READERS.items():
        if name.endswith(suffix):
            return reader
    raise DataError(f"`files` must be shards that end in one of {sorted(READERS)}, got {file!r}.")


def read_row(row: Mapping[str, Any]) -> CaptionExample:
    """Decode the image and the captions of a row.

    Raises:
        DataError: If one of them is missing or unreadable; the message names the shard and the row.
    """
    if ERROR in row:
        raise DataError(row[ERROR])
    where = row[WHERE]
    row = {**_read_json_field(row, where), **row}
    image = next((row[field] for field in IMAGE_FIELDS if row.get(field)), None)
    if isinstance(image, Mapping):  # as `datasets` writes images: the bytes, or where the file lies
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and FOLDER in row:
        image = Path(row[FOLDER]) / image
    if not isinstance(image, bytes | Path):
        raise DataError(f"{where}: there must be an image in one of {list(IMAGE_FIELDS)}, {_what_there_is(row)}")
    text = next((row[field] for field in TEXT_FIELDS if row.get(field)), "")
    captions = [_to_text(part, where).strip() for part in (text if isinstance(text, list) else [text])]
    if not any(captions):
        raise DataError(f"{where}: there must be a text in one of {list(TEXT_FIELDS)}, {_what_there_is(row)}")
    return {
        "image": load_image(where, content=image) if isinstance(image, bytes) else load_image(image),
        "image_id": next((row[field] for field in ID_FIELDS if row.get(field) is not None), where),
        "captions": [caption for caption in captions if caption],
    }


def _what_there_is(row: Row) -> str:
    filled = sorted(field for field, value in row.items() if value and field not in (WHERE, FOLDER, "__key__"))
    if FOLDER in row:
        return f"got only {filled} with a content. Fill the column, or rename it."
    return f"got {filled}. Files of one example must share their name up to its first dot and follow one another."


def _read_json_field(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a webdataset's ``.json`` file of an example states; text and image files count before it."""
    content = row.get("json")
    if not isinstance(content, bytes):
        return {}
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: `json` must be JSON, but got: {error}.") from error
    if isinstance(values, list):
        return {"captions": values}
    return values if isinstance(values, dict) else {}


def _to_text(value: Any, where: str) -> str:
    try:
        text = value.decode("utf-8-sig") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: a text must be UTF-8, got {error}.") from error
    if not isinstance(text, str):
        raise DataError(f"{where}: a caption must be a text, got {text!r:.80}.")
    return text
