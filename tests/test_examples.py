"""Every example runs as a user would run it, and stays short."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

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


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*ARGUMENTS, "demo.py"}


@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_examples_run(name: str, tmp_path: Path) -> None:
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
    subprocess.run([sys.executable, str(script), "idea.png"], cwd=tmp_path, check=True, timeout=250)
    assert (tmp_path / "idea.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_pictures_of_the_hierarchies_are_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_hierarchies.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, timeout=250)
    for name in ("hierarchical_transformer.png", "hierarchy_reduction.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_of_nested_lists_is_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_nested_lists.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "1000"], check=True, timeout=250)
    assert (tmp_path / "nested_lists.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_picture_of_islands_is_drawn(tmp_path: Path) -> None:
    script = EXAMPLES.parent / "docs" / "picture_of_glom.py"
    subprocess.run([sys.executable, str(script), str(tmp_path), "2"], check=True, timeout=250)
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
    options = Namespace(merges=1_000_000, cap=15.0, seed=0, out=tmp_path)
    scores, cut = demo().train("nearest", options)
    assert cut
    assert 0 < scores["merges"] < 1_000_000
    assert 0 < scores["nmse"] < 2


def demo() -> ModuleType:
    """The demo as a module; ``examples`` is no package."""
    specification = importlib.util.spec_from_file_location("demo", EXAMPLES / "demo.py")
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    assert specification.loader is not None
    specification.loader.exec_module(module)
    return module
