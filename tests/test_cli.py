"""The command line: verbs, help, tables, JSON, pictures, exit codes."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, RobertaTokenizer

import transformers_upv2
from tiny_models import CLASS_NAMES, IMAGE_SIZE
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2ImageProcessor, UniPerceiverV2Processor, cli
from transformers_upv2.model.coco_masks import decode_segmentation

VERBS = [
    "predict",
    "classify",
    "segment",
    "caption",
    "retrieve",
    "info",
    "evaluate",
    "make-world",
    "train",
    "push",
    "export",
    "serve",
    "study",
]
MODEL_FIRST = ["info", "evaluate", "push", "export", "serve"]


@pytest.fixture(scope="module")
def model_folder(
    session_model: UniPerceiverV2ForMultiTask, roberta_tokenizer: RobertaTokenizer, tmp_path_factory: Any
) -> Path:
    """Read only: a tiny saved model."""
    folder = tmp_path_factory.mktemp("model")
    session_model.save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": IMAGE_SIZE}, pad_size=size)
    UniPerceiverV2Processor(image_processor, roberta_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    files = []
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 120, 3), dtype=np.uint8)
        files.append(tmp_path / "photos" / f"photo{index}.png")
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(files[-1])
    return files


@pytest.fixture
def run(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a verb that must succeed; returns what it prints."""

    def run_verb(verb: str, *arguments: Any) -> str:
        model = [model_folder] if verb in MODEL_FIRST else ["--model", model_folder]
        assert cli.main([verb, *map(str, [*model, *arguments])]) == 0
        return capsys.readouterr().out

    return run_verb


# Help and errors


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_examples_that_parse(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.partition("examples:")[2].splitlines()
    examples = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("  upv2 ")]
    assert examples
    for example in examples:
        assert cli.build_parser().parse_args(example).verb == verb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "VERB"),
        (["predict", "a.jpg"], "--task"),
        (["predict", "a.jpg", "--task", "detect"], "invalid choice"),
        (["segment", "a.jpg", "--threshold", "1.5"], r"must be in [0, 1], got 1.5"),
        (["classify", "a.jpg", "--top-k", "0"], "must be at least 1, got 0"),
        (["retrieve", "a cat", "--images", ".", "--index", "."], "must be a file, got the folder '.'"),
        (["serve", "./nowhere", "--port", "65536"], "must be at most 65535, got 65536"),
        (["classify", "a.jpg", "--labels", "cat,,dog"], "names with commas between them, got 'cat,,dog'"),
    ],
)
def test_wrong_command_lines_give_exit_code_two(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "a.jpg", "--model", "./nowhere"], "The model must be a folder with a saved model"),
        (["serve", "./nowhere"], "The model must be a folder with a saved model"),
        (["predict", "a.jpg", "--task", "captioning", "--labels", "cat"], "`--labels` needs one of the tasks"),
        (["segment", "a/x.jpg", "b/x.jpg"], "`IMAGE` files must have different names"),
        (["segment", "a.jpg", "--out", "b.PNG"], "`--out` must be a folder, where each picture gets its image's name"),
        (["retrieve", "a cat"], "`--images` must name a folder to search in"),
        (["retrieve", "nowhere.jpg", "--images", "."], "`QUERY` must be a text or the file of an image"),
        (["evaluate", "runs/mine"], "There must be data to evaluate on"),
        (
            ["info", "--preset", "swin-huge"],
            "`PRESET_OR_MODEL` must be one of ['resnet50', 'swin-base', 'swin-large', 'tiny']",
        ),
        (["info", "swin-huge"], "`PRESET_OR_MODEL` must be one of ['resnet50', 'swin-base', 'swin-large', 'tiny']"),
        (["retrieve", " ", "--images", "."], "`QUERY` must be a text or the file of an image, got ' '"),
        (["serve", "./nowhere", "--host", "192.0.2.1"], "`--host` and `--port` must be a free address"),
        (["classify", "a.jpg", "--model", "./nowhere"], "Name another"),
        (["push", "./nowhere", "me/model"], "`folder` must be a folder with a saved model"),
        (["evaluate", "runs/mine", "--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_errors_give_exit_code_one_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"upv2 {arguments[0]}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_missing_and_broken_images_are_named(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    for file in (tmp_path / "broken.jpg", tmp_path / "missing.jpg"):
        assert cli.main(["classify", str(file), "--model", str(model_folder)]) == 1
        assert file.name in capsys.readouterr().err
    for file, what in ((tmp_path, "it is a folder"), ("", "the name is empty")):
        assert cli.main(["classify", str(file), "--model", str(model_folder)]) == 1
        assert what in capsys.readouterr().err


def test_an_address_that_nobody_answers_is_an_error(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["caption", "http://127.0.0.1:9/x.jpg", "--model", str(model_folder)]) == 1
    printed = capsys.readouterr().err.splitlines()
    assert "'http://127.0.0.1:9/x.jpg' cannot be opened as an image" in printed[-1]
    assert len(printed) == 1


def test_a_file_that_is_no_index_is_an_error(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.index").write_text("a note")
    assert cli.main(["retrieve", "a cat", "--index", str(tmp_path / "no.index"), "--model", str(model_folder)]) == 1
    assert capsys.readouterr().err.startswith("upv2 retrieve: ")


def test_interruption_has_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers_upv2.cli.make.make_world", interrupt)
    assert cli.main(["make-world", "--out", "unused"]) == 130


def test_make_world_leaves_a_folder_with_content_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("somebody's work")
    assert cli.main(["make-world", "--out", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    assert (tmp_path / "kept.txt").read_text() == "somebody's work"


# Asking a model


def test_detection_prints_json_and_draws(run: Callable[..., str], photos: list[Path], tmp_path: Path) -> None:
    arguments = ("--task", "detection", "--labels", "cat, sofa", "--threshold", 0, "--out", tmp_path, "--json")
    results = json.loads(run("predict", *photos[:2], *arguments))
    assert [result["image"] for result in results] == [str(photo) for photo in photos[:2]]
    for result in results:
        assert {answer["label"] for answer in result["answers"]} == {"cat", "sofa"}
        assert all(0 <= answer["box"]["xmin"] <= answer["box"]["xmax"] <= 120 for answer in result["answers"])
        with Image.open(result["picture"]) as drawn, Image.open(result["image"]) as photo:
            assert np.asarray(drawn).tobytes() != np.asarray(photo.convert("RGB").resize(drawn.size)).tobytes()


def test_scores_of_asked_labels_do_not_depend_on_the_others(run: Callable[..., str], photos: list[Path]) -> None:
    arguments = ("--task", "detection", "--threshold", 0, "--out", photos[0].parent / "drawn", "--json")

    def best(labels: str) -> float:
        answers = json.loads(run("predict", photos[0], *arguments, "--labels", labels))[0]["answers"]
        return max(answer["score"] for answer in answers if answer["label"] == "hat")

    assert best("hat") == pytest.approx(best("hat, red circle, blue square"), abs=1e-5)


def test_table_has_a_row_for_each_answer(run: Callable[..., str], photos: list[Path]) -> None:
    lines = run("classify", photos[0], "--top-k", 3).splitlines()
    assert lines[0].split() == ["label", "score"]
    assert len(lines) == 4
    scores = [float(line.split()[-1]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True)
    assert {" ".join(line.split()[:-1]) for line in lines[1:]} < set(CLASS_NAMES)


def test_segmentation_masks_are_run_lengths_of_the_image(run: Callable[..., str], photos: list[Path]) -> None:
    out = photos[0].parent / "drawn"
    result = json.loads(run("segment", photos[0], "--threshold", 0, "--out", out, "--json"))[0]
    assert result["answers"]
    for answer in result["answers"]:
        assert decode_segmentation(answer["mask"], (80, 120)).any()
    rows = run("segment", photos[0], "--threshold", 0, "--out", out).splitlines()
    assert rows[0].split() == ["label", "score", "pixels"]
    pixels = [int(decode_segmentation(answer["mask"], (80, 120)).sum()) for answer in result["answers"]]
    assert [int(row.split()[-1]) for row in rows[1:-1]] == pixels
    assert rows[-1] == f"picture: {out / 'photo0_segmentation.png'}"


def test_nothing_above_the_threshold_is_said(run: Callable[..., str], photos: list[Path], tmp_path: Path) -> None:
    printed = run("segment", photos[0], "--threshold", 1, "--out", tmp_path)
    assert "nothing with a score above the threshold" in printed


def test_caption_begins_with_the_prompt(run: Callable[..., str], photos: list[Path]) -> None:
    result = json.loads(run("caption", photos[0], "--prompt", "two small", *("--max-new-tokens", 5), "--json"))[0]
    assert result["answers"][0]["generated_text"].startswith("two small")
    assert result["picture"] is None


def test_retrieval_finds_an_image_by_itself_and_reuses_its_index(
    run: Callable[..., str], photos: list[Path], tmp_path: Path
) -> None:
    index = tmp_path / "photos.safetensors"
    found = json.loads(run("retrieve", photos[1], "--images", photos[0].parent, "--index", index, "--json"))
    assert found[0]["image"] == str(photos[1])
    assert found[0]["score"] == pytest.approx(1, abs=1e-4)
    shutil.rmtree(photos[0].parent)  # only the index is needed now
    rows = run("retrieve", "a red circle", "--index", index, "--top-k", 2).splitlines()
    assert rows[0].split() == ["score", "image"]
    assert len(rows) == 3


def test_retrieval_tells_what_it_left_out(
    model_folder: Path,
    photos: list[Path],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    photos[1].write_bytes(photos[1].read_bytes()[:-3000])
    arguments = ["retrieve", "a hat", "--images", str(photos[0].parent), "--model", str(model_folder), "--json"]
    assert cli.main(arguments) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert f"Left out of the index: The image '{photos[1]}' cannot be decoded" in caplog.text


# Describing, measuring, handing on


def test_info_counts_the_parameters_of_the_folder(
    model_folder: Path, session_model: UniPerceiverV2ForMultiTask, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(model_folder), "--image-size", "64", "64", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["counts"]["training"] == sum(p.numel() for p in session_model.parameters())
    assert cli.main(["info", str(model_folder), "--image-size", "64", "64"]) == 0
    assert "text_encoder" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["info"], ["classify", "a.jpg", "--model"]])
def test_folders_without_a_model_of_ours_are_refused(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*verb, str(tmp_path)]) == 1
    assert "must hold a config.json of type 'uniperceiver_v2', it has none" in capsys.readouterr().err
    BertConfig().save_pretrained(tmp_path)
    assert cli.main([*verb, str(tmp_path)]) == 1
    assert "it has a model of type 'bert'" in capsys.readouterr().err


def test_push_prints_the_commit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def push_to_hub(*arguments: Any, **options: Any) -> str:
        calls.append((arguments, options))
        return "https://hub/me/model/commit/1"

    monkeypatch.setattr("transformers_upv2.hub.push_to_hub", push_to_hub)
    assert cli.main(["push", "folder", "me/model", "--private", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"commit": "https://hub/me/model/commit/1"}
    assert calls == [((Path("folder"), "me/model"), {"private": True})]


def test_export_takes_the_size_of_the_processor(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_onnx(model: torch.nn.Module, folder: Path, height: int, width: int, tasks: Any) -> list[Path]:
        assert isinstance(model, transformers_upv2.UniPerceiverV2ForMultiTask)
        assert tasks == ["detection"]
        return [folder / f"{height}x{width}.onnx"]

    monkeypatch.setattr("transformers_upv2.export.export_onnx", export_onnx)
    assert run("export", "--out", tmp_path, "--tasks", "detection") == f"{tmp_path}/{IMAGE_SIZE}x{IMAGE_SIZE}.onnx\n"


def test_train_runs_the_recipe_with_its_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_upv2.recipes import run as recipe

    calls = []
    monkeypatch.setattr(recipe, "main", lambda arguments: calls.append(vars(recipe.parse_arguments(arguments))))
    changes = ["--set", "arguments.max_steps=2", "seed=1", "--tasks", "detection, retrieval", "--dry-run"]
    assert cli.main(["train", "--config", "base", "--data", "data", "--out", "out", *changes]) == 0
    assert calls[0]["config"] == "base"
    assert (calls[0]["data"], calls[0]["out"]) == (Path("data"), Path("out"))
    assert calls[0]["set"] == ["arguments.max_steps=2", "seed=1"]
    assert calls[0]["tasks"] == ["detection", "retrieval"]
    assert calls[0]["dry_run"]


def test_serve_listens_on_this_machine_alone(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    calls = []
    monkeypatch.setattr("transformers_upv2.app.serve", lambda *arguments: calls.append(arguments))
    assert cli.main(["serve", str(model_folder), "--port", "8000"]) == 0
    assert calls == [(str(model_folder), None, None, "127.0.0.1", 8000)]


@pytest.mark.slow
@pytest.mark.parametrize("command", [[Path(sys.executable).with_name("upv2")], [sys.executable, "-m", cli.__name__]])
def test_installed_command_runs(command: list[Any]) -> None:
    result = subprocess.run([*command, "make-world", "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "--seed" in result.stdout
