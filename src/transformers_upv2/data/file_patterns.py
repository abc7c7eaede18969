"""Which files a pattern names, as shells and webdataset write them."""

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from transformers_upv2.data.examples import DataError

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_files(files: str | Path | Sequence[str | Path], what: str) -> list[str]:
    """Return the files that paths, addresses and patterns name, each once.

    Args:
        files: One or several. ``*``, ``?`` and ``[0-9]`` stand for parts of a name, ``**`` for any folders;
            ``{000..123}`` and ``{train,val}`` for each of these, in addresses as well.
        what: What they are, for the message.

    Raises:
        DataError: If a path or pattern names no file.
    """
    listed = [files] if isinstance(files, str | Path) else files
    return list(dict.fromkeys(file for each in listed for file in _expand(str(each), what)))


def _expand(pattern: str, what: str) -> list[str]:
    if Path(pattern).is_file():
        return [pattern]
    return [file for name in expand_braces(pattern) for file in _find(name, what)]


def expand_braces(pattern: str) -> list[str]:
    """Return the names that ``{000..123}`` and ``{train,val}`` in a pattern stand for, in their order."""
    for braces in BRACES.finditer(pattern):
        limits = RANGE.fullmatch(braces[1])
        parts = _count(*limits.groups()) if limits else braces[1].split(",")
        if len(parts) > 1 or limits:
            names = (f"{pattern[: braces.start()]}{part}{pattern[braces.end() :]}" for part in parts)
            return [each for name in names for each in expand_braces(name)]
    return [pattern]


def _count(first: str, last: str) -> list[str]:
    step = 1 if int(first) <= int(last) else -1
    width = max(len(each) if each.startswith("0") else 1 for each in (first, last))
    return [f"{number:0{width}}" for number in range(int(first), int(last) + step, step)]


def _find(name: str, what: str) -> list[str]:
    if "://" in name and "*" in name:
        raise DataError(
            f"{name}: an address must name one {what}, or several by braces such as {{000..123}}, got `*`."
        )
    if "://" in name or Path(name).is_file():
        return [name]
    found = sorted(path for path in glob(name, recursive=True) if Path(path).is_file())
    if not found:
        raise DataError(f"{name}: the {what} must exist, but there is none. Give a file, an address or a pattern.")
    return found
