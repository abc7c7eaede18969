"""The distribution: sdist and wheel hold what a user needs, and work where nothing of the repository is at hand."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hub_server import running_hub
from source_files import PACKAGE, ROOT, SOURCES

SHIPPED = ROOT / "model_cards" / "uniperceiver-v2-tiny"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"

USE = """
import sys
from pathlib import Path
import transformers_upv2
from transformers_upv2.cli import main
from transformers_upv2.data.demo_world import WorldSizes, make_world
from transformers_upv2.model_card import TEMPLATE
import importlib.resources

folder = sys.argv[1]
assert Path(transformers_upv2.__file__).is_relative_to(sys.prefix), transformers_upv2.__file__
assert importlib.resources.files("transformers_upv2").joinpath(TEMPLATE).is_file()
make_world("world", sizes=WorldSizes((3, 1, 1), (12, 12, 12), (5, 5, 5)), progress=False)
scene = next(Path("world/scenes/train").glob("*.jpg"))
sys.exit(
    main(["predict", str(scene), "--task", "detection", "--labels", "star, two", "--model", folder])
    or main(["push", folder, "me/tiny"])
)
"""


def build(source: Path, what: str, out: Path) -> Path:
    """Build as pip does, with the setuptools that is installed."""
    run = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return out / run.stdout.splitlines()[-1]


BESIDE_THE_CODE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: Any) -> tuple[Path, Path]:
    """The sdist of the repository, and the wheel of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in", *BESIDE_THE_CODE):
        shutil.copy(ROOT / name, source)
    for name in ("docs", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    sdist = build(source, "build_sdist", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, build(folder / sdist.name.removesuffix(".tar.gz"), "build_wheel", folder)


@pytest.fixture(scope="module")
def clean_python(distributions: tuple[Path, Path], tmp_path_factory: Any) -> Path:
    """Python of an environment that has the dependencies and, of ours, the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    # a path in a .pth file brings packages, but not what an editable install put into .pth files there
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*install, str(distributions[1])], check=True)
    return python


@pytest.mark.slow
def test_sdist_holds_the_documents_and_no_half_of_the_tests(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*BESIDE_THE_CODE, "docs/guide_own_images.md"} <= names
    assert not {name for name in names if name.startswith("tests")}


@pytest.mark.slow
def test_wheel_holds_the_package_and_its_data(distributions: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = set(wheel.namelist())
    expected = {str(path.relative_to(PACKAGE.parent)) for path in SOURCES}
    assert expected <= names
    data = {"transformers_upv2/py.typed", "transformers_upv2/model_card_template.md"}
    assert data <= names
    others = {name for name in names - expected - data if ".dist-info/" not in name}
    assert not {name for name in others if name.endswith(".py") or not name.startswith("transformers_upv2/")}
    for license_file in ("LICENSE", "NOTICE"):
        assert any(name.endswith(f"licenses/{license_file}") for name in names)


@pytest.mark.slow
def test_installed_wheel_works_on_its_own(clean_python: Path, tmp_path: Path) -> None:
    with running_hub() as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))},
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_of_a_test",
            "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_XET": "1",
        }
        info = [clean_python.with_name("upv2"), "info", "tiny", "--image-size", "128", "128"]
        for command in (info, [clean_python, "-c", USE, SHIPPED]):
            run = subprocess.run(
                [str(part) for part in command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode == 0, run.stderr
        assert "model.safetensors" in hub.files("me/tiny")
    assert list(tmp_path.glob("*_detection.png"))


def test_every_requirement_has_a_lower_bound() -> None:
    pins = runpy.run_path(str(ROOT / ".ci" / "lowest_versions.py"))["lowest_versions"]()
    assert any(pin.startswith("transformers==5.") for pin in pins)
    assert len(pins) > 10
