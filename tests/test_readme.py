"""Every Python block of the README and of the cards runs as written, from the repository's root; every command parses.

Names of pretrained parts lead to a Hub on this machine that holds small ones of the same kinds, since a test downloads
nothing; a part brings its own sizes, so the code is the reader's, word for word.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer, SwinConfig, SwinModel

from hub_server import Repository, running_hub
from transformers_upv2 import cli
from transformers_upv2.model.presets import PRESETS, PRETRAINED_PARTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "model_cards/uniperceiver-v2-tiny/README.md"]
PRESET_CARDS = {name: f"model_cards/uniperceiver-v2-{name}.md" for name in PRESETS if name != "tiny"}
COMMAND_PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "model_cards/**/*.md", "src/**/*.md")
    for path in ROOT.glob(pattern)
)


def python_blocks(page: str) -> str:
    """The page's blocks one after the other, as a reader would type them."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL))


def run_blocks(page: str, **environment: str) -> str:
    """Run a page's blocks in a fresh process; returns what they print."""
    code = python_blocks(page)
    assert "transformers_upv2" in code
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "ERROR" not in result.stderr
    return result.stdout


def save_swin(folder: Path) -> None:
    config = SwinConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4, image_size=64)
    SwinModel(config).save_pretrained(folder)


def save_resnet(folder: Path) -> None:
    model = timm.create_model("resnet50")
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "resnet50"}')


def save_text_encoder(folder: Path, tokenizer: RobertaTokenizer) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, type_vocab_size=1, **sizes)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


BACKBONES: dict[str, Callable[[Path], None]] = {
    "resnet50": save_resnet,
    "swin-base": save_swin,
    "swin-large": save_swin,
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run_and_print_what_the_page_shows(page: str) -> None:
    """Words are the same, numbers too but for the last digit."""
    shown = "".join(re.findall(r"```text\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL))
    printed = run_blocks(page)
    assert printed.strip()
    if not shown:
        return
    number = r"\d+(?:\.\d+)?"
    assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
    for here, there in zip(re.findall(number, printed), re.findall(number, shown), strict=True):
        tolerance = 0.011 if "." in there else 1
        assert abs(float(here) - float(there)) <= tolerance, (here, there)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESET_CARDS)
def test_code_blocks_of_preset_cards_run(preset: str, roberta_tokenizer: RobertaTokenizer, tmp_path: Path) -> None:
    folders = {part: tmp_path / part for part in PRETRAINED_PARTS[preset]}
    for folder in folders.values():
        folder.mkdir()
    BACKBONES[preset](folders["backbone"])
    save_text_encoder(folders["text_encoder"], roberta_tokenizer)
    with running_hub() as hub:
        for part, name in PRETRAINED_PARTS[preset].items():
            hub.repositories[name] = Repository()
            hub.repositories[name].commit({file.name: file.read_bytes() for file in folders[part].iterdir()})
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        printed = run_blocks(PRESET_CARDS[preset], HF_HUB_DISABLE_XET="1", **environment)
        assert all(any(name in request for request in hub.requests) for name in PRETRAINED_PARTS[preset].values())
    assert "unified_decoder" in printed


@pytest.mark.parametrize("preset", PRESET_CARDS)
def test_preset_cards_say_that_there_are_no_weights(preset: str) -> None:
    card = (ROOT / PRESET_CARDS[preset]).read_text()
    assert "**There are no weights.**" in card
    assert all(f'"{name}"' in card for name in PRETRAINED_PARTS[preset].values())


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PRESET_CARDS.values()])
def test_named_files_exist(page: str) -> None:
    for path in re.findall(r"(?:scripts|model_cards|tests)/[\w./-]+\w", (ROOT / page).read_text()):
        assert (ROOT / path).exists(), f"{page} names {path}, which does not exist"


def commands_of(text: str) -> list[list[str]]:
    """The `upv2` commands of a page without the program's name: lines of its blocks, and quotes in its sentences."""
    fence = r"^```.*?^```"
    blocks = "\n".join(re.findall(fence, text, flags=re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    sentences = re.sub(fence, "", text, flags=re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^\s*(upv2 .*)$", blocks, flags=re.MULTILINE)
    quotes = [quote.replace("\n", " ") for quote in re.findall(r"`(upv2\s[^`]+)`", sentences)]
    return [shlex.split(line, comments=True)[1:] for line in [*lines, *quotes]]


@pytest.mark.parametrize("page", COMMAND_PAGES)
def test_commands_parse(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A verb alone is a name, not a command; `VERB` stands for any."""
    refused = []
    for command in commands_of((ROOT / page).read_text()):
        is_name = len(command) == 1 or command[0] == "VERB"
        arguments = [command[0].replace("VERB", "info"), "--help"] if is_name else command
        try:
            cli.build_parser().parse_args(arguments)
        except SystemExit as stop:
            refused += [shlex.join(command)] if stop.code else []
    assert not refused, capsys.readouterr().err


def test_commands_are_found_in_blocks_and_sentences() -> None:
    page = "Say `upv2\npush a b/c`.\n```bash\nupv2 info tiny   # what\n  upv2 caption \\\n  a.jpg\nls\n```\n`upv2 x`"
    assert commands_of(page) == [["info", "tiny"], ["caption", "a.jpg"], ["push", "a", "b/c"], ["x"]]
    readme = commands_of((ROOT / "README.md").read_text())
    assert {"predict", "evaluate", "export", "serve", "push", "study"} <= {command[0] for command in readme}
    assert any(commands_of((ROOT / page).read_text()) for page in COMMAND_PAGES if page.startswith("docs/"))
