"""The pages in docs/ say what the code says: every choice, every route."""

import re

import pytest

from paper_choices import MARK, choices
from source_files import ROOT
from transformers_upv2.model.tasks import ATTRIBUTE_BITS, ROUTES, TASKS
from transformers_upv2.studies.arms import STUDIES

CHOICES_PAGE = ROOT / "docs" / "what_the_paper_says.md"
ROUTES_PAGE = ROOT / "docs" / "routes.md"
ABLATIONS_PAGE = ROOT / "docs" / "ablations.md"


def choices_on_page() -> list[tuple[str, str]]:
    """Every "Chosen here" of the page, as (place, text)."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", CHOICES_PAGE.read_text()))
    found = (re.fullmatch(r"\*\*Chosen here\*\* \(`(.+?)`\): (.+)", paragraph) for paragraph in paragraphs)
    return [(match[1], match[2]) for match in found if match]


def test_every_choice_in_a_docstring_is_on_the_page():
    told = choices_on_page()
    missing = [f"\n\n**Chosen here** (`{place}`): {text}" for place, text in choices() if (place, text) not in told]
    assert not missing, f"add to docs/what_the_paper_says.md, with what the paper says and why:{''.join(missing)}"


def test_every_choice_on_the_page_is_in_a_docstring():
    written = list(choices())
    assert len(written) > 20
    stale = [f"\n`{place}`: {text}" for place, text in choices_on_page() if (place, text) not in written]
    assert not stale, f"no docstring says this any more (after {MARK!r}):{''.join(stale)}"
    assert len(choices_on_page()) == len(set(choices_on_page())) == len(set(written))


def test_every_part_says_what_the_paper_states_and_why():
    parts = re.split(r"\n##+ .*\n", CHOICES_PAGE.read_text())[1:]
    told = [part for part in parts if "**Chosen here**" in part]
    assert len(told) >= 8
    for part in told:
        assert re.search(r"\*\*The paper\*\* \((4\.\d|5\.\d|Table)", part), part
        assert "**Why**: " in part, part


def tables(text: str) -> list[list[list[str]]]:
    """Cells of the page's tables without code quotes, the lines under the heads left out."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [
        [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in (re.sub(r"^\|[-|]+\|\n", "", block, flags=re.MULTILINE) for block in blocks)
    ]


def test_routes_page_has_every_bit_and_every_task():
    bits, tasks = tables(ROUTES_PAGE.read_text())
    assert bits[0][1:] == list(ROUTES)
    assert [row[0] for row in bits[1:]] == list(ATTRIBUTE_BITS)
    for column, route in enumerate(ROUTES.values(), 1):
        assert [float(row[column]) for row in bits[1:]] == list(route.bits)
    assert tasks[1:] == [[task.name, ", ".join(task.input_routes), task.candidate_route] for task in TASKS.values()]


@pytest.mark.parametrize("page", [CHOICES_PAGE, ROUTES_PAGE])
def test_named_files_exist(page):
    files = re.findall(r"`((?:model|data|training|evaluation)/\w+\.py)", page.read_text())
    assert files
    for file in files:
        assert (ROOT / "src" / "transformers_upv2" / file).is_file(), file


def test_ablations_page_shows_whole_studies():
    page = ABLATIONS_PAGE.read_text()
    shown = re.findall(r"`upv2 study (\w+)`, seeds", page)
    assert {"table2", "table3", "table4", "table5"} <= set(shown)
    for name, table in zip(shown, tables(page), strict=True):
        assert [row[0] for row in table[1:]] == list(STUDIES[name].arms)
        assert f"(ablations/{name}.png)" in page
        assert (ABLATIONS_PAGE.parent / "ablations" / f"{name}.png").is_file()


@pytest.mark.slow
def test_the_example_of_the_routes_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", ROUTES_PAGE.read_text(), flags=re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(code.replace("runs/merged", str(tmp_path)), {})
    assert (tmp_path / "model.safetensors").is_file()
