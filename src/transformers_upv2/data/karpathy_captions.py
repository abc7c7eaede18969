"""Read Karpathy's splits of COCO and Flickr30k, the data of the caption and retrieval benchmarks.

Format: the ``dataset_coco.json`` and ``dataset_flickr30k.json`` of https://cs.stanford.edu/people/karpathy/deepimagesent.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset

from transformers_upv2.data.examples import CaptionExample, DataError, load_image
from transformers_upv2.data.json_files import read_json, require_keys, require_list, require_path

TRAINING_SPLITS = ("train", "restval")
HELD_OUT_SPLITS = ("val", "test")


class KarpathyCaptions(Dataset[CaptionExample]):
    """The images of one or more of the splits, with all their captions.

    The images of COCO may lie as the file says (``val2014/COCO_val2014_000000000042.jpg``) or as they were
    distributed later (``train2017/000000000042.jpg``); those of Flickr30k lie in one folder.

    Attributes:
        split_file: The JSON file.
    """

    def __init__(
        self, split_file: str | Path, image_folder: str | Path, splits: str | Collection[str] = TRAINING_SPLITS
    ) -> None:
        """Read and check the file.

        Args:
            split_file: Karpathy's JSON file.
            image_folder: The folder of Flickr30k's images, or the one that holds COCO's image folders.
            splits: Which splits to read, one or several: "train", "restval", "val", "test".

        Raises:
            DataError: If the file is missing or malformed, or has no image in these splits, or two of one id.
        """
        self.split_file, self.image_folder = Path(split_file), Path(image_folder)
        self._images = select_splits(self.split_file, splits)
        if not self._images:
            raise DataError(f"{split_file}: there must be images in the splits {splits!r}, got none.")
        id_, count = Counter(map(image_id_of, self._images)).most_common(1)[0]
        if count > 1:
            raise DataError(f"{split_file}: an image must be listed once, with all its captions, got {id_} twice.")

    def __len__(self) -> int:
        return len(self._images)

    def image_files(self) -> Iterator[Path]:
        """Yield the file of every image."""
        return map(self._find, self._images)

    def __getitem__(self, index: int) -> CaptionExample:
        entry = self._images[index]
        captions = [sentence["raw"] for sentence in entry["sentences"]]
        for caption in captions:
            if not isinstance(caption, str) or not caption.strip():
                raise DataError(
                    f"{self.split_file}: image {image_id_of(entry)}: `raw` must be a text with words, got {caption!r}."
                )
        return {
            "image": load_image(self._find(entry)),
            "image_id": image_id_of(entry),
            "captions": [caption.strip() for caption in captions],
        }

    def _find(self, entry: dict[str, Any]) -> Path:
        """Return the first place where the image lies, or the one that the file names."""
        places = [Path(entry.get("filepath") or "") / entry["filename"], Path(entry["filename"])]
        if "cocoid" in entry:
            places += [Path(folder) / f"{entry['cocoid']:012}.jpg" for folder in ("train2017", "val2017")]
        paths = [self.image_folder / place for place in places]
        return next((path for path in paths if path.is_file()), paths[0])


def karpathy_image_ids(split_file: str | Path, splits: str | Collection[str] = HELD_OUT_SPLITS) -> set[int]:
    """Return the COCO ids of some splits, to keep their images out of other training data.

    COCO's train2017 holds most images of the test split, and it is what detection trains on.

    Args:
        split_file: ``dataset_coco.json``.
        splits: Which splits, one or several.

    Raises:
        DataError: If the file is missing, malformed or not of COCO, or there is no such split.
    """
    images = select_splits(Path(split_file), splits)
    if any("cocoid" not in image for image in images):
        raise DataError(f"{split_file}: it must be the split file of COCO, whose images have a `cocoid`, got another.")
    return set(map(image_id_of, images))


def select_splits(split_file: Path, splits: str | Collection[str]) -> list[dict[str, Any]]:
    """Return the entries of the images of some splits.

    Raises:
        DataError: If the file is missing or malformed, or knows no such split.
    """
    wanted = [splits] if isinstance(splits, str) else list(splits)
    images = read_images(split_file)
    known = {image["split"] for image in images}.union(TRAINING_SPLITS, HELD_OUT_SPLITS)
    if unknown := [split for split in wanted if split not in known]:
        raise DataError(f"{split_file}: `splits` must be some of {sorted(known)}, got {unknown}.")
    return [image for image in images if image["split"] in wanted]


def image_id_of(entry: dict[str, Any]) -> int:
    """Return the id that COCO's annotation files use; Flickr30k has only a running number."""
    return cast("int", entry.get("cocoid", entry.get("imgid")))


def read_images(path: Path) -> list[dict[str, Any]]:
    """Read and check the entries of all images.

    Raises:
        DataError: If the file is missing or malformed; the message names file and field.
    """
    content = read_json(path)
    require_keys(content, ("images",), str(path))
    for number, image in enumerate(require_list(content, "images", str(path))):
        where = f"{path}: images[{number}]"
        require_keys(image, ("filename", "split", "sentences"), where)
        for key in ("filename", "split"):
            require_path(image, key, where)
        if image.get("filepath"):
            require_path(image, "filepath", where)
        if not isinstance(image_id_of(image), int):
            raise DataError(
                f"{where} must have the key 'cocoid' or 'imgid' with an integer, got {image_id_of(image)!r} of the "
                f"keys {sorted(image)}."
            )
        if not require_list(image, "sentences", where):
            raise DataError(f"{where}: `sentences` must hold at least one caption, got none.")
        for sentence in image["sentences"]:
            require_keys(sentence, ("raw",), f"{where}: sentences")
    return content["images"]
