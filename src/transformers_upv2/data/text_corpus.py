"""Read text files with one document a line, for language modeling."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from transformers_upv2.data.examples import DataError, TextExample


class TextCorpus(Dataset[TextExample]):
    """The lines of one or more UTF-8 text files.

    Only the position of each line is held in memory, so a corpus may be larger than memory.

    Attributes:
        num_skipped: How many blank lines were left out.
    """

    def __init__(self, files: str | Path | Sequence[str | Path]):
        """Find the lines.

        Args:
            files: One text file or several.

        Raises:
            DataError: If a file is missing or no line has text.
        """
        paths = [files] if isinstance(files, str | Path) else files
        self.files = [Path(path) for path in paths]
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
        with self.files[number].open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return {"text": line.decode("utf-8").strip()}
        except UnicodeDecodeError as error:
            raise DataError(f"{self.files[number]}: the line at byte {offset} must be UTF-8, got {error}.") from error

    def _find_lines(self, path: Path) -> np.ndarray:
        """Return where each line with text starts, ``(lines,)`` in bytes."""
        if not path.is_file():
            raise DataError(f"{path}: the text file must exist, but there is none.")
        starts, position = [], 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    starts.append(position)
                else:
                    self.num_skipped += 1
                position += len(line)
        return np.array(starts, dtype=np.int64)
