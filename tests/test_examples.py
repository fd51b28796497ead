"""Every example runs, and stays short."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import traceback
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from test_crashes import in_a_child

EXAMPLES = Path(__file__).parent.parent / "examples"
ARGUMENTS = {
    "quickstart.py": ([], "return"),
    "train_agent.py": (["3"], "error"),
    "your_own_tokens.py": (["3"], "roots (4, 8)"),
    "batched_environment.py": (["30"], "episodes, mean return"),
    "own_learner.py": (["2"], "error"),
    "own_reward.py": (["2"], "paid for one merge"),
    "own_dataset.py": (["2"], "clades found"),
    "own_merger.py": (["3"], "bits a letter, learned"),
    "known_levels.py": (["3"], "clades found: 100%"),
    "hierarchical_transformer.py": (["5"], "the same text: True"),
    "glom.py": (["3"], "islands of two sets at the top level"),
    "hierarchy_reduction.py": ([], "words in each sentence: [2, 1]"),
    "scikit_learn_pipeline.py": (["300"], "digits told apart"),
    "generate_samples.py": (["3"], "are pairs of crossing segments"),
}
BY_THEMSELVES = ("quickstart.py", "own_dataset.py")
"""Run as by a user, in a process that starts from nothing: the first one, and one whose id may be
taken where the documentation's blocks have run."""


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ARGUMENTS, "demo.py"}


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


def run_copy(script: Path, arguments: list[str], folder: Path) -> str:
    """What a script prints when it runs in a copy of this process, which has loaded the libraries
    that each would load anew."""
    printed = folder / "printed"

    def act() -> None:
        os.chdir(folder)
        with open(printed, "w", buffering=1) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            sys.argv = [str(script), *arguments]
            sys.path.insert(0, str(script.parent))
            try:
                runpy.run_path(str(script), run_name="__main__")
            except BaseException:
                traceback.print_exc()
                raise

    status = in_a_child(act)
    assert status == 0, printed.read_text()
    return printed.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name not in BY_THEMSELVES])
def test_examples_run(name: str, tmp_path: Path) -> None:
    arguments, expected = ARGUMENTS[name]
    assert expected in run_copy(EXAMPLES / name, arguments, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_examples_run_by_themselves(name: str, tmp_path: Path) -> None:
    arguments, expected = ARGUMENTS[name]
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert finished.returncode == 0, finished.stderr
    assert expected in finished.stdout


@pytest.mark.slow
def test_the_picture_of_the_idea_is_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_the_idea.py"
    run_copy(script, ["idea.png"], tmp_path)
    assert (tmp_path / "idea.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_pictures_of_the_hierarchies_are_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_hierarchies.py"
    run_copy(script, [str(tmp_path)], tmp_path)
    for name in ("hierarchical_transformer.png", "hierarchy_reduction.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_of_nested_lists_is_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_nested_lists.py"
    run_copy(script, [str(tmp_path), "1000"], tmp_path)
    assert (tmp_path / "nested_lists.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_of_islands_is_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_glom.py"
    run_copy(script, [str(tmp_path), "2"], tmp_path)
    assert (tmp_path / "glom.png").stat().st_size > 10_000
    assert (tmp_path / "glom.gif").stat().st_size > 1_000


@pytest.mark.slow
def test_the_demo_shows_scores_and_pictures(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--merges", "2000", "--out", "demo"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert "tensorboard --logdir demo" in finished.stdout
    assert "balanced_sorted *" in finished.stdout
    assert "* the order that reinforce imitates at first: balanced_sorted" in finished.stdout
    assert "cut" not in finished.stdout
    algos = {path.parent.name for path in (tmp_path / "demo").glob("*/result.json")}
    assert algos == set(demo().EXPECTED)
    pictures = list((tmp_path / "demo").glob("*/figures/*.png"))
    assert len(pictures) == 5
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
def test_a_row_of_the_demo_ends_at_the_cap(tmp_path: Path) -> None:
    for cap in (8.0, 16.0, 32.0, 64.0):  # what a busy machine takes to begin
        (tmp_path / f"{cap}").mkdir()
        options = Namespace(merges=300_000, cap=cap, seed=0, out=tmp_path / f"{cap}")
        with suppress(SystemExit):
            scores, cut = demo().train("nearest", options)
            if scores["merges"] > 0:
                break
    assert cut
    assert 0 < scores["merges"] < 300_000
    assert 0 < scores["nmse"] < 2


def demo() -> ModuleType:
    """The demo as a module; ``examples`` is no package."""
    specification = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    assert specification.loader is not None
    specification.loader.exec_module(module)
    return module
