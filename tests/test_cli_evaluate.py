"""`upv2 evaluate`: data in its usual formats, the field's protocols, and the three forms of the numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import metadata_save
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from transformers import RobertaTokenizer

from tiny_models import IMAGE_SIZE, scatter_weights, tiny_config
from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2ImageProcessor, UniPerceiverV2Processor, cli
from transformers_upv2.data.karpathy_captions import KarpathyCaptions
from transformers_upv2.evaluation.results import TABLE_6
from transformers_upv2.evaluation.retrieval import PROTOCOLS, RetrievalEvaluator

SHIPPED = "model_cards/uniperceiver-v2-tiny"
ROOT = Path(__file__).resolve().parent.parent
NUM_TEST_IMAGES = 6
COLORS = ["red", "blue", "green", "white", "black", "pink", "gray"]


@pytest.fixture(scope="module")
def model_folder(roberta_tokenizer: RobertaTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: a tiny saved model whose captions may have 60 tokens."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model_folder")
    config = tiny_config(text_config={"vocab_size": len(roberta_tokenizer), "max_position_embeddings": 70})
    scatter_weights(UniPerceiverV2ForMultiTask(config)).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = UniPerceiverV2ImageProcessor(size={"longest_edge": IMAGE_SIZE}, pad_size=size)
    UniPerceiverV2Processor(image_processor, roberta_tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def run(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Evaluate the tiny model; returns what is printed."""

    def evaluate(*arguments: Any) -> str:
        code = cli.main(["evaluate", str(model_folder), *map(str, arguments)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return evaluate


@pytest.fixture
def karpathy(tmp_path: Path) -> dict[str, Path]:
    """COCO's split file and Flickr30k's, six test images with seven captions each, beside training images."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(NUM_TEST_IMAGES + 2):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        sentences = [{"raw": f"a {color} thing {number}."} for color in COLORS]
        split = "test" if number < NUM_TEST_IMAGES else "train"
        images.append({"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences})
    files = {name: tmp_path / f"dataset_{name}.json" for name in ("coco", "flickr30k")}
    for name, file in files.items():
        coco = [{**image, "cocoid": image["imgid"] + 100} for image in images]
        file.write_text(json.dumps({"images": coco if name == "coco" else images, "dataset": name}))
    return files


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """COCO instances with a box and no mask."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "width": 120, "height": 80}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 5, "name": "hat"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path / "instances.json"


@pytest.fixture
def synsets(tmp_path: Path) -> Path:
    """An ImageNet folder: two classes named by WordNet ids, with the same image."""
    for name in ("n01440764", "n01443537"):
        (tmp_path / "imagenet" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), "red").save(tmp_path / "imagenet" / "val" / name / "1.png")
    (tmp_path / "names.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish\n")
    return tmp_path / "imagenet" / "val"


def test_model_is_asked_for_the_names_of_the_classes_not_of_the_folders(
    run: Callable[..., str], synsets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    set_labels = UniPerceiverV2ForMultiTask.set_labels

    def spy(model: Any, names: list[str], *arguments: Any, **options: Any) -> Any:
        asked.append(names)
        return set_labels(model, names, *arguments, **options)

    monkeypatch.setattr(UniPerceiverV2ForMultiTask, "set_labels", spy)
    arguments = ("--classification", synsets, "--json")
    named = json.loads(run(*arguments, "--class-names", synsets.parents[1] / "names.txt"))
    run(*arguments)
    assert asked == [["tench, Tinca tinca", "goldfish"], ["n01440764", "n01443537"]]
    assert (named["classification/top1"], named["classification/top5"]) == (0.5, 1)  # one image in two classes


def test_data_with_some_of_the_models_classes_does_not_make_its_choice_easier(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image cannot be two classes to the same model, whichever of them the data has."""
    model = UniPerceiverV2ForMultiTask.from_pretrained(model_folder)
    processor = UniPerceiverV2Processor.from_pretrained(model_folder)
    model.set_labels(COLORS, processor.tokenizer, label_set="classification")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    top1 = []
    for name in COLORS[:2]:
        (tmp_path / name / name).mkdir(parents=True)
        Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE)).save(tmp_path / name / name / "a.png")
        arguments = ["evaluate", str(tmp_path / "model"), "--classification", str(tmp_path / name), "--json"]
        assert cli.main(arguments) == 0
        top1.append(json.loads(capsys.readouterr().out)["classification/top1"])
    assert sum(top1) <= 1


def test_boxes_alone_can_be_evaluated(run: Callable[..., str], instances: Path) -> None:
    metrics = json.loads(run("--detection", instances, instances.parent, "--json"))
    assert len(metrics) == 12
    assert 0 <= metrics["detection/box_ap"] <= 1


@pytest.mark.parametrize(("name", "suffix"), [("coco", ""), ("flickr30k", "/flickr30k")])
def test_karpathy_test_split_with_five_captions_an_image(
    name: str, suffix: str, run: Callable[..., str], karpathy: dict[str, Path], model_folder: Path
) -> None:
    file = karpathy[name]
    metrics = json.loads(run(f"--karpathy-{name}", file, file.parent, "--json"))
    dataset = KarpathyCaptions(file, file.parent, ["test"])
    assert len(dataset) == NUM_TEST_IMAGES
    model = UniPerceiverV2ForMultiTask.from_pretrained(model_folder).eval()
    processor = UniPerceiverV2Processor.from_pretrained(model_folder)
    evaluator = RetrievalEvaluator(**PROTOCOLS["flickr30k"])
    found = evaluator.predict(model, processor, dataset, progress=False)
    assert len(found.text_features) == 5 * NUM_TEST_IMAGES
    expected = {f"retrieval{suffix}/{key}": value for key, value in evaluator.score(found).items()}
    assert {key: value for key, value in metrics.items() if key in expected} == pytest.approx(expected)
    captions = {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider"}
    assert metrics.keys() - expected.keys() == {f"captioning{suffix}/{metric}" for metric in captions}


def test_splits_and_number_of_captions_are_chosen(run: Callable[..., str], karpathy: dict[str, Path]) -> None:
    arguments = ("--karpathy-coco", karpathy["coco"], karpathy["coco"].parent, "--split", "train", "--json")
    metrics = json.loads(run(*arguments, "--captions-per-image", 1))
    assert metrics["retrieval/text_to_image_r5"] == 1  # the two training images
    assert metrics["retrieval/text_to_image_r1"] in (0, 0.5, 1)  # of two queries


def test_folds_are_searched_beside_the_whole(run: Callable[..., str], karpathy: dict[str, Path]) -> None:
    arguments = ("--karpathy-coco", karpathy["coco"], karpathy["coco"].parent, "--json")
    whole, both = json.loads(run(*arguments)), json.loads(run(*arguments, "--fold-size", 2))
    folds = {key: value for key, value in both.items() if key.endswith("_folds_of_2")}
    assert both.items() - folds.items() == whole.items()
    assert len(folds) == 6
    assert folds["retrieval/text_to_image_r5_folds_of_2"] == 1 > whole["retrieval/text_to_image_r5"]


def test_one_run_fills_table_and_card(
    run: Callable[..., str], karpathy: dict[str, Path], instances: Path, synsets: Path, model_folder: Path
) -> None:
    folder = synsets.parents[1]
    (folder / "text.txt").write_text("a red circle above the square\n")
    data = ["--classification", synsets, "--text", folder / "text.txt"]
    data += ["--detection", instances, folder]
    for name, file in karpathy.items():
        data += [f"--karpathy-{name}", file, folder]
    printed = run(*data, "--out", folder / "scores")
    metrics = json.loads((folder / "scores" / "metrics.json").read_text())
    table = (folder / "scores" / "table_6.md").read_text()
    assert table in printed
    head, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[:3])
    assert head[2:] == [column.title for column in TABLE_6]
    assert row[0] == model_folder.name
    assert "imagenet/val" in table.splitlines()[-1]  # the columns are the paper's, the data need not be
    assert [title for title, cell in zip(head, row) if cell == "-"] == ["COCO mask mAP"]
    index = yaml.safe_load((folder / "scores" / "model_index.yaml").read_text())
    metadata_save(folder / "README.md", index)  # as a user puts it into a card
    name, results = model_index_to_eval_results(index["model-index"])
    assert name == model_folder.name
    assert len(results) == len([value for value in metrics.values() if value != -1])
    places = {result.dataset_name for result in results if result.task_type == "image-text-to-image"}
    assert places == {f"{folder.name}/dataset_coco (test split)", f"{folder.name}/dataset_flickr30k (test split)"}
    assert {r.dataset_name for r in results if r.metric_type == "top1"} == {"imagenet/val"}


def refuse(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail before it asks the model; returns the error."""
    assert cli.main(["evaluate", "user/model", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.count("\n") == 1
    return printed.err


def test_wrong_combinations_are_refused(
    karpathy: dict[str, Path], synsets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = ["--karpathy-coco", karpathy["coco"], karpathy["coco"].parent]
    file = karpathy["coco"].parent / "captions.json"
    image, caption = {"id": 1, "file_name": "0.png"}, {"image_id": 1, "caption": "a thing"}
    file.write_text(json.dumps({"images": [image], "annotations": [caption]}))
    names = ["--class-names", synsets.parents[1] / "names.txt"]
    assert "Pass one or more of `--world`, `--classification`" in refuse([], capsys)
    assert "one data set for ['captioning', 'retrieval']" in refuse([*coco, "--captions", file, file.parent], capsys)
    assert "`--class-names` needs `--classification FOLDER`" in refuse([*coco, *names], capsys)
    assert "at most the number of images for retrieval, got 1000 for 6" in refuse([*coco, "--fold-size", 1000], capsys)
    assert "got 2 for 0" in refuse(["--classification", synsets, "--fold-size", 2], capsys)
    assert "images in the splits ['val'], got none" in refuse([*coco, "--split", "val"], capsys)


@pytest.mark.slow
def test_shipped_checkpoint_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = ROOT / SHIPPED / "example.jpg"
    sentences = [{"raw": f"a star {number}"} for number in range(5)]
    images = [{"filename": example.name, "cocoid": 1, "split": "test", "sentences": sentences}]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    data = ["--karpathy-coco", tmp_path / "dataset_coco.json", example.parent]
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(ROOT / SHIPPED), *map(str, data), "--json", "--out", str(out)]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["retrieval/text_to_image_r1"] == 1  # the only image there is
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert (out / "table_6.md").read_text().splitlines()[2].startswith("| uniperceiver-v2-tiny | ")
