"""What the guide for own images says works: the layouts of tools, and the card."""

import json
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from source_files import ROOT
from transformers_upv2.evaluation.results import model_index
from transformers_upv2.recipes.building import open_evaluation_data, open_training_data
from transformers_upv2.recipes.recipe import read_recipe

GUIDE = (ROOT / "docs" / "guide_own_images.md").read_text(encoding="utf-8")
LAYOUTS = {
    "Roboflow": ("train/_annotations.coco.json", "valid/_annotations.coco.json", "", ("train", "valid")),
    "Label Studio": ("train.json", "val.json", "images/", (".", ".")),
    "CVAT": ("annotations/instances_train.json", "annotations/instances_val.json", "", ("images", "images")),
}
"""Tool -> the two files, how names begin, and the folders that names start from."""


@pytest.mark.parametrize("tool", LAYOUTS)
def test_exports_of_tools_are_read_with_the_changes_of_the_guide(tool, tmp_path):
    *files, prefix, folders = LAYOUTS[tool]
    for part, file, folder in zip(("a", "b"), files, folders):
        image = {"id": 0, "file_name": f"{prefix}{part}.jpg", "width": 40, "height": 30}
        box = {"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": []}
        categories = [{"id": 0, "name": "things", "supercategory": "none"}, {"id": 1, "name": "screw"}]
        content = {"images": [image], "annotations": [box], "categories": categories}
        for path in (tmp_path / file, tmp_path / folder / image["file_name"]):
            path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(json.dumps(content))
        Image.new("RGB", (40, 30)).save(tmp_path / folder / image["file_name"])
    (row,) = re.findall(rf"^\| {tool}, .*$", GUIDE, flags=re.MULTILINE)
    changes = shlex.split(row.strip("| ").split("|")[-1].strip(" `"))
    recipe = read_recipe("finetune_coco_json", changes)
    training = open_training_data(recipe, tmp_path)["detection"]["own"]
    evaluation = open_evaluation_data(recipe, tmp_path)["detection"]
    assert [len(training[0]["annotations"]), len(evaluation[0]["annotations"])] == [1, 1]
    assert [file.name for reader in (training, evaluation) for file in reader.image_files()] == ["a.jpg", "b.jpg"]


def test_the_code_of_the_guide_puts_other_numbers_into_the_card(tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine" / "val").mkdir(parents=True)
    index = model_index("mine", {"detection/box_ap": 0.25}, {"detection": ("mine", "my photographs")})
    (tmp_path / "runs" / "mine" / "val" / "model_index.yaml").write_text(yaml.safe_dump({"model-index": index}))
    (tmp_path / "runs" / "mine" / "README.md").write_text("---\nlicense: mit\n---\n\n# My detector\n")
    monkeypatch.chdir(tmp_path)
    (code,) = (each for each in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "ModelCard" in each)
    exec(code, {})
    card = ModelCard.load("runs/mine/README.md")
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == 0.25
    assert "# My detector" in card.text
