"""Read images with captions in COCO's captions JSON format, for captioning and retrieval.

Format: https://cocodataset.org/#format-data.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from transformers_upv2.data.examples import CaptionExample, DataError, image_path, load_image
from transformers_upv2.data.json_files import index_by_id, read_json, require_keys, require_list, require_path


class ImageCaptions(Dataset[CaptionExample]):
    """Images with one or more captions each, from a COCO captions JSON file.

    Attributes:
        annotation_file: The JSON file.
        num_skipped: How many images of the file have no caption; they are left out.
    """

    def __init__(self, annotation_file: str | Path, image_folder: str | Path):
        """Read and check the annotation file.

        Args:
            annotation_file: A COCO captions JSON file.
            image_folder: Where relative ``file_name`` entries start; absolute ones ignore it.

        Raises:
            DataError: If the file is missing or malformed; the message names file and field.
        """
        self.annotation_file, self.image_folder = Path(annotation_file), Path(image_folder)
        content = read_json(self.annotation_file)
        require_keys(content, ("images", "annotations"), str(self.annotation_file))
        listed, annotations = (
            require_list(content, field, str(self.annotation_file)) for field in ("images", "annotations")
        )
        images = index_by_id(listed, ("file_name",), f"{self.annotation_file}: images")
        for number, image in enumerate(listed):
            require_path(image, "file_name", f"{self.annotation_file}: images[{number}]")

        self._captions: dict[int | str, list[str]] = defaultdict(list)
        for number, annotation in enumerate(annotations):
            where = f"{self.annotation_file}: annotations[{number}]"
            require_keys(annotation, ("image_id", "caption"), where)
            image_id = annotation["image_id"]
            if not isinstance(image_id, int | str) or image_id not in images:
                raise DataError(f"{where}: `image_id` must be the id of an image in the file, got {image_id!r}.")
            caption = annotation["caption"]
            if not isinstance(caption, str) or not caption.strip():
                raise DataError(f"{where}: `caption` must be a text with words, got {caption!r}.")
            self._captions[image_id].append(caption.strip())
        self._images = [image for id_, image in images.items() if id_ in self._captions]
        self.num_skipped = len(images) - len(self._images)
        if not self._images:
            raise DataError(
                f"{self.annotation_file}: `annotations` must caption at least one image, "
                f"got none for {len(images)} images."
            )

    def __len__(self) -> int:
        return len(self._images)

    def image_files(self) -> Iterator[Path]:
        """Yield the file of every image."""
        return (image_path(self.image_folder, entry["file_name"]) for entry in self._images)

    def __getitem__(self, index: int) -> CaptionExample:
        entry = self._images[index]
        return {
            "image": load_image(image_path(self.image_folder, entry["file_name"])),
            "image_id": entry["id"],
            "captions": list(self._captions[entry["id"]]),
        }
