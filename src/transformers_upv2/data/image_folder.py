"""Read classification data from a folder with one sub-folder of images per class, as ImageNet's."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers.utils import logging

from transformers_upv2.data.examples import ClassificationExample, DataError, load_image
from transformers_upv2.data.json_files import read_any_json, require_keys
from transformers_upv2.model.candidates import shorten

logger = logging.get_logger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test"})


class ImageFolder(Dataset[ClassificationExample]):
    """Images whose sub-folder is their class.

    Attributes:
        class_names: Names of the classes; a label is an index into this list.
    """

    def __init__(self, folder: str | Path, classes_file: str | Path | None = None):
        """List the images.

        Args:
            folder: Holds one sub-folder per class; images may lie deeper inside, and links are followed. What
                is hidden, with a name that starts with a dot, does not count.
            classes_file: Order and names of the classes; those without a sub-folder do not count.
                Either JSON ``{sub-folder: name}``, a list of sub-folders or
                ``{index: [sub-folder, name]}``; or a text file with one class a line: a sub-folder,
                optionally followed by white space and a name (as in ImageNet's
                ``LOC_synset_mapping.txt``). Without it the sub-folders are the names, in
                alphabetical order.

        Raises:
            DataError: If the folder holds no classes, a class no images, or a sub-folder has no name.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: `folder` must be a folder with one sub-folder per class.")
        found = sorted(path.name for path in self.folder.iterdir() if path.is_dir() and path.name[0] != ".")
        if not found:
            raise DataError(f"{folder}: there must be one sub-folder per class, got none.")
        if SPLIT_NAMES.issuperset(found):
            raise DataError(f"{folder}: its sub-folders must be classes, got the splits {found}. Name one of these.")
        names = {name: name for name in found}
        if classes_file is not None:
            named = read_class_names(Path(classes_file), found)
            if unnamed := sorted(set(found) - set(named)):
                raise DataError(
                    f"{classes_file}: every sub-folder of {folder} must be named, {shorten(unnamed)} are not. Name "
                    "them, or move them elsewhere."
                )
            if absent := sorted(set(named) - set(found)):  # part of ImageNet with the names of all of it
                logger.warning(
                    f"{folder}: {len(found)} of the {len(named)} classes of {classes_file} are there and count, not "
                    f"{shorten(absent)}."
                )
            names = {name: named[name] for name in named if name in found}
        self.class_names = list(names.values())
        self._samples = [(path, label) for label, name in enumerate(names) for path in self._list_images(name)]

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def labels(self) -> list[int]:
        """The label of every image."""
        return [label for _, label in self._samples]

    def __getitem__(self, index: int) -> ClassificationExample:
        path, label = self._samples[index]
        image_id = path.relative_to(self.folder).as_posix()
        return {"image": load_image(path), "label": label, "image_id": image_id}

    def _list_images(self, class_folder: str) -> list[Path]:
        paths = sorted(
            path for path in walk_files(self.folder / class_folder) if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not paths:
            raise DataError(f"{self.folder / class_folder}: a class must have at least one image, got none.")
        return paths


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and those below that are not hidden; links are followed, but in no circle."""
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in entered else [name for name in folders if name[0] != "."]
        if real not in entered:
            yield from (Path(place, name) for name in files if name[0] != ".")
        entered.add(real)


def read_class_names(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the name of each class folder, in the file's order.

    Args:
        path: The classes file, JSON or text.
        folders: The sub-folders that exist: a line that is one of them has no separate name.

    Raises:
        DataError: If the file is missing or malformed, names a sub-folder twice or gives one no name.
    """
    names: dict[str, str] = {}
    for folder, name in _read_pairs_json(path) if path.suffix == ".json" else _read_pairs_text(path, folders):
        if not isinstance(folder, str) or not isinstance(name, str) or not name.strip():
            raise DataError(f"{path}: a sub-folder must have a text as its name, got {name!r} for {folder!r}.")
        if folder in names:
            raise DataError(f"{path}: each sub-folder must be named once, got {folder!r} twice.")
        names[folder] = name
    return names


def _read_pairs_json(path: Path) -> Iterable[tuple[Any, Any]]:
    """Return sub-folders and names of ``{sub-folder: name}``, ``[sub-folder]`` or ``{index: [sub-folder, name]}``."""
    content = read_any_json(path)
    if isinstance(content, list):
        return [(folder, folder) for folder in content]
    pairs = list(require_keys(content, (), f"{path}: the content").items())
    if all(isinstance(value, list) and len(value) == 2 for _, value in pairs):
        return [(folder, name) for _, (folder, name) in pairs]
    return pairs


def _read_pairs_text(path: Path, folders: list[str]) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: the classes file must exist, but there is none.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the classes file must be UTF-8, got: {error}.") from error
    for line in filter(None, map(str.strip, lines)):
        folder, *name = [line] if line in folders else line.split(maxsplit=1)
        yield folder, name[0] if name else folder
