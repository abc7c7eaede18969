"""Finds transformers' own common tests, which its wheel does not ship: ``make test-transformers`` fetches them."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER_VARIABLE = "TRANSFORMERS_TESTS"
PACKAGE = "tests"  # the name by which they import each other
# Left out of the sdist: without the whole repository the tests of these two are not there to be run.
NOT_IN_SDIST = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
# A script beside transformers' tests that knows where its CI keeps pictures; no test that we run needs one.
CI_FILES = "fetch_hub_objects_for_ci"


def load(name: str) -> ModuleType:
    """Import a module of transformers' ``tests`` folder, or skip the module that asks for it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        pytest.skip(
            f"transformers' tests are not in its wheel: run `make test-transformers`, or set {FOLDER_VARIABLE}",
            allow_module_level=True,
        )
    if PACKAGE not in sys.modules:
        sys.modules[PACKAGE] = _package(PACKAGE, folder)
        for module, mixin in NOT_IN_SDIST.items():
            if not Path(folder, *module.split(".")).with_suffix(".py").is_file():
                _stand_in(module, mixin)
        sys.modules[CI_FILES] = ModuleType(CI_FILES)
        sys.modules[CI_FILES].url_to_local_path = lambda url: url
    return importlib.import_module(f"{PACKAGE}.{name}")


def _package(name: str, folder: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [folder]
    return package


def _stand_in(name: str, mixin: str) -> None:
    parent, _, _ = name.partition(".")
    sys.modules[f"{PACKAGE}.{parent}"] = _package(f"{PACKAGE}.{parent}", "")
    module = ModuleType(f"{PACKAGE}.{name}")
    setattr(module, mixin, type(mixin, (), {}))
    sys.modules[module.__name__] = module
