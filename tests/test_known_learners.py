"""Every algorithm where the merger is known: trained, resumed, evaluated, compared and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import agents
from agents.cli import main
from agents.comparison.report import write_report
from agents.comparison.results import ResultRow, read_results, run_rows, write_table
from agents.config.budget import Budget
from agents.config.run import RunConfig
from agents.estimator.merger import HierarchicalTokenMerger
from agents.registry import build_learner, load_learner
from agents.runs.directory import RunDirectory
from agents.runs.session import resume_run, start_run
from htm_env.datasets import make_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(5), size=60)[..., None].astype(np.float32)
OWN = {"merger": "own_merger:MERGER", "reward": "own_merger:REWARD"}
SMALL = {"policy_hidden_dim": 8, "batch_size": 4}
LEARNERS = {
    "reinforce": SMALL,
    "replay": SMALL,
    "original_policy": SMALL,
    "maskable_ppo": {"policy_hidden_dim": 8, "batch_size": 16, "n_envs": 4},
    "sb3:PPO": {"n_envs": 4},
    "nearest_sorted": {"batch_size": 4},
    "greedy": {"batch_size": 4},
}


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def huffman(weights: np.ndarray) -> float:
    """Mean length of a code word, by the plain loop over the two lightest."""
    left, total = sorted(weights.ravel().tolist()), 0.0
    while len(left) > 1:
        made = left.pop(0) + left.pop(0)
        total, left = total + made, sorted([*left, made])
    return total


def own_run(algo: str, **config) -> RunConfig:
    kwargs = {"dataset": WEIGHTS}
    config = config | {"reward": OWN["reward"]}
    return RunConfig("HTM-v0", kwargs, merger=OWN["merger"], algo=algo, config=config)


@pytest.mark.parametrize("algo", LEARNERS)
def test_every_algorithm_trains_on_jets(algo):
    learner = build_learner(RunConfig("HTM-Jets-v0", algo=algo, config=LEARNERS[algo]))
    assert learner.task.mode == "frozen"
    learner.train(merges=20)
    scores = learner.evaluate(learner.task.dataset("test"), 2, sampled=False)
    assert -1000 < scores["return"] < 0
    assert "nmse" not in scores


@pytest.mark.parametrize("algo", ["reinforce", "replay", "maskable_ppo", "sb3:PPO"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path, algo):
    run, budget = own_run(algo, **LEARNERS[algo]), Budget(merges=160)
    learner = build_learner(run)
    whole = start_run(learner, budget, tmp_path / "whole", progress_bar=False)
    assert whole["mode"] == "frozen"

    half, learner = tmp_path / "half", build_learner(run)
    update = learner.update

    def interrupted(progress: float) -> dict[str, float]:
        if learner.merges_made >= 80:
            raise InterruptedError
        return update(progress)

    learner.update = interrupted
    with pytest.raises(InterruptedError):
        start_run(learner, budget, half, progress_bar=False)
    resumed = resume_run(half, build_learner, progress_bar=False)
    assert resumed["test"] == whole["test"]
    assert resumed["merges"] == whole["merges"]


@pytest.mark.parametrize(
    ("algo", "mode", "message"),
    [
        ("reinforce", "joint", "the merger of HTM-Jets-v0 is known, so there is no autoencoder"),
        ("nearest", "joint", "expected --mode frozen"),
        ("flat", None, "flat is an autoencoder, and the merger of HTM-Jets-v0 is known"),
    ],
)
def test_what_needs_an_autoencoder_says_so_in_one_line(algo, mode, message):
    with pytest.raises(ValueError, match=message):
        build_learner(RunConfig("HTM-Jets-v0", mode=mode, algo=algo))


def test_a_run_is_found_again_with_its_merger_and_its_reward(tmp_path):
    learner = build_learner(own_run("greedy", batch_size=4))
    learner.save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["merger"], saved["config"]["reward"]) == tuple(OWN.values())
    loaded = load_learner(tmp_path)
    test = loaded.task.dataset("test")
    scores = loaded.evaluate(test, sampled=False)
    shortest = np.mean([huffman(each) for each in test.fixed(test.size).tokens.numpy()])
    assert -scores["return"] == pytest.approx(shortest, rel=1e-5)  # greedy is Huffman's rule
    assert loaded.run_config().merger == OWN["merger"]


def test_an_object_of_a_module_is_saved_by_its_name_and_no_other_is():
    from own_merger import MERGER, REWARD, Weights

    task = {"env_kwargs": {"dataset": WEIGHTS}}
    config = agents.ReinforceConfig(reward=REWARD)
    learner = agents.Reinforce("HTM-v0", config, merger=MERGER, **task)
    assert learner.run_config().merger == OWN["merger"]
    assert learner.run_config().config["reward"] == OWN["reward"]
    other = agents.Reinforce("HTM-v0", config, merger=Weights(), **task)
    with pytest.raises(ValueError, match=r"the merger .*Weights.* cannot be saved"):
        other.run_config()


def test_costs_are_no_errors_to_take_multiples_of():
    learner = build_learner(own_run("reinforce", **SMALL))
    assert learner.search.factor == 0  # no failures by multiples of a median


def test_the_command_line_trains_evaluates_embeds_and_draws(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("weights.npy", WEIGHTS)
    names = ["--merger", OWN["merger"], "--reward", OWN["reward"]]
    given = ["--data", "weights.npy", "--algo", "reinforce", "--merges", "300", *names]
    small = ["--policy-hidden-dim", "8", "--batch-size", "4"]
    assert main(["train", *given, *small, "--out", "run"]) == 0
    assert "return" in capsys.readouterr().out
    assert main(["evaluate", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    test = load_learner("run").task.dataset("test").fixed(1000).tokens.numpy()
    shortest = np.mean([huffman(each) for each in test])
    assert found["yardsticks"]["greedy"] == pytest.approx(-shortest, rel=1e-5)
    assert found["strongest_order"] == "greedy"
    ahead = found["gains"]["greedy"]
    assert ahead["mean"] == pytest.approx(found["return"] + shortest, abs=1e-5)
    assert ahead["mean"] <= 1e-6  # nothing is shorter than Huffman's
    assert ahead["error"] >= 0
    assert main(["embed", "run"]) == 0
    roots = np.load("run/embeddings/embeddings.npz")
    assert np.allclose(roots["root"][:, 0], 1, atol=1e-5)  # all weights
    assert roots["return"].mean() == pytest.approx(found["return"], rel=1e-5)
    assert not Path("run/embeddings/reconstructions.npz").exists()
    assert main(["plot", "run", "--samples", "1", "--out", "figures"]) == 0
    assert main(["view", "run", "--samples", "1"]) == 0
    assert '"start":null' in Path("run/view.html").read_text()
    assert main(["generate", "run"]) == 1
    assert "nothing can be decoded" in capsys.readouterr().err


def test_a_comparison_ranks_by_return_and_takes_differences(tmp_path):
    np.save(tmp_path / "weights.npy", WEIGHTS)
    kwargs, rows = {"dataset": str(tmp_path / "weights.npy")}, []
    for algo in ("nearest", "greedy"):
        for seed in range(2):
            run = replace(own_run(algo, batch_size=4), env_kwargs=kwargs, seed=seed)
            folder = tmp_path / f"{algo}{seed}"
            start_run(build_learner(run), Budget(merges=60), folder, progress_bar=False)
            rows += run_rows(RunDirectory(folder))
    write_table(tmp_path / "results.csv", ResultRow, rows)
    header = (tmp_path / "results.csv").read_text().partition("\n")[0].split(",")
    assert {"nmse", "return", "sampled_return", "merger"} <= set(header)
    assert read_results([tmp_path / "results.csv"]) == rows
    ends = {row.algo: row for row in rows if row.split == "test"}
    assert all(row.nmse is None and row.merger == OWN["merger"] for row in rows)
    assert ends["greedy"].return_ > ends["nearest"].return_
    report = write_report(tmp_path, rows).read_text()
    difference = ends["greedy"].return_ - ends["nearest"].return_
    assert "return, median" in report
    assert "less `nearest`" in report
    assert f"| {difference:.3g}" in report
    assert report.index("`greedy`") < report.index("`nearest`")


def test_the_estimator_takes_a_merger(tmp_path):
    merger = HierarchicalTokenMerger(
        "greedy", merges=40, merger=OWN["merger"], options={"reward": OWN["reward"]}
    ).fit(WEIGHTS)
    shortest = np.mean([huffman(each) for each in WEIGHTS])
    assert merger.score(WEIGHTS) == pytest.approx(-shortest, rel=1e-5)
    assert merger.embedding_dim_ == 2
    with pytest.raises(ValueError, match="nothing can be decoded"):
        merger.reconstruct(WEIGHTS[:1])
    merger.save(tmp_path)
    assert HierarchicalTokenMerger.load(tmp_path).score(WEIGHTS) == merger.score(WEIGHTS)


def test_learners_take_a_reward_of_jets_beside_the_costs():
    learner = agents.Reinforce(
        "HTM-Jets-v0", agents.ReinforceConfig(reward="right_merges", demonstration_share=((0, 0),))
    )
    batch = make_dataset("HTM-Jets-v0").fixed(3)
    merges = learner.plan(batch, torch.Generator().manual_seed(0), greedy=True)
    assert (learner.errors(batch, merges) > 0).all()  # minus log-likelihoods
