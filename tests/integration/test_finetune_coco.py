"""The recipe for a user's own photographs, from the command line to a pipeline in a fresh process."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

from outside_data import COCO, NEEDS_COCO
from transformers_upv2 import (
    UniPerceiverV2Config,
    UniPerceiverV2ForMultiTask,
    UniPerceiverV2ImageProcessor,
    UniPerceiverV2Processor,
)
from transformers_upv2.data.examples import DataError

ROOT = Path(__file__).resolve().parents[2]

specification = importlib.util.spec_from_file_location("finetune_coco", ROOT / "scripts" / "finetune_coco.py")
finetune_coco = importlib.util.module_from_spec(specification)
specification.loader.exec_module(finetune_coco)

SMALL_RUN = ["--steps", "2", "--batch-size", "2", "--image-size", "64", "--num-queries", "12", "--num-proposals", "8"]
ASK_SAVED_FOLDER = """
import json, sys
import transformers_upv2
from transformers import pipeline
print(json.dumps(pipeline("object-detection", model=sys.argv[1], device="cpu")(sys.argv[2], threshold=0.0)))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    bpe = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    bpe.train_from_iterator(["a word"], vocab_size=261, special_tokens=specials, show_progress=False)
    parts = json.loads(bpe._tokenizer.to_str())["model"]
    vocab = {**parts["vocab"], "<mask>": len(parts["vocab"])}
    tokenizer = RobertaTokenizer(vocab=vocab, merges=[tuple(merge) for merge in parts["merges"]])
    torch.manual_seed(0)
    model = UniPerceiverV2ForMultiTask(UniPerceiverV2Config.preset("tiny", text_config={"vocab_size": len(tokenizer)}))
    model.set_labels(["circle"], tokenizer, label_set="classification")
    model.save_pretrained(folder)
    UniPerceiverV2Processor(UniPerceiverV2ImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def box(image_id, left, top, width, height, category_id=7, **fields):
    right, bottom = left + width, top + height
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        **fields,
    }


@pytest.fixture
def photographs(tmp_path):
    """Four pictures with all that real files have; their ids are not in order."""
    rng = np.random.default_rng(0)
    rotated = Image.Exif()
    rotated[274] = 6
    sizes = {9: (60, 40), 2: (40, 60), 5: (50, 50), 3: (60, 40)}  # id -> (width, height) as annotated
    for id_, (width, height) in sizes.items():
        pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        # 5 is gray; 2 is stored on its side and annotated as shown; 3 is annotated as stored
        picture = {5: pixels.convert("L"), 2: pixels.rotate(90, expand=True)}.get(id_, pixels)
        picture.save(tmp_path / f"{id_}.jpg", exif=rotated if id_ in (2, 3) else Image.Exif())
    run_lengths = {"size": [40, 60], "counts": [0, 1200, 1200]}
    annotations = [
        box(9, 5, 5, 20, 20),
        box(9, 30, 0, 30, 40, iscrowd=1, segmentation=run_lengths),
        box(2, 10, 10, 25, 40, category_id=90),
        box(3, 20, 5, 30, 30.5),
    ]
    content = {
        "images": [
            {"id": id_, "file_name": f"{id_}.jpg", "width": size[0], "height": size[1]} for id_, size in sizes.items()
        ],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, start=1)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 90, "name": "traffic light"}],
    }
    return content, tmp_path


def arguments(checkpoint, folder, annotations, *options):
    return [
        *("--checkpoint", str(checkpoint), "--images", str(folder), "--annotations", str(annotations)),
        *("--out", str(folder / "out"), *options),
    ]


def write(content, folder):
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def test_trains_on_a_real_file_and_saves_a_folder_for_a_fresh_process(checkpoint, photographs):
    content, folder = photographs
    content["annotations"].append(box(5, 10, 10, 20, 20, id=5, segmentation=[]))  # masks of the others still count
    finetune_coco.main(
        arguments(checkpoint, folder, write(content, folder), "--holdout", "2", "--augment", *SMALL_RUN)
    )

    out = folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == {"training": 2, "evaluation": 2}
    assert {"box_ap", "mask_ap"} <= metrics["before"].keys() & metrics["after"].keys()
    assert [entry["step"] for entry in metrics["losses"]] == [1, 2]
    assert not any("replaced_samples/detection" in entry for entry in metrics["losses"])
    assert metrics["pipeline"]["largest_score_difference_of_batch_4"] < 1e-5
    with Image.open(out / "page.png") as page:
        assert page.size == (1024, 1024)  # two images, annotated and found
    config = json.loads((out / "config.json").read_text())
    assert config["label_sets"]["detection"]["names"] == ["dog", "traffic light"]
    assert config["label_sets"]["classification"]["names"] == ["circle"]

    command = [sys.executable, "-c", ASK_SAVED_FOLDER, str(out), str(folder / "9.jpg")]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(answer) == 8 * 2
    assert {found["label"] for found in answer} == {"dog", "traffic light"}


def test_held_out_images_are_the_last_by_id_and_keep_every_field(checkpoint, photographs):
    content, folder = photographs
    options = finetune_coco.parse_arguments(arguments(checkpoint, folder, write(content, folder), "--holdout", "1"))
    training, evaluation = finetune_coco.split_images(options)
    assert [training[i]["image_id"] for i in range(3)] == [2, 3, 5]
    assert evaluation[0]["image_id"] == 9
    saved = json.loads(evaluation.annotation_file.read_text())
    assert saved["annotations"] == [item for item in content["annotations"] if item["image_id"] == 9]
    assert saved["categories"] == content["categories"]
    assert evaluation.category_ids == training.category_ids == [7, 90]


def test_limit_trains_and_evaluates_on_the_same_images(checkpoint, photographs):
    content, folder = photographs
    options = finetune_coco.parse_arguments(arguments(checkpoint, folder, write(content, folder), "--limit", "3"))
    for dataset in finetune_coco.split_images(options):
        assert [dataset[i]["image_id"] for i in range(len(dataset))] == [2, 3, 5]
    assert options.augment is False


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--holdout", "4"), ValueError, r"`--holdout` must be in \[1, 3\] with 4 images, got 4\."),
        (("--limit", "5"), ValueError, r"`--limit` must be in \[1, 4\] with 4 images, got 5\."),
        (
            ("--limit", "4", "--num-queries", "5", "--num-proposals", "6"),
            ValueError,
            r"`num_proposals` must not exceed `proposal_config\.num_queries`, got 6 and 5",
        ),
    ],
)
def test_impossible_numbers_are_refused(checkpoint, photographs, options, error, message):
    content, folder = photographs
    with pytest.raises(error, match=message):
        finetune_coco.main(arguments(checkpoint, folder, write(content, folder), *options))


def test_missing_files_are_named(checkpoint, photographs, capsys):
    content, folder = photographs
    with pytest.raises(DataError, match=r"none\.json: the annotation file must exist"):
        finetune_coco.main(arguments(checkpoint, folder, folder / "none.json", "--limit", "4"))
    with pytest.raises(SystemExit):
        finetune_coco.main(arguments(folder / "none", folder, write(content, folder), "--limit", "4"))
    assert "--checkpoint must be the folder of a saved model" in capsys.readouterr().err
    (folder / "5.jpg").unlink()
    with pytest.raises(DataError, match=r"5\.jpg: the image file must exist"):
        finetune_coco.main(arguments(checkpoint, folder, write(content, folder), "--limit", "4", *SMALL_RUN))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": 8}, r"annotations\[0\]: `category_id` must be one of .* \[7, 90\], got 8"),
        ({"image_id": 1}, r"annotations\[0\]: `image_id` must be the id of an image in the file, got 1"),
        ({"bbox": [70, 5, 20, 20]}, r"annotation 1 of image 9: `bbox` must have an area inside the image"),
    ],
)
def test_bad_annotations_are_named(checkpoint, photographs, change, message):
    content, folder = photographs
    content["annotations"][0] |= change
    with pytest.raises(DataError, match=message):
        finetune_coco.main(arguments(checkpoint, folder, write(content, folder), "--limit", "4", *SMALL_RUN))


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason=NEEDS_COCO)
def test_real_photographs(checkpoint, tmp_path):
    finetune_coco.main(
        [
            *("--checkpoint", str(checkpoint), "--images", str(COCO / "images/train2017")),
            *("--annotations", str(COCO / "annotations/instances_train2017.json")),
            *("--out", str(tmp_path), "--limit", "4", *SMALL_RUN),
        ]
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["losses"][-1]["loss/detection"] < metrics["losses"][0]["loss/detection"]
    assert 0 <= metrics["pipeline"]["box_ap"] <= 1
    assert len(json.loads((tmp_path / "config.json").read_text())["label_sets"]["detection"]["names"]) == 80
