"""What would stop or spoil a run later on is found before anything is spent, and what need not stop it does not."""

import io
import json
import re
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from source_files import ROOT
from transformers_upv2.data.examples import DataError
from transformers_upv2.data.image_folder import ImageFolder
from transformers_upv2.recipes.building import build_trainer
from transformers_upv2.recipes.data_checks import describe_images
from transformers_upv2.recipes.dry_run import describe_run
from transformers_upv2.recipes.recipe import read_recipe
from transformers_upv2.recipes.run import main, run_script

CHANGES = [
    f"model.checkpoint={ROOT / 'model_cards' / 'uniperceiver-v2-tiny'}",
    "processor={size: {longest_edge: 64}}",
    "transforms.detection=[{name: large_scale_jitter, canvas_size: [64, 64]}]",
    "arguments.max_steps=1",
    "arguments.warmup_steps=0",
    "arguments.batch_sizes={detection: 6}",
    "arguments.use_cpu=true",
    "arguments.report_to=[]",
    "arguments.disable_tqdm=true",
]
CAT, DOG = {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}


@pytest.fixture
def content():
    """Six images of one object each, half of them cats."""
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(6)],
        "categories": [CAT, DOG],
        "annotations": [
            {"image_id": i, "category_id": 1 + i % 2, "bbox": [10, 10, 20, 20], "segmentation": square}
            for i in range(6)
        ],
    }


@pytest.fixture
def write(tmp_path, content):
    """Write train.json, val.json and the images; `**parts` replace those of val.json."""
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.new("RGB", (64, 48), (40 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")

    def write(**parts):
        (tmp_path / "train.json").write_text(json.dumps(content))
        (tmp_path / "val.json").write_text(json.dumps({**content, **parts}))
        return tmp_path

    return write


def dry_run(root, *changes, **options):
    recipe = read_recipe("finetune_coco_json", [*CHANGES, *changes])
    return "\n".join(describe_run(recipe, root, root / "out", **options))


def test_dry_run_counts_masks(write, content):
    boxes = [{k: v for k, v in each.items() if k != "segmentation"} for each in content["annotations"]]
    shown = dry_run(write(annotations=[*content["annotations"][:2], *boxes[2:]]))
    assert "6 of 6 objects have masks" in shown
    assert "2 of 6 objects have masks" in shown


def test_dry_run_describes_the_objects(write, content):
    """What tools export: an unused class, crowds for masks, fractions and corners for boxes, boxes outside."""
    content["categories"] = [{"id": 0, "name": "things"}, CAT, DOG]
    for index, box in {1: [0.1, 0.1, 0.3, 0.3], 2: [20, 20, 60, 20], 3: [200, 20, 10, 10]}.items():
        content["annotations"][index] |= {"bbox": box, "segmentation": []}
    content["annotations"][4]["iscrowd"] = 1
    shown = dry_run(write(categories=[CAT, DOG]), "evaluation={}")
    assert "objects of each class: dog 3, cat 2" in shown
    assert "1 of 3 classes have no object: 'things'" in shown
    assert "1 images show no object" in shown
    assert "1 regions have `iscrowd` 1" in shown
    assert "1 boxes are less than a pixel" in shown
    assert "1 boxes reach out of their image" in shown
    assert re.search(r"1 images have an annotation that cannot be used.*annotation None of image 3", shown)


def test_dry_run_is_silent_about_what_is_right(write):
    shown = dry_run(write(), "evaluation={}")
    assert "objects of each class: cat 3, dog 3" in shown
    assert not re.search("no object|iscrowd|pixel|reach out|cannot be used|as well", shown)


def test_images_of_training_and_evaluation_are_compared(write, content):
    (root := write(images=content["images"][:2], annotations=[])).joinpath("other").symlink_to("images")
    assert "2 of its 2 images are in the training data as well" in dry_run(root)
    assert "as well" not in dry_run(root, "evaluation.detection.image_folder=other")


def test_the_most_and_the_least_frequent_of_many_classes_are_listed(write, content):
    content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(20)]
    content["annotations"] = [
        {"image_id": 0, "category_id": i, "bbox": [10, 10, 20, 20]} for i in range(20) for _ in range(20 - i)
    ]
    shown = dry_run(write(), "evaluation={}")
    assert "objects of each class: class 0 20, " in shown
    assert ", ..., " in shown
    assert "class 19 1" in shown
    assert "class 10 " not in shown


@pytest.mark.parametrize("field", [{"iscrowd": 1}, None], ids=["crowds", "no annotations"])
def test_nothing_to_learn_is_found_before_training(write, content, field):
    content["annotations"] = [each | field for each in content["annotations"]] if field else []
    with pytest.raises(DataError, match=r"'detection' must show at least one object, got 6 images without"):
        dry_run(write(), "evaluation={}")


@pytest.mark.parametrize("check", [dry_run, lambda root: main(run_command(root))], ids=["dry run", "run"])
def test_unknown_classes_are_found_before_training(write, check):
    root = write(categories=[CAT, {"id": 2, "name": "bird"}])
    with pytest.raises(ValueError, match=r"evaluation of 'detection'.* unknown are \['bird'\]"):
        check(root)
    assert not (root / "out").exists()


def run_command(root):
    return ["--config", "finetune_coco_json", "--data", str(root), "--out", str(root / "out"), "--set", *CHANGES]


def test_class_agnostic_evaluation_may_have_other_classes(write):
    root = write(categories=[CAT, {"id": 2, "name": "bird"}])
    assert "evaluation" in dry_run(root, "evaluators.detection={class_agnostic: true}")


def test_training_data_of_one_task_is_matched_by_names(write):
    other = "data.detection.other={reader: coco_detection, annotation_file: val.json, image_folder: images}"
    root = write(categories=[{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}])
    assert dry_run(root, other, "evaluation={}").count("objects have masks") == 2
    root = write(categories=[{"id": 1, "name": "bus"}, {"id": 2, "name": "cat"}])
    with pytest.raises(DataError, match=r"only in 'own': .*dog.*, only in 'other': .*bus"):
        dry_run(root, other, "evaluation={}")


def test_classes_of_one_name_are_allowed(write, content):
    content["categories"] = [CAT, DOG | {"name": "cat"}]
    assert "evaluation" in dry_run(write())


def test_missing_images_are_found(write):
    root = write()
    (root / "images" / "4.png").unlink()
    with pytest.raises(DataError, match=r"evaluation detection: of its 6 .* at most 0 .*4\.png and 0 others"):
        dry_run(root)
    assert "1 image files are missing, such as " in dry_run(root, "evaluation={}")
    (root / "images" / "5.png").unlink()
    with pytest.raises(DataError, match=r"detection own: of its 6 .* at most 1 .*4\.png and 1 others"):
        dry_run(root, "evaluation={}", "arguments.max_bad_samples=1")


def test_bad_examples_are_borne_as_the_run_bears_them(write, content):
    """Training replaces a bad annotation; evaluation does not read it, and stops at a bad image."""
    bad = [each | {"bbox": [200, 200, 10, 10]} for each in content["annotations"][:2]]
    content["annotations"][:2] = bad
    root = write()
    shown = dry_run(root)
    assert "the first good one has image, image_id, annotations, 2 bad before it would be replaced, such as " in shown
    assert shown.count("bad before it") == 1
    with pytest.raises(DataError, match=r"detection own: at most 1 .* the first 2 are.*`bbox` must have an area"):
        dry_run(root, "arguments.max_bad_samples=1")
    (root / "images" / "0.png").write_bytes(b"no picture")
    assert "2 bad before it" in dry_run(root, "evaluation={}")
    with pytest.raises(DataError, match=r"evaluation detection: at most 0 .* image file must be readable"):
        dry_run(root)
    content["annotations"] = [each | {"bbox": [200, 200, 10, 10]} for each in content["annotations"]]
    with pytest.raises(DataError, match=r"detection own: .* not all, but the first 6 are"):
        dry_run(write(), "evaluation={}")


def test_streams_must_have_a_shard_for_every_worker_and_are_not_evaluated_on(write):
    root = write()
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    for shard in range(2):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for extension, part in (("jpg", picture.getvalue()), ("txt", b"a dog")):
                entry = tarfile.TarInfo(f"{shard}.{extension}")
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))
    reader = "{reader: image_text_shards, files: '*.tar'}"
    changes = ["data.detection=null", "transforms={}", "evaluation={}", "arguments.image_options=null"]
    changes += [f"data.captioning={{web: {reader}}}", "arguments.batch_sizes={captioning: 1}"]
    assert "2 shards" in dry_run(root, *changes, world_size=2)
    with pytest.raises(ValueError, match=r"4 in all, got 2"):
        dry_run(root, *changes, "arguments.num_workers={captioning: 2}", world_size=2)
    with pytest.raises(ValueError, match="must not be a stream, got ImageTextShards for 'captioning'"):
        dry_run(root, *changes, f"evaluation={{captioning: {reader}}}")


def test_curves_that_cannot_be_shown_are_found_before_anything_is_spent(write):
    root = write()
    for check in (lambda change: dry_run(root, change), lambda change: main([*run_command(root), change])):
        with pytest.raises(ImportError, match=r"got \['nothing'\].*pip install nothing.*report_to=\[\]"):
            check("arguments.report_to=[nothing]")
    assert not (root / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", [["scripts/train.py"], ["-m", "transformers_upv2.recipes"]])
def test_a_person_reads_one_message_and_no_traceback(write, content, program):
    root = write(categories=[CAT, {"id": 2, "name": "bird"}])
    run = subprocess.run([sys.executable, *program, *run_command(root)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert re.fullmatch(r"train: evaluation of 'detection' .*unknown are \['bird'\].*\n", run.stderr), run.stderr


def test_bad_data_in_the_middle_of_training_is_one_message(write, content):
    for each in content["annotations"][1:]:
        each["bbox"] = [200, 20, 10, 10]
    command = [*run_command(write()), "arguments.max_bad_samples=1", "evaluation={}"]
    with pytest.raises(SystemExit, match=r"(?s)^train: .*at most `max_bad_samples`=1 .*must have an area inside"):
        run_script(command)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["one class", "other order", "boxes", "box outside", "text ids"])
def test_evaluation_after_training_does_not_fail(write, content, case):
    """Files that people have: few classes, boxes alone, a bad box, masks for some objects, texts for ids."""
    del content["annotations"][0]["segmentation"]
    annotations = [dict(each) for each in content["annotations"]]
    images, categories = content["images"], content["categories"]
    if case == "one class":
        categories = [{"id": 7, "name": "dog"}]
        annotations = [each | {"category_id": 7} for each in annotations[1::2]]
    if case == "other order":
        categories = [DOG | {"id": 1}, CAT | {"id": 2}]
    if case == "boxes":
        annotations = [{k: v for k, v in each.items() if k != "segmentation"} for each in annotations]
    if case == "box outside":
        annotations[3]["bbox"] = [200, 200, 10, 10]
    if case == "text ids":
        images = [each | {"id": f"photo {each['id']}"} for each in images]
        annotations = [each | {"image_id": f"photo {each['image_id']}"} for each in annotations]
        content |= {"images": images, "annotations": annotations}
    root = write(images=images, categories=categories, annotations=annotations)
    trainer = build_trainer(read_recipe("finetune_coco_json", CHANGES), root, root / "out")
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_detection/box_ap"] >= 0
    assert ("eval_detection/mask_ap" in metrics) == (case != "boxes")


def test_class_folders_are_described(tmp_path):
    for place in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    assert [*describe_images("own", ImageFolder(tmp_path), 0)] == ["2 classes of 1 to 2 images: ['cat', 'dog']"]
