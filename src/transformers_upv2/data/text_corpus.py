"""Read text files with one document a line, for language modeling."""

import codecs
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from transformers_upv2.data.examples import DataError, TextExample
from transformers_upv2.data.file_patterns import expand_files

JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""How files of gzip, bzip2, xz and zstd begin."""
HEAD_BYTES = 1024


class TextCorpus(Dataset[TextExample]):
    """The lines of one or more UTF-8 text files.

    Only the position of each line is held in memory, so a corpus may be larger than memory.

    Attributes:
        num_skipped: How many blank lines were left out.
    """

    def __init__(self, files: str | Path | Sequence[str | Path]):
        """Find the lines.

        Args:
            files: Text files or patterns such as ``"wiki/*.txt"``, one or several. A line of a ``.jsonl`` file is a
                JSON object whose ``text`` is the document.

        Raises:
            DataError: If a file is missing or is no plain text, or no line has text.
        """
        self.files = [Path(path) for path in expand_files(files, "text file")]
        self.num_skipped = 0
        self._offsets = [self._find_lines(path) for path in self.files]
        self._ends = list(accumulate(len(offsets) for offsets in self._offsets))
        if len(self) == 0:
            raise DataError(f"`files` must hold at least one line with text, got {self.files}.")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> TextExample:
        if not 0 <= index < len(self):
            raise IndexError(f"`index` must be in [0, {len(self)}), got {index}.")
        number = bisect_right(self._ends, index)
        offsets = self._offsets[number]
        offset = int(offsets[index - self._ends[number]])  # negative: counted from the end
        path = self.files[number]
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        where = f"{path}: the line at byte {offset}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{where} must be UTF-8, got {error}.") from error
        return {"text": _text_of_json(text, where) if path.suffix in JSON_SUFFIXES else text}

    def _find_lines(self, path: Path) -> np.ndarray:
        """Return where each line with text starts, ``(lines,)`` in bytes."""
        starts, position = [], 0
        with path.open("rb") as file:
            _require_text(file.read(HEAD_BYTES), path)
            file.seek(0)
            for line in file:
                text = line if position else line.removeprefix(codecs.BOM_UTF8)
                if text.strip():
                    starts.append(position + len(line) - len(text))
                else:
                    self.num_skipped += 1
                position += len(line)
        return np.array(starts, dtype=np.int64)


def _require_text(head: bytes, path: Path) -> None:
    if head.startswith(PACKED) or b"\0" in head:
        raise DataError(
            f"{path}: the text file must be plain text in UTF-8, got one that begins with {head[:8]!r}. Unpack it, or "
            "save it as UTF-8."
        )


def _text_of_json(line: str, where: str) -> str:
    try:
        content = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} must be a JSON object, as in all of a `.jsonl` file, but got: {error}.") from error
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{where} must be a JSON object with words in `text`, got {found}.")
    return text.strip()
