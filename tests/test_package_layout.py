"""Rules of the tree that keep it readable, and `model/` fit for an upload to the Hub."""

import ast
import graphlib
import re

import pytest
from transformers.dynamic_module_utils import get_relative_imports

from source_files import PACKAGE, ROOT, SOURCES, imports_of, module_name, top_level_imports

MODEL_FILES = sorted((PACKAGE / "model").glob("*.py"))
MOST_LINES = 400
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|work|tmp|Users|mnt)/|\b[A-Z]:\\\\?\w")
TEXT_SUFFIXES = {".py", ".cfg", ".toml", ".md", ".txt", ".yml", ".yaml", ".json", ".sh", ""}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def test_model_is_one_flat_folder():
    assert len(MODEL_FILES) > 30
    assert not [path for path in (PACKAGE / "model").iterdir() if path.is_dir() and path.name != "__pycache__"]


@pytest.mark.parametrize("path", MODEL_FILES, ids=names(MODEL_FILES))
def test_model_imports_only_its_neighbours_by_name(path):
    """An upload copies the files that this one form of import names; all others break it."""
    files = set()
    for node in imports_of(ast.parse(path.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        assert not any(module.split(".")[0] == PACKAGE.name for module in modules), f"line {node.lineno}: absolute"
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: leaves the folder"
            assert node.module, f"line {node.lineno}: `from . import name` is not copied"
            assert (path.parent / f"{node.module}.py").is_file(), f"line {node.lineno}: no such file"
            files.add(node.module)
    # the scanner reads lines, not syntax: a docstring must not look like an import to it
    assert set(get_relative_imports(path)) == files


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_source_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_no_file_names_a_folder_of_one_machine():
    folders = ("src", "tests", "scripts", ".ci", "model_cards")
    files = [*ROOT.iterdir(), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    texts = [file for file in files if file.is_file() and file.suffix in TEXT_SUFFIXES and "egg-info" not in str(file)]
    assert len(texts) > len(SOURCES)
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in texts
        for number, line in enumerate(file.read_text(errors="ignore").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found


def test_modules_import_each_other_without_cycles():
    modules = {module_name(path) for path in SOURCES}
    graph = {}
    for path in SOURCES:
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in top_level_imports(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                base = f"{package}.{node.module}" if node.level else node.module
                imported = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            graph[name] |= modules.intersection(imported)
    assert sum(map(len, graph.values())) > len(modules)
    assert list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle
