"""Every Python block of the README and of the shipped card runs as written, from the repository's root."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "model_cards/uniperceiver-v2-tiny/README.md"]


def python_blocks(page: str) -> str:
    """The page's blocks one after the other, as a reader would type them."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str) -> None:
    code = python_blocks(page)
    assert "transformers_upv2" in code
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ERROR" not in result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_named_files_exist(page: str) -> None:
    for path in re.findall(r"(?:scripts|model_cards|tests)/[\w./-]+\w", (ROOT / page).read_text()):
        assert (ROOT / path).exists(), f"{page} names {path}, which does not exist"
