"""The table of trees over jets: what is compared with what, and what an evaluation is."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from agents.fixed import fixed_policy
from agents.runs.directory import RunDirectory
from agents.runs.records import RunResult
from benchmarks import jets, jets_search
from htm_env.datasets import make_dataset
from htm_env.datasets.jets import tree_log_likelihood

DATA = make_dataset(jets.ENV, split="test")
BATCH = DATA.fixed(12)
SMALL = [size for size in BATCH.num_tokens.tolist() if size <= 11]


def rows_of(*names: str) -> dict[tuple[str, int], jets.Row]:
    rows = jets.table(BATCH, DATA, [*jets.fixed_entries(DATA, names)])
    return {(row["trees"], row["particles, at most"]): row for row in rows}


def test_gaps_are_to_greedy_on_the_same_jets_and_evaluations_are_of_single_splittings():
    rows = rows_of("greedy", "structure", "beam_5")
    greedy = rows["greedy", 20]
    assert (greedy["gap to greedy"], greedy["standard error of the gap"]) == (0, 0)
    assert greedy["evaluations a jet"] == pytest.approx(((BATCH.num_tokens - 1) ** 2).sum() / 12)
    truth = tree_log_likelihood(BATCH, BATCH.merges)
    assert rows["structure", 20]["log-likelihood"] == pytest.approx(float(truth.mean()))
    assert rows["structure", 20]["evaluations a jet"] == 0
    gap = rows["beam_5", 20]["log-likelihood"] - greedy["log-likelihood"]
    assert rows["beam_5", 20]["gap to greedy"] == pytest.approx(gap) and gap > 0
    exact = rows["exact", 11]
    splits = [(3**n + 1) // 2 - 2**n for n in SMALL]
    assert exact["jets"] == len(SMALL)
    assert exact["evaluations a jet"] == pytest.approx(sum(splits) / len(splits))
    assert exact["log-likelihood"] >= rows["beam_5", 11]["log-likelihood"] - 1e-9


def test_exact_is_never_below_a_beam_of_100_on_jets():
    small = BATCH.rows((BATCH.num_tokens <= 11).nonzero().squeeze(1))
    found = {
        entry.name: jets.log_likelihoods(entry, small, DATA)[0]
        for entry in jets.fixed_entries(DATA, ["exact", "beam_100"])
    }
    assert (found["exact"] >= found["beam_100"] - 1e-9).all()


def test_a_run_is_a_row_and_its_search_another(monkeypatch, tmp_path):
    model, _ = jets.counted_model(DATA)
    run = SimpleNamespace(
        task=SimpleNamespace(env=jets.ENV, seed=3),
        algo="reinforce",
        autoencoder=model,
        std=DATA.std,
        plan=fixed_policy("structure", model).plan,
    )
    monkeypatch.setattr(jets, "load", lambda folder: run)
    result = RunResult(
        *(jets.ENV, {}, "reinforce", 3, 120.3, 100, 5, {"return": 1.0}, {"return": 1.0}, "frozen"),
        *(model.embedding_dim, "none"),
    )
    RunDirectory(tmp_path / "one").save_result(asdict(result))
    own, searched = jets.table(BATCH, DATA, [*jets.run_entries(DATA, tmp_path / "one", 30)])[:2]
    assert (own["trees"], searched["trees"]) == (
        "reinforce, seed 3, 120 s",
        "reinforce, seed 3, 120 s, search 30",
    )
    assert own["evaluations a jet"] == 0
    assert searched["evaluations a jet"] > BATCH.num_tokens.double().mean()
    assert searched["log-likelihood"] > own["log-likelihood"]


def test_a_run_of_other_data_is_refused(monkeypatch, tmp_path, capsys):
    other = SimpleNamespace(task=SimpleNamespace(env="HTM-Trees-v0"))
    monkeypatch.setattr(jets, "load", lambda folder: other)
    with pytest.raises(SystemExit):
        jets.main(["--fixed", "--runs", str(tmp_path)])
    assert "is of HTM-Trees-v0; expected one of HTM-Jets-v0" in capsys.readouterr().err


def test_the_merger_says_that_tokens_are_momenta():
    model, _ = jets.counted_model(DATA)
    assert torch.equal(model.momenta(BATCH.tokens), BATCH.tokens)


def test_the_table_says_its_command_and_commit(tmp_path):
    jets.main(["--jets", "3", "--fixed", "greedy", "--out", str(tmp_path)])
    written = json.loads((tmp_path / "jets.json").read_text())
    command = "python -m benchmarks.jets --jets 3 --fixed greedy"
    assert written["machine"]["command"] == command
    assert written["machine"]["commit"]
    assert written["rows"][0]["jets"] == 3
    assert command in (tmp_path / "jets.md").read_text()


def test_evaluations_of_a_search_are_those_of_its_start_and_at_most_its_budget(tmp_path):
    jets_search.main(["--jets", "6", "--budgets", "40", "--random-budgets", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "jets_search.json").read_text())["rows"]
    plain, searched = [row for row in rows if row["start"] == "greedy"]
    assert searched["evaluations a jet"] <= plain["evaluations a jet"] + 40
    assert searched["gap to greedy"] > plain["gap to greedy"] == 0
    sizes = BATCH.num_tokens[:6].tolist()
    every_pair = sum((size**3 - size) // 6 for size in sizes) / 6
    assert plain[jets_search.ANEW] == pytest.approx(every_pair)
    proposed = sum(size - 1 + 4 * 40 for size in sizes) / 6  # 80 proposals of two merges
    assert searched[jets_search.ANEW] == pytest.approx(every_pair + proposed)
    assert (tmp_path / "jets_search.png").stat().st_size > 10_000


def test_pairs_of_a_beam_are_those_of_the_forests_that_there_are():
    # Four leaves: 1 forest of 6 pairs, 6 of 3 pairs, 15 of 1 pair.
    assert [jets_search.number_of_forests(4, trees) for trees in (4, 3, 2, 1)] == [1, 6, 15, 15]
    assert jets_search.pairs_of_forests(4, 100) == 6 + 6 * 3 + 15
    assert jets_search.pairs_of_forests(4, 5) == 6 + 5 * 3 + 5
    assert jets_search.pairs_of_forests(14, 1) == (14**3 - 14) // 6


def test_a_planner_that_evaluates_other_pairs_than_greedy_has_no_number_anew():
    assert jets_search.anew([4, 6], 1, 0, own=17.0) == (10 + 35) / 2
    assert jets_search.anew([4, 6], 1, 0, own=16.0) is None
    assert jets_search.anew([4, 6], 1, 10, own=0.0) == 4 + 40
