"""The benchmark runs, times its cases in turn and prints every ratio."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(SCRIPTS))
    specification = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmark.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["benchmark"] = module  # its dataclass looks itself up
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPTS))
    del sys.modules["benchmark"]


def test_cases_are_timed_in_turn_and_medians_are_taken(benchmark, monkeypatch):
    linear, states, order, clock = nn.Linear(3, 5), torch.randn(2, 3), [], [0.0]
    durations = {"a": iter([1.0, 1.0, 5.0, 2.0, 9.0]), "b": iter([1.0, 1.0, 3.0, 4.0, 8.0])}
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def run(name):
        def computation():
            order.append(name)
            linear(states)
            clock[0] += next(durations[name])

        return computation

    cases = [benchmark.Case(name, run(name), {"linear": linear}) for name in ("a", "b")]
    times, operations = benchmark.measure(cases, repeats=3)
    assert order == list("aabb" + "ab" + "ba" + "ab")  # warm-up and count, then forwards and backwards
    assert {name: row["total"] for name, row in times.items()} == {"a": 5.0, "b": 4.0}
    assert times["a"]["rest"] == 5.0
    assert operations["a"] == {"linear": 30, "rest": 0, "total": 30}
    assert not linear._forward_hooks


def test_a_preset_without_a_swin_is_an_error(benchmark):
    with pytest.raises(ValueError, match=r"must have a Swin backbone.*got 'tiny' with 'timm_backbone'"):
        benchmark.make_config("tiny", small=False)


@pytest.mark.slow
def test_both_sections_run(tmp_path):
    command = [sys.executable, "scripts/benchmark.py", "--small", "--image-size", "64", "--repeats", "1"]
    result = subprocess.run(
        [*command, "--json", str(tmp_path / "numbers.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["detection"]["ratios"]) == 4
    assert len(numbers["encoding"]["ratios"]) == 7
    for section in numbers.values():
        assert all(ratio > 0 for ratio in section["ratios"].values())
        assert all(name in result.stdout for name in (*section["ratios"], *section["seconds"]))
    operations = numbers["detection"]["multiply_adds"]
    # all models see with the same backbone
    assert len({row["backbone"] for row in operations.values() if "backbone" in row}) == 1
    assert operations["backbone alone, float32"]["total"] == operations["Mask2Former, float32"]["backbone"]
    assert (
        operations["ours, 5 levels, float32"]["pixel_decoder"] > operations["ours, 4 levels, float32"]["pixel_decoder"]
    )
