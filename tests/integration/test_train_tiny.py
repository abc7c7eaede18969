"""The training of the shipped checkpoint, all stages for a few updates each, and the demo's short way through it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_upv2.data.demo_world import WorldSizes, make_world

ROOT = Path(__file__).resolve().parents[2]
SIZES = WorldSizes(scenes=(70, 4, 4), classification=(48, 12, 12), text=(80, 8, 8))
STEPS = ["--text-steps", "2", "--detection-steps", "3", "--joint-steps", "6", "--locked-steps", "6"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("data") / "world", 0, SIZES, progress=False).root


def run(world: Path, out: Path, *options: str) -> None:
    command = [sys.executable, ROOT / "scripts" / "train_tiny.py", "--world", world, "--out", out, *STEPS, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr[-3000:]


def changed(before: Path, after: Path) -> set[str]:
    """Return the parts of the model that differ."""
    one, other = (load_file(folder / "model.safetensors") for folder in (before, after))
    different = {name for name in one if not torch.equal(one[name], other[name])}
    return {"image" if "image_encoder" in name else "text" if "text_encoder" in name else "g" for name in different}


def test_every_stage_trains_its_part_and_a_finished_run_is_not_repeated(world, tmp_path):
    run(world, tmp_path)
    finals = {stage: tmp_path / stage / "final" for stage in ("text", "detection", "joint", "locked")}
    assert changed(finals["joint"], finals["locked"]) == {"text", "g"}
    assert changed(finals["text"], finals["detection"]) == {"image", "text", "g"}
    configs = {stage: json.loads((folder / "config.json").read_text()) for stage, folder in finals.items()}
    classes = {stage: len(config["label_sets"]["detection"]["names"]) for stage, config in configs.items()}
    assert classes == {"text": 72, "detection": 72, "joint": 12, "locked": 12}
    assert configs["joint"]["proposal_config"]["num_classes"] == 1

    times = {stage: (folder / "model.safetensors").stat().st_mtime_ns for stage, folder in finals.items()}
    run(world, tmp_path)
    del times["locked"]  # saved again from its last checkpoint
    assert times == {stage: (finals[stage] / "model.safetensors").stat().st_mtime_ns for stage in times}


def test_the_short_run_keeps_the_image_side_of_the_checkpoint(world, tmp_path):
    shipped = ROOT / "model_cards" / "uniperceiver-v2-tiny"
    run(world, tmp_path, "--encoders", str(shipped))
    assert changed(shipped, tmp_path / "text" / "final") == {"text", "g"}
    assert changed(tmp_path / "text" / "final", tmp_path / "locked" / "final") == {"text", "g"}
    assert not (tmp_path / "detection").exists()
