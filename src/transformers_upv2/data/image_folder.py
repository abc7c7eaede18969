"""Read classification data from a folder with one sub-folder of images per class, as ImageNet's."""

from pathlib import Path

from torch.utils.data import Dataset

from transformers_upv2.data.examples import ClassificationExample, DataError, load_image
from transformers_upv2.data.json_files import read_json
from transformers_upv2.model.candidates import shorten

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


class ImageFolder(Dataset[ClassificationExample]):
    """Images whose sub-folder is their class.

    Attributes:
        class_names: Names of the classes; a label is an index into this list.
    """

    def __init__(self, folder: str | Path, classes_file: str | Path | None = None):
        """List the images.

        Args:
            folder: Holds one sub-folder per class; images may lie deeper inside.
            classes_file: Order and names of the classes. Either JSON ``{sub-folder: name}``, or a
                text file with one class a line: a sub-folder, optionally followed by white space
                and a name (as in ImageNet's ``LOC_synset_mapping.txt``). Without it the sub-folders
                are the names, in alphabetical order.

        Raises:
            DataError: If the folder holds no classes, a class no images, or the two lists of
                classes differ.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: `folder` must be a folder with one sub-folder per class.")
        found = sorted(path.name for path in self.folder.iterdir() if path.is_dir())
        if not found:
            raise DataError(f"{folder}: there must be one sub-folder per class, got none.")
        names = {name: name for name in found}
        if classes_file is not None:
            names = read_class_names(Path(classes_file), found)
            if set(names) != set(found):
                raise DataError(
                    f"{classes_file}: the classes must be the sub-folders of {folder}; only in the file: "
                    f"{shorten(sorted(set(names) - set(found)))}, only in the folder: "
                    f"{shorten(sorted(set(found) - set(names)))}."
                )
        self.class_names = list(names.values())
        self._samples = [(path, label) for label, name in enumerate(names) for path in self._list_images(name)]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> ClassificationExample:
        path, label = self._samples[index]
        image_id = path.relative_to(self.folder).as_posix()
        return {"image": load_image(path), "label": label, "image_id": image_id}

    def _list_images(self, class_folder: str) -> list[Path]:
        paths = sorted(
            path for path in (self.folder / class_folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not paths:
            raise DataError(f"{self.folder / class_folder}: a class must have at least one image, got none.")
        return paths


def read_class_names(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the name of each class folder, in the file's order.

    Args:
        path: The classes file, JSON or text.
        folders: The sub-folders that exist: a line that is one of them has no separate name.
    """
    if path.suffix == ".json":
        return {folder: str(name) for folder, name in read_json(path).items()}
    if not path.is_file():
        raise DataError(f"{path}: the classes file must exist, but there is none.")
    names: dict[str, str] = {}
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        folder, *name = [line] if line in folders else line.split(maxsplit=1)
        names[folder] = name[0] if name else folder
    return names
