"""Write a small data folder with every format that the recipes read, so that they can be tried without a data set.

    python scripts/make_standin_data.py --out runs/standin

The pictures and texts are those of the demo world (extra ``demo``). The folder has the names and formats of the real
data: COCO's instances with ids that have gaps, Karpathy's splits, ImageNet folders with a file of class names, tar and
parquet shards, lines of text; and a tokenizer, since a fresh machine has none.
"""

import argparse
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from transformers_upv2.data.demo_world import WorldPaths, WorldSizes, make_world
from transformers_upv2.data.json_files import read_json

TAR_SETS = ("cc3m", "cc12m", "sbu", "vg", "yfcc")
SHARDS = 8  # as many as the loader workers of two processes
KARPATHY_SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


def write_coco(world: WorldPaths, out: Path) -> None:
    """Write instances of train2017 and val2017, and Karpathy's split file over all images.

    As in the real data, train2017 holds images of the held-out splits of the captions.
    """
    images: list[dict[str, Any]] = []
    (out / "annotations").mkdir(parents=True)
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        content = read_json(world.instances(split))
        (out / folder).mkdir()
        for image in content["images"]:
            image["id"] += 1_000_000 if split == "val" else 0
            name = f"{image['id']:012}.jpg"
            shutil.copy(world.scenes(split) / image["file_name"], out / folder / name)
            image["file_name"] = name
        for annotation in content["annotations"]:
            annotation["image_id"] += 1_000_000 if split == "val" else 0
            annotation["category_id"] = 3 * annotation["category_id"] + 1
        for category in content["categories"]:
            category["id"] = 3 * category["id"] + 1
        (out / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content))
        captions = read_captions(world, split)
        for number, image in enumerate(content["images"]):
            karpathy = "restval" if split == "val" else ("test", "val", "train", "train")[number % 4]
            original = image["id"] - (1_000_000 if split == "val" else 0)
            images.append(split_entry(image["id"], karpathy, captions[original]))
    (out / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))


def split_entry(image_id: int, split: str, captions: Sequence[str]) -> dict[str, Any]:
    """Return an image's entry of Karpathy's file."""
    return {
        "filepath": "val2014",
        "filename": f"COCO_val2014_{image_id:012}.jpg",
        "cocoid": image_id,
        "imgid": image_id,
        "split": split,
        "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions],
    }


def read_captions(world: WorldPaths, split: str) -> dict[int, list[str]]:
    """Return the captions of every image id."""
    captions: dict[int, list[str]] = {}
    for annotation in read_json(world.captions(split))["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return captions


def write_flickr(world: WorldPaths, out: Path) -> None:
    """Write the test split of Flickr30k."""
    shutil.copytree(world.scenes("test"), out / "images")
    captions = read_captions(world, "test")
    images = [
        {
            "filename": image["file_name"],
            "imgid": image["id"],
            "split": "test",
            "sentences": [{"raw": caption} for caption in captions[image["id"]]],
        }
        for image in read_json(world.captions("test"))["images"]
    ]
    (out / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))


def write_imagenet(world: WorldPaths, out: Path) -> None:
    """Write class folders named by synsets, and the file of their names."""
    lines = []
    for number, name in enumerate(world.classes_file.read_text().split()):
        synset = f"n{number:08}"
        lines.append(f"{synset} {name}")
        for split in ("train", "val"):
            shutil.copytree(world.classification(split) / name, out / split / synset)
    (out / "classes.txt").write_text("\n".join(lines) + "\n")


def write_shards(world: WorldPaths, out: Path) -> None:
    """Write the web's pairs as tar shards, and one set as parquet as well."""
    captions = read_captions(world, "train")
    pictures = [
        ((world.scenes("train") / image["file_name"]).read_bytes(), captions[image["id"]][0])
        for image in read_json(world.captions("train"))["images"]
    ]
    for name in TAR_SETS:
        (out / name).mkdir()
        for shard in range(SHARDS):
            write_tar(out / name / f"{shard:05}.tar", pictures[shard::SHARDS])
    (out / "parquet").mkdir()
    for shard in range(SHARDS):
        rows = [
            {"image": {"bytes": content, "path": None}, "caption": text} for content, text in pictures[shard::SHARDS]
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out / "parquet" / f"{shard:05}.parquet")


def write_tar(path: Path, pictures: Sequence[tuple[bytes, str]]) -> None:
    """Write one webdataset shard."""
    with tarfile.open(path, "w") as archive:
        for number, (content, text) in enumerate(pictures):
            for extension, part in (("jpg", content), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{number:09}.{extension}")
                member.size = len(part)
                archive.addfile(member, io.BytesIO(part))


def write_own(world: WorldPaths, out: Path) -> None:
    """Write what `finetune_coco_json` expects of a user: two annotation files and one folder of images."""
    for split in ("train", "val"):
        content = read_json(world.instances(split))
        for image in content["images"]:
            image["file_name"] = f"{split}_{image['file_name']}"
        (out / f"{split}.json").write_text(json.dumps(content))
    (out / "images").mkdir()
    for split in ("train", "val"):
        for path in world.scenes(split).iterdir():
            shutil.copy(path, out / "images" / f"{split}_{path.name}")


def write_all(out: Path, sizes: WorldSizes) -> None:
    """Write everything.

    Args:
        out: A folder that does not exist yet or is empty.
        sizes: Number of scenes, images and lines of the world.
    """
    world = make_world(out / "world", 0, sizes, progress=False)
    write_coco(world, out / "coco")
    write_imagenet(world, out / "imagenet")
    (out / "flickr30k").mkdir()
    write_flickr(world, out / "flickr30k")
    write_shards(world, out)
    (out / "books_wiki").mkdir()
    for split in ("train", "val"):
        shutil.copy(world.text(split), out / "books_wiki" / f"{split}.txt")
    shutil.copytree(world.tokenizer, out / "tokenizer")
    write_own(world, out)
    shutil.rmtree(out / "world")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that is empty or does not exist")
    parser.add_argument("--scenes", type=int, default=64, help="training scenes; the other parts follow")
    options = parser.parse_args(arguments)
    number = options.scenes
    write_all(options.out, WorldSizes((number, number // 4, number // 4), (48, 24, 24), (200, 50, 50)))
    print(f"{options.out}: data for every recipe; its tokenizer is in {options.out / 'tokenizer'}")


if __name__ == "__main__":
    main()
