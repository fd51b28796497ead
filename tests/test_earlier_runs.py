"""Run folders that an earlier release wrote: they load, evaluate and resume as they did there.

Each folder of ``tests/data/runs`` is ``htm train --env HTM-Trees-v0 --env-kwargs '{"heights": [2]}'
--embedding-dim 4 --merges 2000 --seed 3`` with hidden layers of 4, and ``resumed.json`` what came
of resuming it there with a budget of 3000 merges; of replay the error is that of the first release
that draws a merge from two numbers, which makes other episodes.
"""

import json
import shutil
from pathlib import Path

import pytest

from agents.registry import build_learner, load_learner
from agents.runs.session import resume_run

RUNS = Path(__file__).parent / "data" / "runs"
ALGORITHMS = ("reinforce", "replay", "ppo")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_of_an_earlier_release_evaluates_as_it_did(algo):
    learner = load_learner(RUNS / algo)
    result = json.loads((RUNS / algo / "result.json").read_text())
    assert learner.algo == algo
    assert (learner.merges_made, learner.updates) == (result["merges"], result["updates"])
    assert learner.autoencoder.weights_hash() == result["weights_hash"]
    scores = learner.evaluate(learner.task.dataset("test"), sampled=False)
    assert scores["nmse"] == pytest.approx(result["test"]["nmse"], rel=1e-4)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_run_of_an_earlier_release_resumes_as_it_did(tmp_path, algo):
    shutil.copytree(RUNS / algo, tmp_path / algo)
    config = json.loads((tmp_path / algo / "config.json").read_text())
    config["budget"]["merges"] = 3000
    (tmp_path / algo / "config.json").write_text(json.dumps(config))
    result = resume_run(tmp_path / algo, build_learner, progress_bar=False)
    there = json.loads((RUNS / algo / "resumed.json").read_text())
    assert (result["merges"], result["updates"]) == (there["merges"], there["updates"])
    assert result["test"]["nmse"] == pytest.approx(there["nmse"], rel=1e-2)
