"""Find what the source files say that the paper does not."""

import ast
import re
from collections.abc import Iterator

from source_files import PACKAGE, SOURCES

MARK = "Not stated in the paper, chosen here:"


def choices() -> Iterator[tuple[str, str]]:
    """Yield every marked paragraph as (place, text), with single blanks.

    A place is a file of the package, or ``file:Class.function`` if a class or function says it.
    """
    for path in SOURCES:
        file = path.relative_to(PACKAGE).as_posix()
        for name, text in strings_of(ast.parse(path.read_text())):
            for paragraph in re.split(r"\n\s*\n", text):
                words = " ".join(paragraph.split())
                if MARK in words:
                    yield f"{file}:{name}" if name else file, words.partition(MARK)[2].strip()


def strings_of(tree: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every docstring, those of attributes as well, with the name of what holds it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield name, node.value.value
        inner = getattr(node, "name", "") if isinstance(node, ast.ClassDef | ast.FunctionDef) else ""
        yield from strings_of(node, f"{name}.{inner}".strip(".") if inner else name)
