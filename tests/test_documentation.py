"""README and the pages: every link leads somewhere, every block runs, every name exists."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from conftest import needs_kanji

from agents.cli import main
from agents.cli.command import parse
from agents.fixed import FIXED_POLICIES
from agents.registry import ALGORITHMS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
TINY = {"train": "--merges 200", "generate": "--n 4 --roots 60 --real 8 --components 1"}
"""Budgets that the README's commands are run with here."""

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT)).replace("/", "-")
)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[list[str]]:
    """The lines of the page's shell blocks, without comments."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors(page: Path) -> set[str]:
    """The headings as links name them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@every_page
def test_links_and_images_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}"


def test_the_readme_links_to_every_page():
    linked = {(ROOT / target).resolve() for target in LINK.findall(README.read_text())}
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= linked


def test_the_readme_is_an_introduction():
    text = README.read_text()
    assert len(text.splitlines()) <= 180
    assert len(text.split()) <= 1500
    assert not re.search(r"\b(?=[a-f]*\d)[0-9a-f]{7,40}\b", text), "a commit"


PYTHON = [
    pytest.param(code, id=f"{page.stem}-{number}", marks=needs_kanji if "HTM-Kanji" in code else ())
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON)
def test_python_blocks_run_by_themselves(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(re.sub(r"seconds=\d+", "merges=100", code), {})


@every_page
def test_commands_can_be_meant(page):
    for words in commands(page):
        if words[0] == "htm":
            parse(words[1:])  # exits for an option that there is not
        elif words[0] == "torchrun":
            parse(words[words.index("agents.cli") + 1 :])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert words[:3] == ["pip", "install", *words[2:3]], words
            extras = re.findall(r"\[(\w+)\]", words[2])
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras) <= set(project["optional-dependencies"])


@pytest.mark.slow
def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = [words[1:] for words in commands(README) if words[0] == "htm"]
    assert [words[0] for words in made] == ["train", "evaluate", "view", "generate"]
    for words in made:
        line = re.sub(r"--seconds \d+", "", shlex.join(words))
        assert main(shlex.split(f"{line} {TINY.get(words[0], '')}")) == 0, capsys.readouterr().err
    assert (tmp_path / "runs/crosses/view.html").exists()
    assert (tmp_path / "runs/crosses/generated/samples.npz").exists()


@every_page
def test_named_modules_and_scripts_exist(page):
    text = page.read_text()
    for module in re.findall(r"python -m (benchmarks\.[a-z_]+|htm_env[\w.]*)", text):
        assert importlib.util.find_spec(module), module
    if page.name == "CHANGELOG.md":
        return
    for path in re.findall(r"`((?:htm_env|agents|replay|tests|examples)/[\w/]+\.py)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_the_pages_name_every_algorithm():
    named = set(re.findall(r"`(\w+)`", (ROOT / "docs/algorithms.md").read_text()))
    assert set(ALGORITHMS) - set(FIXED_POLICIES) - {"retrained"} <= named
    table = (ROOT / "docs/fixed_orders.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| [^-]", table, re.MULTILINE)) == set(FIXED_POLICIES)
