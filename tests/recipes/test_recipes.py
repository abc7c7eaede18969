"""Every recipe that ships is read, checked and run at a small size, on data of the real formats."""

import importlib.util
import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import pipeline

from source_files import PACKAGE, ROOT
from transformers_upv2.data.demo_world import WorldSizes
from transformers_upv2.data.examples import DataError
from transformers_upv2.hub import upload_folder
from transformers_upv2.model_card import main_metrics
from transformers_upv2.recipes import FOLDER, NAMES
from transformers_upv2.recipes.building import open_reader, open_training_data
from transformers_upv2.recipes.recipe import apply_change, read_recipe
from transformers_upv2.recipes.run import main

SIZES = WorldSizes(scenes=(24, 8, 8), classification=(24, 12, 12), text=(40, 20, 20))
SMALL = [
    "arguments.max_steps=5",
    "arguments.warmup_steps=0",
    "arguments.save_steps=5",
    "arguments.logging_steps=1",
    "arguments.dataloader_num_workers=0",
    "arguments.bf16=false",
    "arguments.use_cpu=true",
    "arguments.report_to=[]",
    "arguments.disable_tqdm=true",
]
SMALL_MODEL = [
    "model.preset=tiny",
    "model.parts={}",
    "processor.size={longest_edge: 64}",
    "transforms.classification=[{name: timm, image_size: 64}]",
    "transforms.detection=[{name: large_scale_jitter, canvas_size: [64, 64]}, {name: flip}]",
    "arguments.image_options={detection: {do_resize: false, pad_size: {height: 64, width: 64}}}",
]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("standin") / "data"
    load_script("make_standin_data").write_all(out, SIZES)
    return out


def small_changes(name, data):
    recipe = read_recipe(name)
    sizes = f"arguments.batch_sizes={{{', '.join(f'{task}: 2' for task in recipe.data)}}}"
    if "preset" in recipe.model:
        return [*SMALL, *SMALL_MODEL, sizes, f"model.tokenizer={data / 'tokenizer'}"]
    return [
        *SMALL,
        sizes,
        f"model.checkpoint={ROOT / recipe.model['checkpoint']}",
        "processor={size: {longest_edge: 64}}",
    ]


def test_recipes_lie_beside_the_scripts_and_in_the_package_as_one_copy():
    assert set(NAMES) == {"base", "finetune_coco_json", "large", "resnet50_ablation"}
    assert (ROOT / "scripts" / "recipes").resolve() == FOLDER.resolve() == (PACKAGE / "recipes").resolve()
    assert "recipes/*.yaml" in (ROOT / "setup.cfg").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_arguments_says_where_it_comes_from(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    arguments = text.split("\narguments:\n")[1].splitlines()
    unmarked = [
        line for line in arguments if not any(f"[{mark}]" in line for mark in ("paper", "v1", "mask dino", "chosen"))
    ]
    allowed = ("image_options", "classification: {do_resize", "detection: {do_resize", "report_to", "seed")
    assert [line for line in unmarked if not line.strip().startswith(allowed)] == []
    assert "# peak memory: " in text
    assert "# seconds: " in text


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_checks_the_whole_recipe(name, data, tmp_path, capsys):
    main(
        [
            "--config",
            name,
            "--data",
            str(data),
            "--out",
            str(tmp_path / "out"),
            "--dry-run",
            "--set",
            *small_changes(name, data),
        ]
    )
    shown = capsys.readouterr().out
    recipe = read_recipe(name)
    for task, members in recipe.data.items():
        for member in members:
            assert any(task in line and f" {member} " in line for line in shown.splitlines())
        assert f"{task:20} about {5 / len(recipe.data):.0f} of 5, batch 2 x 1 x 1 processes" in shown
    assert "million trainable parameters" in shown
    assert not (tmp_path / "out").exists()


def test_dry_run_finds_missing_data(data, tmp_path):
    (tmp_path / "coco").mkdir()
    with pytest.raises(DataError, match=r"imagenet.train: `folder` must be a folder"):
        main(["--config", "base", "--data", str(tmp_path), "--out", str(tmp_path), "--dry-run"])


def test_dry_run_finds_different_classes_of_one_task(data, tmp_path):
    annotations = data / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text())
    content["categories"][0]["name"] = "bus"
    (tmp_path / "second.json").write_text(json.dumps(content))
    second = {
        "reader": "coco_detection",
        "annotation_file": str(tmp_path / "second.json"),
        "image_folder": "coco/val2017",
    }
    change = f"data.detection.second={yaml.safe_dump(second, default_flow_style=True, width=1000).strip()}"
    with pytest.raises(DataError, match=r"only in 'coco': \[.*\], only in 'second': \['bus'\]"):
        main(["--config", "base", "--data", str(data), "--out", "out", "--dry-run", "--set", change])


def test_held_out_caption_images_are_not_trained_on(data):
    recipe = read_recipe("base", [f"model.tokenizer={data / 'tokenizer'}"])
    opened = open_training_data(recipe, data)
    held_out = {
        image["cocoid"]
        for image in json.loads((data / "coco" / "dataset_coco.json").read_text())["images"]
        if image["split"] in ("val", "test")
    }
    assert opened["detection"]["coco"].num_excluded == len(held_out) == 12
    assert not held_out & {example["image_id"] for example in map(opened["detection"]["coco"].__getitem__, range(12))}
    assert not held_out & {image["cocoid"] for image in opened["captioning"]["coco"][0]._images}


def test_changes_and_mistakes():
    tree = {"arguments": {"seed": 0, "max_steps": 5}}
    for change in ("arguments.seed=3", "arguments.max_steps=null", "model.parts={backbone: x}"):
        apply_change(tree, change)
    assert tree == {"arguments": {"seed": 3}, "model": {"parts": {"backbone": "x"}}}
    with pytest.raises(ValueError, match=r"must look like 'arguments.max_steps=100', got 'seed'"):
        apply_change(tree, "seed")
    with pytest.raises(ValueError, match="where 'seed' is a value"):
        apply_change(tree, "arguments.seed.x=1")
    with pytest.raises(ValueError, match=r"one of \['base', .* got 'huge'"):
        read_recipe("huge")
    with pytest.raises(ValueError, match="got 'detect'"):
        read_recipe("base", ["data.detect={}"])
    with pytest.raises(ValueError, match=r"the unknown \['epochs'\], missing \[\]"):
        read_recipe("base", ["epochs=3"])


def test_a_recipe_for_some_of_its_tasks():
    recipe = read_recipe("base").restrict(["retrieval", "detection"])
    assert list(recipe.data) == ["detection", "retrieval"]
    assert set(recipe.evaluation) == {"detection", "retrieval", "retrieval/flickr30k"}
    assert set(recipe.arguments["sampling_probabilities"]) == set(recipe.data)
    assert recipe.arguments["lr_multipliers"] == read_recipe("base").arguments["lr_multipliers"]
    with pytest.raises(ValueError, match=r"among those of the recipe, .* got \['captions'\]"):
        read_recipe("base").restrict(["captions"])


def test_files_are_one_pattern_or_a_list_of_paths_and_addresses(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(name)
    corpus = open_reader({"reader": "text_corpus", "files": ["a.txt", str(tmp_path / "b.txt")], "weight": 2}, tmp_path)
    assert [corpus[i]["text"] for i in range(2)] == ["a", "b"]
    address = "https://example.org/shards/0.tar"
    (tmp_path / "1.tar").touch()
    for files, expected in (
        (address, [address]),
        ([address, "1.tar"], [address, str(tmp_path / "1.tar")]),
        ("1.tar", [str(tmp_path / "1.tar")]),
    ):
        assert open_reader({"reader": "image_text_shards", "files": files}, tmp_path).files == expected


def test_unknown_readers_and_transforms_are_named(data):
    for change, message in (
        ("data.classification.imagenet.reader=csv", "`reader` must be one of .* got 'csv'"),
        ("transforms.classification=[{name: mixup}]", "`transform` must be one of .* got 'mixup'"),
    ):
        with pytest.raises(ValueError, match=message):
            main(["--config", "base", "--data", str(data), "--out", "out", "--dry-run", "--set", change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("processor.siez={longest_edge: 64}", r"`processor` must have options .*'size'.* got \['siez'\]"),
        ("arguments.image_options.detection={do_resiz: false}", r"`arguments.image_options.detection` .*'do_resiz'"),
        ("transforms.captioning=[{name: flip}]", r"`transforms` must name .* \['detection'\], got \['captioning'\]"),
        ("model.chekpoint=x", r"`model` must have either \['checkpoint'\] or .*got .*'chekpoint'"),
        ("model.preset=swin-base", r"got \['checkpoint', 'preset'\]"),
        ("model={}", r"`model` must have either .* got \[\]"),
        ("arguments.max_steps=-1", "`arguments.max_steps` must be a whole number of at least 1, got -1"),
        ("arguments.max_steps=lots", "got 'lots'"),
        ("arguments.max_steps=null", "got None"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_recipe("finetune_coco_json", [change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("arguments.max_step=5", r"options of `arguments` .*'max_step'.* Did you mean \['max_steps'\]"),
        ("data.detection.coco.image_foldr=x", r"the reader 'coco_detection' .* Did you mean \['image_folder'\]"),
        ("data.detection.coco.annotation_file=null", r"the reader .* missing .*'annotation_file'"),
        ("transforms.detection=[{name: flip, chance: 1}]", r"the transform 'flip' .*'chance'.* \['probability'\]"),
        ("evaluators.detection={masks: false}", r"the evaluator of 'detection' .* 'masks'"),
    ],
)
def test_misspelt_options_are_named(data, change, message):
    with pytest.raises(ValueError, match=message):
        main(["--config", "base", "--data", str(data), "--out", "out", "--dry-run", "--set", change])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_runs(name, data, tmp_path, capsys):
    """Updates of every task, checkpoint, resume, evaluation and the saved folder, through the command line."""
    changes = small_changes(name, data)
    if name != "finetune_coco_json":
        first = read_recipe(name).evaluation["retrieval/flickr30k"]
        changes.append(f"evaluation={yaml.safe_dump({'retrieval/flickr30k': first}, default_flow_style=True).strip()}")
    command = ["--config", name, "--data", str(data), "--out", str(tmp_path), "--set", *changes]
    main(command)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {key.rpartition("/")[0] for key in metrics} == {
        "detection" if "finetune" in name else "retrieval/flickr30k"
    }
    printed = capsys.readouterr()
    assert "| Methods |" in printed.out
    assert f"all numbers: {tmp_path / 'metrics.json'}" in printed.out
    assert "updates are done" not in printed.err
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["global_step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "model.safetensors").values())
    assert pipeline(
        "image-classification" if "preset" in read_recipe(name).model else "object-detection", str(tmp_path)
    )
    with upload_folder(tmp_path, "me/mine"):  # complete, and its card is the run's
        card = ModelCard.load(tmp_path / "README.md")
    assert {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results} == {
        ("data", key.rpartition("/")[2]): pytest.approx(metrics[key], abs=1e-4)
        for key in main_metrics(metrics)
        if metrics[key] != -1
    }
    (tmp_path / "README.md").write_text("mine")
    main([*command, "evaluation={}"])
    shown = capsys.readouterr()
    assert "checkpoint-5: 5 of 5 updates are done, nothing is left to train." in shown.err
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "README.md stays as it was" in shown.out
    main([*command, "arguments.max_steps=6", "evaluation={}"])
    assert "checkpoint-5: 5 of 6 updates are done, training goes on there." in capsys.readouterr().err
    assert json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())["max_steps"] == 5


def test_no_is_a_word_and_only_true_and_false_are_booleans():
    changes = ["arguments.save_strategy=no", "arguments.bf16=false", "arguments.learning_rate=1.0e-3"]
    arguments = read_recipe("finetune_coco_json", changes).arguments
    assert (arguments["save_strategy"], arguments["bf16"], arguments["learning_rate"]) == ("no", False, 1e-3)


@pytest.mark.slow
def test_a_recipe_uploads_what_it_made_with_its_card(data, tmp_path, hub):
    changes = ["arguments.push_to_hub=true", "arguments.hub_model_id=me/mine", "arguments.max_steps=2"]
    command = ["--config", "finetune_coco_json", "--data", str(data), "--out", str(tmp_path / "out")]
    main([*command, "--set", *small_changes("finetune_coco_json", data), *changes])
    files = hub.files("me/mine")
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert {"processor_config.json", "tokenizer.json", "metrics.json"} <= files.keys()
    card = files["README.md"].decode()
    assert "| seed | 0 |" in card
    metrics = json.loads(files["metrics.json"])
    assert ModelCard(card).data.eval_results[0].metric_value == pytest.approx(metrics["detection/box_ap"], abs=1e-4)
