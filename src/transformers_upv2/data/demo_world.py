"""The demo world: a small data set for all six tasks, written in the formats of the real ones.

``make_world`` writes it to disk, ``open_world`` opens it with the readers for real data. Everything
is a function of the seed: each picture and line is drawn from a generator keyed by (seed, split,
kind, index), and the splits share no scene, digit image or part of a photograph.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from transformers_upv2.data.coco_detection import CocoDetection
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.image_captions import ImageCaptions
from transformers_upv2.data.image_folder import ImageFolder
from transformers_upv2.data.text_corpus import TextCorpus
from transformers_upv2.data.world_objects import CLASS_NAMES
from transformers_upv2.data.world_scenes import IMAGE_SIZE, PlacedObject, Scene, ScenePainter
from transformers_upv2.data.world_text import (
    descriptions_of,
    draw_sentence,
    scene_captions,
    scene_sentence,
    scene_signature,
)
from transformers_upv2.data.world_tokenizer import train_tokenizer
from transformers_upv2.model.coco_masks import encode_mask

SPLITS = ("train", "val", "test")
FIRST_CATEGORY_ID, CATEGORY_ID_STEP = 3, 4  # 3, 7, 11, ...: ids with gaps, as COCO's
JPEG_QUALITY = 95

README = """\
The demo world of transformers_upv2: drawn scenes with an exactly known truth, for six tasks.

Made by:  upv2 make-world --out DIR --seed {seed}

classes.txt                       the {num_classes} classes, in order of their labels
scenes/SPLIT/                     {scenes} scenes of 2 to 6 objects
annotations/instances_SPLIT.json  boxes, masks (run-length codes) and classes, COCO format
annotations/captions_SPLIT.json   five captions a scene, COCO format
classification/SPLIT/CLASS/       {classification} images of one main object
text/SPLIT.txt                    {text} sentences, one a line
tokenizer/                        a RoBERTa tokenizer trained on the training captions and text

SPLIT is train, val or test; the splits share no scene, digit image or part of a photograph.
Boxes and masks are of the visible part of an object. Beyond COCO's fields an annotation has
`color`, `scale` (longer side of the whole object in image sides) and `occlusion` (hidden part).
The digits are scikit-learn's handwritten digits, the photographs come from scikit-learn and
scikit-image.
"""


@dataclass(frozen=True)
class WorldSizes:
    """How many scenes, classification images and lines of text (train, val, test) have."""

    scenes: tuple[int, int, int] = (6000, 300, 300)
    classification: tuple[int, int, int] = (6000, 300, 600)
    text: tuple[int, int, int] = (8000, 500, 500)


@dataclass(frozen=True)
class WorldPaths:
    """Where the files of a world lie below its folder ``root``."""

    root: Path

    @property
    def readme(self) -> Path:
        """What the folder is; written last."""
        return self.root / "README.txt"

    @property
    def classes_file(self) -> Path:
        """The class names, one a line."""
        return self.root / "classes.txt"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.root / "tokenizer"

    def scenes(self, split: str) -> Path:
        """The folder of a split's scenes."""
        return self.root / "scenes" / split

    def instances(self, split: str) -> Path:
        """The COCO instances file of a split."""
        return self.root / "annotations" / f"instances_{split}.json"

    def captions(self, split: str) -> Path:
        """The COCO captions file of a split."""
        return self.root / "annotations" / f"captions_{split}.json"

    def classification(self, split: str) -> Path:
        """The image folder of a split."""
        return self.root / "classification" / split

    def text(self, split: str) -> Path:
        """The text file of a split."""
        return self.root / "text" / f"{split}.txt"


@dataclass(frozen=True)
class World:
    """An opened world.

    Attributes:
        paths: Where its files lie.
        class_names: The classes, in the order of the labels of classification and detection.
        train: The training reader of each training task.
        val: The validation reader of each training task.
        test: The test reader of each training task.
    """

    paths: WorldPaths
    class_names: list[str]
    train: dict[str, Dataset]
    val: dict[str, Dataset]
    test: dict[str, Dataset]


def open_world(path: str | Path) -> World:
    """Open a world that ``make_world`` wrote, with the readers for real data.

    Raises:
        DataError: If the folder holds no complete world.
    """
    paths = WorldPaths(Path(path))
    if not paths.readme.is_file():
        raise DataError(f"{path}: `path` must be a folder that `upv2 make-world` wrote.")
    train, val, test = (open_split(paths, split) for split in SPLITS)
    return World(paths, paths.classes_file.read_text().split(), train, val, test)


def open_split(paths: WorldPaths, split: str) -> dict[str, Dataset]:
    """Return the reader of each training task for one split."""
    captions = ImageCaptions(paths.captions(split), paths.scenes(split))
    return {
        "classification": ImageFolder(paths.classification(split), paths.classes_file),
        "detection": CocoDetection(paths.instances(split), paths.scenes(split)),
        "captioning": captions,
        "retrieval": captions,
        "language_modeling": TextCorpus(paths.text(split)),
    }


def make_world(out: str | Path, seed: int = 0, sizes: WorldSizes = WorldSizes(), progress: bool = True) -> WorldPaths:
    """Write the world to disk; the same arguments give the same bytes.

    It is written beside ``out`` and moved there when complete, so an interrupted run leaves no half
    world.

    Args:
        out: A folder that does not exist yet or is empty.
        seed: Everything depends on it.
        sizes: Number of scenes, images and lines.
        progress: Show a progress bar.

    Raises:
        FileExistsError: If ``out`` has content.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"`out` must be a new or an empty folder, got {out} with content. Remove it or choose another."
        )
    partial = WorldPaths(out.with_name(out.name + ".partial"))
    shutil.rmtree(partial.root, ignore_errors=True)
    partial.root.mkdir(parents=True)
    partial.classes_file.write_text("\n".join(CLASS_NAMES) + "\n")
    total = sum(sizes.scenes) + sum(sizes.classification)
    with tqdm(total=total, desc="demo world", unit="image", disable=not progress) as bar:
        for number, split in enumerate(SPLITS):
            writer = SplitWriter(partial, seed, split, bar)
            sentences = writer.write_scenes(sizes.scenes[number])
            writer.write_classification(sizes.classification[number])
            writer.write_text(sizes.text[number], sentences)
    write_tokenizer(partial)
    readme = README.format(seed=seed, num_classes=len(CLASS_NAMES), **vars(sizes))
    partial.readme.write_text(readme)
    if out.exists():
        out.rmdir()
    partial.root.rename(out)
    return WorldPaths(out)


class SplitWriter:
    """Draws and writes the files of one split."""

    def __init__(self, paths: WorldPaths, seed: int, split: str, bar: tqdm):
        """Load what the split's pictures are made of."""
        self.paths, self.seed, self.split, self.bar = paths, seed, split, bar
        self.painter = ScenePainter(split)

    def rng(self, kind: str, *index: int) -> np.random.Generator:
        """Return the generator of one item."""
        key = [self.seed, crc32(self.split.encode()), crc32(kind.encode()), *index]
        return np.random.default_rng(key)

    def draw_scenes(self, number: int) -> Iterator[Scene]:
        """Yield scenes of which no two have the same captions.

        A scene that repeats what an earlier one's captions state is drawn again.
        """
        seen = set()
        for index in range(number):
            attempt = 0
            scene = self.painter.draw_scene(self.rng("scene", index, attempt))
            while scene_signature(scene) in seen:
                attempt += 1
                scene = self.painter.draw_scene(self.rng("scene", index, attempt))
            seen.add(scene_signature(scene))
            yield scene

    def write_scenes(self, number: int) -> list[str]:
        """Write scenes and their annotations; return a sentence on each."""
        folder = self.paths.scenes(self.split)
        folder.mkdir(parents=True)
        first_id = 1 + 1_000_000 * SPLITS.index(self.split)
        images, instances, captions, sentences = [], [], [], []
        for index, scene in enumerate(self.draw_scenes(number)):
            image_id, file_name = first_id + index, f"{index:06d}.jpg"
            save_image(scene.pixels, folder / file_name)
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "width": IMAGE_SIZE,
                    "height": IMAGE_SIZE,
                }
            )
            instances += [
                instance_annotation(item, 10 * image_id + i, image_id) for i, item in enumerate(scene.objects)
            ]
            captions += [
                {"id": 10 * image_id + i, "image_id": image_id, "caption": caption}
                for i, caption in enumerate(scene_captions(scene))
            ]
            sentences.append(scene_sentence(scene))
            self.bar.update()
        categories = [{"id": category_id(name), "name": name, "supercategory": "demo world"} for name in CLASS_NAMES]
        write_json(
            self.paths.instances(self.split),
            {"images": images, "annotations": instances, "categories": categories},
        )
        write_json(self.paths.captions(self.split), {"images": images, "annotations": captions})
        return sentences

    def write_classification(self, number: int) -> None:
        """Write images of one main object, the classes in turn."""
        for name in CLASS_NAMES:
            (self.paths.classification(self.split) / name).mkdir(parents=True)
        for index in range(number):
            round_number, label = divmod(index, len(CLASS_NAMES))
            name = CLASS_NAMES[label]
            pixels = self.painter.draw_single(name, self.rng("classification", index))
            path = self.paths.classification(self.split) / name / f"{round_number:04d}.jpg"
            save_image(pixels, path)
            self.bar.update()

    def write_text(self, number: int, scene_sentences: list[str]) -> None:
        """Write the lines of the text corpus."""
        descriptions = descriptions_of(self.split)
        lines = [draw_sentence(descriptions, scene_sentences, self.rng("text", index)) for index in range(number)]
        path = self.paths.text(self.split)
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def category_id(class_name: str) -> int:
    """Return the id of a class in the COCO files."""
    return FIRST_CATEGORY_ID + CATEGORY_ID_STEP * CLASS_NAMES.index(class_name)


def instance_annotation(item: PlacedObject, annotation_id: int, image_id: int) -> dict[str, Any]:
    """Return the COCO annotation of the visible part of an object.

    Masks are run-length codes even where the object is no crowd, since they are exact for masks
    with holes and several parts.
    """
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id(item.drawn.class_name),
        "bbox": list(item.box),
        "area": int(item.visible.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(item.visible),
        "color": item.drawn.color_name,
        "scale": round(item.drawn.scale, 4),
        "occlusion": round(item.occlusion, 4),
    }


def save_image(pixels: np.ndarray, path: Path) -> None:
    """Write a picture, ``(height, width, 3)`` uint8, as JPEG."""
    Image.fromarray(pixels).save(path, quality=JPEG_QUALITY)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def write_tokenizer(paths: WorldPaths) -> None:
    """Train the tokenizer on the training captions and text and save it."""
    captions = json.loads(paths.captions("train").read_text())["annotations"]
    texts = [annotation["caption"] for annotation in captions]
    texts += paths.text("train").read_text().splitlines()
    train_tokenizer(texts).save_pretrained(paths.tokenizer)
