"""Tables of results: what one run's rows say, and what tables of several machines say together."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from comparisons import TREES, rows

from agents.comparison.report import check_processors
from agents.comparison.results import (
    ResultRow,
    changed_options,
    read_results,
    run_rows,
    write_table,
)
from agents.comparison.table import Comparison
from agents.config.run import RunConfig
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.learners.reinforce import ReinforceConfig
from agents.learners.replay import ReplayConfig
from agents.optim.optimizers import OptimizerConfig
from agents.registry import ALGORITHMS
from agents.runs.directory import RunDirectory
from agents.runs.host import Host

COMMITTED = sorted(Path(__file__).parents[1].glob("docs/comparison/*/results.csv"))
CONTROL = '{"max_staleness": 0}'


def with_options(options: str, made: list[ResultRow]) -> list[ResultRow]:
    return [replace(row, options=options) for row in made]


def errors(found: list[ResultRow]) -> list[float | None]:
    return [row.nmse for row in found]


def table(path: Path, found: list[ResultRow]) -> Path:
    write_table(path, ResultRow, found)
    return path


def old_table(path: Path, found: list[ResultRow]) -> Path:
    """As it was written before there was a column of options."""
    names = [name for name in asdict(found[0]) if name != "options"]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)
    return path


# ---------------------------------------------------------------- hosts


XEON, EPYC = Host("Xeon", "2.13.0", 1, 50.0), Host("EPYC", "2.13.0", 1, 70.0)


def test_a_row_tells_on_what_the_run_ran(finished_run):
    run = RunDirectory(finished_run)
    (host,) = run.load_hosts()
    assert (host.threads, host.torch) == (1, torch.__version__)
    run.add_host(EPYC)
    run.add_host(EPYC)  # a second part on the same machine
    assert [each.processor for each in run.load_hosts()] == [host.processor, "EPYC"]
    end = run_rows(run)[-1]
    assert end.processor == f"{host.processor} + EPYC"
    # That of this machine is not known, unless somebody measured it before; the slower one counts.
    assert (end.threads, end.gigaflops) == (1, min(host.gigaflops or math.inf, 70.0))
    run.hosts_path.write_text("{")
    with pytest.raises(ValueError, match=r"hosts\.json"):
        run.load_hosts()
    run.add_host(XEON)
    assert run.load_hosts() == (XEON,)


@pytest.fixture
def finished_run(tmp_path) -> Path:
    config = FixedOrderConfig(batch_size=4)
    agent = FixedOrder("HTM-Trees-v0", config, env_kwargs={"heights": [2]}, embedding_dim=3)
    agent.train(merges=8, out=tmp_path / "run")
    return tmp_path / "run"


def test_seconds_of_different_processors_are_not_pooled(tmp_path):
    seconds = [
        replace(row, processor=name)
        for seed, name in enumerate(("Xeon", "EPYC"))
        for row in rows(TREES, "nearest", seed, [0.5, 0.4])
    ]
    with pytest.raises(ValueError, match=r"EPYC; Xeon.*compare them under --merges"):
        check_processors(seconds)
    check_processors([replace(row, budget="300 merges") for row in seconds])
    check_processors([replace(row, processor="Xeon") for row in seconds])
    moved = [replace(row, processor="Xeon + EPYC") for row in seconds]  # went on elsewhere
    with pytest.raises(ValueError, match=r"\(EPYC; Xeon\)"):
        check_processors(moved)
    check_processors([replace(row, processor="") for row in seconds])  # not known of older runs
    read = read_results([table(tmp_path / "both.csv", seconds)])
    assert [(row.processor, row.threads) for row in read] == [
        *[("Xeon", None)] * 2,
        *[("EPYC", None)] * 2,
    ]


# ---------------------------------------------------------------- options


def run(algo: str, config: dict) -> RunConfig:
    return RunConfig("HTM-Trees-v0", algo=algo, config=config)


def test_options_are_what_differs_from_the_algorithms_defaults():
    control = asdict(replace(ReplayConfig(), max_staleness=0))
    assert changed_options(run("replay:control", control)) == CONTROL
    slow = ReinforceConfig(policy=OptimizerConfig(learning_rate=0.25), discount=0.5)
    found = json.loads(changed_options(run("reinforce", asdict(slow))))
    assert found.items() >= {"policy.learning_rate": 0.25, "discount": 0.5}.items()
    assert all(name == "discount" or name.startswith("policy.") for name in found)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_algorithm_as_it_is_has_no_options(algo):
    config = json.loads(json.dumps(asdict(ALGORITHMS[algo].config)))  # as config.json has it
    assert changed_options(run(algo, config)) == "{}"


def test_the_defaults_of_an_algorithm_that_is_gone_are_not_known():
    assert changed_options(run("magic", {"power": 3})) == ""


def test_options_survive_the_table(tmp_path):
    made = with_options(CONTROL, rows(TREES, "replay", 0, [0.5, 0.1]))
    assert read_results([table(tmp_path / "new.csv", made)]) == made
    (tmp_path / "new.csv").write_text((tmp_path / "new.csv").read_text().replace(":", ";"))
    with pytest.raises(ValueError, match="line 2 is not a result"):
        read_results([tmp_path / "new.csv"])


def test_a_run_in_an_old_and_a_new_table_counts_once(tmp_path):
    made = with_options(CONTROL, rows(TREES, "replay", 0, [0.5, 0.3, 0.1]))
    old, new = old_table(tmp_path / "old.csv", made), table(tmp_path / "new.csv", made)
    assert {row.options for row in read_results([old])} == {""}
    assert read_results([old, new]) == read_results([new, old]) == made


def test_tables_that_were_appended_to_one_another_are_read_as_one(tmp_path):
    trees, other = rows(TREES, "replay", 0, [0.5, 0.1]), rows(TREES, "replay", 1, [0.4, 0.2])
    old = old_table(tmp_path / "old.csv", trees).read_text()  # its header is another one
    new = table(tmp_path / "new.csv", with_options("{}", other)).read_text()
    (tmp_path / "both.csv").write_text(new + "\n" + old)
    assert read_results([tmp_path / "both.csv"]) == [*with_options("{}", other), *trees]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.parent.name)
def test_committed_tables_are_read_and_joined(path, tmp_path):
    found = read_results([path])
    with open(path, newline="") as file:
        assert len(found) == len(list(csv.DictReader(file)))
    first = set(list(dict.fromkeys(row.run for row in found))[:20])
    some = [row for row in found if row.run in first]
    known = [row if row.options else replace(row, options="{}") for row in some]
    old, new = table(tmp_path / "old.csv", some), table(tmp_path / "new.csv", known)
    again = read_results([old, new])
    assert again == known
    assert Comparison(again).algos == Comparison(some).algos


def test_one_run_has_one_kind_of_options(tmp_path):
    made = rows(TREES, "replay", 0, [0.5, 0.1])
    paths = [
        table(tmp_path / f"{number}.csv", with_options(options, made))
        for number, options in enumerate(("{}", CONTROL))
    ]
    with pytest.raises(ValueError, match="two different runs of replay"):
        read_results(paths)


def test_runs_of_different_options_are_not_pooled():
    plain = with_options("{}", rows(TREES, "replay", 0, [0.5, 0.4]))
    control = with_options(CONTROL, rows(TREES, "replay", 1, [0.5, 0.1]))
    with pytest.raises(ValueError, match=r'options of \{"max_staleness": 0\} and \{\}; run one'):
        Comparison([*plain, *control])
    labelled = [replace(row, algo="replay:control") for row in control]
    assert Comparison([*plain, *labelled]).algos == ["replay", "replay:control"]
    unknown = with_options("", control)
    assert Comparison([*plain, *unknown]).errors(TREES, "replay").tolist() == [0.4, 0.1]


def test_runs_of_different_encoders_are_not_pooled():
    plain = rows(TREES, "reinforce:x", 0, [0.5, 0.4])
    other = [replace(row, encoder="glom") for row in rows(TREES, "reinforce:x", 0, [0.5, 0.1])]
    message = r"encoders of glom and none; run one kind under a label, such as reinforce:other"
    with pytest.raises(ValueError, match=message):
        Comparison([*plain, *other])


# ---------------------------------------------------------------- one run in several tables


def test_the_course_of_a_run_is_that_of_the_table_with_its_end(tmp_path):
    """The early look has two points that the run, killed and continued, came to anew."""
    early = rows(TREES, "replay", 0, [0.9, 0.7, 0.6, None])[:3]
    whole = rows(TREES, "replay", 0, [0.9, 0.5, 0.2])
    first, second = table(tmp_path / "a.csv", early), table(tmp_path / "b.csv", whole)
    for paths in ([first, second], [second, first]):
        assert errors(read_results(paths)) == [0.9, 0.5, 0.2]


def test_the_course_of_an_unfinished_run_is_the_longest(tmp_path):
    early = rows(TREES, "replay", 0, [0.9, 0.7, None])[:2]
    later = rows(TREES, "replay", 0, [0.9, 0.6, 0.5, None])[:3]
    first, second = table(tmp_path / "a.csv", early), table(tmp_path / "b.csv", later)
    for paths in ([first, second], [second, first]):
        assert errors(read_results(paths)) == [0.9, 0.6, 0.5]


def test_points_are_sorted_by_position(tmp_path):
    whole = rows(TREES, "replay", 0, [0.9, 0.5, 0.4, 0.2])
    mixed = table(tmp_path / "a.csv", [whole[3], whole[2], whole[0], whole[1], whole[0]])
    assert read_results([mixed]) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algo": "\x1b[31mred"}, "algo is .*expected printable letters"),
        ({"budget": "30\nseconds"}, "budget is .*expected printable letters"),
        ({"nmse": -1.0}, "nmse is -1.0; expected at least 0"),
        ({"nmse": 1e308}, "nmse is 1e[+]308; expected at least 0 and at most"),
        ({"tree_f1": 1e300}, "tree_f1 is 1e[+]300; expected at least 0 and at most 1"),
        ({"return_": -1e308}, "return_ is -1e[+]308"),
        ({"seconds": 1e308}, "seconds is 1e[+]308"),
    ],
)
def test_a_row_has_printable_texts_and_scores_within_their_bounds(change, message):
    (row,) = rows(TREES, "reinforce", 0, [0.5])
    with pytest.raises(ValueError, match=message):
        replace(row, **change)
