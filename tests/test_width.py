"""The width of an embedding that the data chooses: ``embedding_dim="auto"``."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
from comparisons import DIGITS, TREES, rows

from agents import Reinforce
from agents.comparison.options import CompareOptions
from agents.comparison.plan import plan_runs
from agents.comparison.problems import find_problem
from agents.comparison.report import write_report
from agents.comparison.table import Comparison
from agents.config.errors import UsageError
from htm_env.datasets import make_dataset
from htm_env.datasets.width import components_holding, suitable_width

HALVES = (0.5, 0.25, 0.25)
NEARLY_CONSTANT = np.ones((20, 4, 2))
NEARLY_CONSTANT[:, 0, 0] += np.arange(20)


def sets_of(components, tokens=20, rows=400, seed=0):
    """Sets whose sorted second coordinates lie in a space of so many dimensions; the first ones
    are places that never change."""
    generator = np.random.default_rng(seed)
    axes = np.linalg.qr(generator.standard_normal((tokens, components)))[0]
    heights = generator.standard_normal((rows, components)) @ axes.T
    places = np.broadcast_to(np.arange(tokens), heights.shape)
    return np.stack([places, heights], axis=2)


@pytest.mark.parametrize("components", [3, 6])
def test_the_width_is_the_dimension_of_the_space_of_the_sets(components):
    width = suitable_width(make_dataset(sets_of(components), split_fractions=HALVES))
    assert width.dim == components
    assert width.reason == (
        f"{components} components hold 95% of the variance of the sorted training sets; the median "
        "set has 40 numbers"
    )


def test_the_order_of_the_tokens_says_nothing():
    sets = sets_of(4)
    mixed = np.random.default_rng(1).permuted(np.arange(20)[None].repeat(400, 0), axis=1)
    moved = np.take_along_axis(sets, mixed[:, :, None], axis=1)
    assert suitable_width(make_dataset(moved)) == suitable_width(make_dataset(sets))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_it_is_of_the_training_split_whatever_split_is_asked(split):
    sets = sets_of(5)
    assert suitable_width(make_dataset(sets, split)) == suitable_width(make_dataset(sets))


def test_components_by_hand():
    """Variances 90, 6 and 4 of 100."""
    vectors = np.kron(np.diag(np.sqrt([90.0, 6.0, 4.0])), [[1.0], [-1.0]])
    assert [components_holding(vectors, share) for share in (0.9 - 1e-9, 0.95, 0.97)] == [1, 2, 3]
    wide = np.concatenate([vectors, np.zeros((6, 20))], axis=1)  # more numbers than sets
    assert components_holding(wide, 0.95) == 2
    assert components_holding(np.ones((4, 3))) == 0


def test_it_is_less_than_the_numbers_of_the_median_set_and_at_least_two():
    noise = np.random.default_rng(0).standard_normal((400, 2, 3))
    assert suitable_width(make_dataset(noise)).dim == 5
    noise = list(np.random.default_rng(0).standard_normal((400, 30, 2)))
    ragged = [row[: 2 if number % 4 else 30] for number, row in enumerate(noise)]
    assert suitable_width(make_dataset(ragged)).dim == 3  # most sets have two tokens of two numbers
    assert suitable_width(make_dataset(NEARLY_CONSTANT)).dim == 2


def test_few_sets_say_that_they_are_the_limit():
    noise = np.random.default_rng(0).standard_normal((400, 10, 2))
    few = make_dataset(noise[:12], split_fractions=HALVES)
    width = suitable_width(few)  # six training sets vary along five components at most
    assert width.dim in (4, 5)
    assert width.reason.endswith(
        "; limited by the number of training sets, 6: give the width (--embedding-dim)"
    )
    for enough in (noise, sets_of(3), noise[:12, :2], NEARLY_CONSTANT):
        assert "limited" not in suitable_width(make_dataset(enough, split_fractions=HALVES)).reason


def test_sets_of_two_numbers_have_one_between_them():
    pairs = np.random.default_rng(0).standard_normal((400, 2, 1))
    assert suitable_width(make_dataset(pairs)).dim == 1


def test_it_is_the_default_of_own_data_and_can_be_asked_for_elsewhere():
    sets = sets_of(3)
    env = gym.make("htm_env:HTM-v0", dataset=sets)
    assert env.observation_space["tokens"].shape == (20, 3)
    trees = gym.make(
        "htm_env:HTM-Trees-v0", autoencoder="untrained", embedding_dim="auto", heights=2
    )
    assert trees.observation_space["tokens"].shape[1] < 6
    with pytest.raises(ValueError, match="embedding_dim is 'wide'; expected a whole number or 'au"):
        gym.make("htm_env:HTM-v0", dataset=sets, embedding_dim="wide")
    pretrained = gym.make("htm_env:HTM-Trees-v0", embedding_dim="auto")
    assert pretrained.observation_space["tokens"].shape[1] == 8


@pytest.mark.slow
def test_a_saved_agent_has_the_number(tmp_path):
    sets = sets_of(3)
    np.savez(tmp_path / "sets.npz", tokens=sets)
    agent = Reinforce("HTM-v0", env_kwargs={"dataset": str(tmp_path / "sets.npz")})
    assert agent.run_config().embedding_dim == 3
    agent.save(tmp_path / "agent")
    assert '"embedding_dim": 3' in (tmp_path / "agent" / "config.json").read_text()


def test_a_comparison_resolves_it():
    assert find_problem("HTM-v0", {"dataset": sets_of(3)}).embedding_dim == 3
    assert find_problem("HTM-v0", {"dataset": sets_of(3)}, 7).embedding_dim == 7


# ---------------------------------------------------------------- several widths side by side


def test_every_problem_is_planned_at_every_width(tmp_path):
    np.savez(tmp_path / "sets.npz", tokens=sets_of(3, rows=40))
    data = {"HTM-v0": {"dataset": str(tmp_path / "sets.npz")}}
    runs, _ = plan_runs(
        CompareOptions(
            envs="HTM-v0,trees7",
            algos="nearest",
            dims="4,auto,3,8",
            env_kwargs=json.dumps(data),
            seeds=1,
            merges=10,
            out=tmp_path / "out",
        )
    )
    auto = find_problem("HTM-Trees-v0", {"heights": [3]}, "auto").embedding_dim
    widths = {run.problem: run.config.embedding_dim for run in runs}
    assert widths == {
        "HTM-v0-D4": 4,
        "HTM-v0-D3": 3,  # auto, and once only
        "HTM-v0-D8": 8,
        "trees7-D4": 4,
        f"trees7-D{auto}": auto,
        "trees7-D3": 3,
        "trees7-D8": 8,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": "4,wide"}, "--dims has 'wide'; expected whole numbers above 0, or auto"),
        ({"dims": "0"}, "--dims has '0'"),
        ({"dims": "4", "embedding_dim": "8"}, "--dims and --embedding-dim: give one of them"),
    ],
)
def test_wrong_widths_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CompareOptions(**options)


@pytest.mark.slow
def test_the_report_draws_error_against_width(tmp_path):
    wide = TREES._replace(embedding_dim=TREES.embedding_dim * 4)
    table = [
        *rows(TREES, "reinforce", 0, [0.5, 0.2]),
        *rows(TREES, "reinforce", 1, [0.5, 0.4]),
        *rows(wide, "reinforce", 0, [0.5, 0.02]),
        *rows(wide, "nearest", 0, [0.5, 0.03]),
        *rows(DIGITS, "nearest", 0, [0.5, 0.1]),
    ]
    ((_, tasks),) = Comparison(table).widths.items()
    assert tasks == [TREES, wide]
    report = write_report(tmp_path, table).read_text()
    section = report.partition("## Error against the width")[2].partition("\n## ")[0]
    lines = [line.split("|")[1:-1] for line in section.splitlines() if "`" in line]
    assert [[cell.strip() for cell in line] for line in lines] == [
        ["`reinforce`", "0.3", "0.02"],
        ["`nearest`", "-", "0.03"],
    ]
    assert (tmp_path / "figures" / "widths.png").exists()
    assert Comparison([row for row in table if row.task != wide]).widths == {}
