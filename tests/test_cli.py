"""The command line: verbs, help, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from transformers_upv2 import cli


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "make-world" in capsys.readouterr().out


def test_verb_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
    assert "VERB" in capsys.readouterr().err


def test_user_errors_give_exit_code_one_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("somebody's work")
    assert cli.main(["make-world", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("upv2 make-world: ")
    assert str(tmp_path) in message
    assert (tmp_path / "kept.txt").read_text() == "somebody's work"


def test_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("upv2")
    result = subprocess.run([command, "make-world", "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert "--seed" in result.stdout
