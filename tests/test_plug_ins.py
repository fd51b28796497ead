"""Algorithms, rewards and data of one's own: by their names, trained, compared, resumed."""

from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from comparisons import here

import agents
import htm_env
from agents.cli import main
from agents.config.plug_ins import name_of, named_object
from agents.config.run import RunConfig
from agents.learners.base import Learner
from agents.registry import (
    algorithm,
    build_learner,
    check_algorithm,
    configured,
    file_name,
    installed,
    load_learner,
    unlabelled,
)
from htm_env.datasets import DATASETS, make_dataset
from htm_env.files import read_json, write_json
from htm_env.registration import register_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--set", "autoencoder.hidden_dim=8", "--set", "batch_size=4"]


@pytest.fixture
def examples(monkeypatch):
    """The examples as modules of the path; what they register is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in ("own_learner", "own_reward", "own_dataset", "own_merger"):
        sys.modules.pop(name, None)
    DATASETS.pop("Rings-v0", None)
    for name in ("Rings-v0", "Rings-Flat-v0"):
        gym.registry.pop(name, None)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    here(monkeypatch)


def train(*arguments, out: Path, status: int = 0) -> Path:
    assert main(["train", *map(str, arguments), "--out", str(out)]) == status
    return out


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "base", "file"),
    [
        ("replay", "replay", "replay"),
        ("replay:control", "replay", "replay:control"),
        ("my.module:Mine", "my.module:Mine", "my.module-Mine"),
        ("sb3:DQN", "sb3:DQN", "sb3-DQN"),
        ("sb3_contrib:TRPO:slow", "sb3_contrib:TRPO", "sb3_contrib-TRPO:slow"),
        ("my.module:Mine:control", "my.module:Mine", "my.module-Mine:control"),
    ],
)
def test_a_name_is_an_algorithm_and_perhaps_a_label(name, base, file):
    assert (unlabelled(name), file_name(name)) == (base, file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reinfroce", "did you mean 'reinforce'"),
        ("reinfroce:control", "did you mean 'reinforce'"),
        ("no_such_module:Mine", "there is no module 'no_such_module'"),
        ("replay:../other", "bad label"),
        ("json:JSONDecoder:../other", "bad label"),
        ("no/module:Mine", "unknown algorithm"),
    ],
)
def test_a_name_that_no_algorithm_can_have_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        check_algorithm(name)


def test_objects_are_found_by_their_names_and_named():
    assert named_object("json:JSONDecoder.decode", "reward") is json.JSONDecoder.decode
    assert name_of(json.JSONDecoder) == "json.decoder:JSONDecoder"
    assert name_of(lambda: None) is None
    with pytest.raises(ValueError, match=r"the reward 'json:nothing' cannot be loaded: module"):
        named_object("json:nothing", "reward")


def test_an_option_of_other_algorithms_says_whose_it_is():
    with pytest.raises(
        ValueError, match=r"nearest has no option 'discount'; reinforce, rloo, replay, ppo"
    ):
        configured("nearest", {"discount": 1.0})
    with pytest.raises(ValueError, match=r"'policy.learning_rate'; reinforce, .*ppo.* have it"):
        configured("nearest", {"policy": {"learning_rate": 0.1}})
    with pytest.raises(ValueError, match=r"'clip_range'; ppo, maskable_ppo have it"):
        configured("reinforce", {"clip_range": 0.1})
    with pytest.raises(ValueError, match=r"has no field 'discunt' \(did you mean 'discount'\?\)"):
        configured("reinforce", {"discunt": 0.1})


@pytest.mark.parametrize(
    ("algo", "decided"),
    [
        ("sb3:DQN", {"model": "sb3:DQN"}),
        ("maskable_ppo", {"maskable": True}),
        ("cosine", {"policy": "cosine"}),
        ("original", {"baseline": configured("original", {}).baseline}),
    ],
)
def test_a_learner_is_what_its_name_says(algo, decided):
    options = {"autoencoder": {"hidden_dim": 8}}
    config = build_learner(RunConfig("HTM-Trees-v0", embedding_dim=3, algo=algo, config=options))
    assert {name: getattr(config.config, name) for name in decided} == decided
    assert config.config.autoencoder.hidden_dim == 8
    if algo != "original":
        other = dict.fromkeys(decided, "sb3:PPO")
        with pytest.raises(ValueError, match=f"{algo} decides {next(iter(decided))}"):
            build_learner(RunConfig("HTM-Trees-v0", embedding_dim=3, algo=algo, config=other))


def test_algorithms_of_installed_packages_are_told_by_their_names(tmp_path, monkeypatch):
    about = tmp_path / "broken-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[htm.algorithms]\nbroken = nowhere_at_all:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"algorithm 'broken', .*'nowhere_at_all:Mine' cannot"):
            algorithm("broken")
        with pytest.raises(ValueError, match="choose from ") as refused:
            check_algorithm("magic")
        assert "broken" in str(refused.value) and "retrained" not in str(refused.value)
    finally:
        installed.cache_clear()


def test_an_installed_package_gives_names_to_algorithms(examples, tmp_path, monkeypatch):
    about = tmp_path / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[htm.algorithms]\ncross_entropy = own_learner:CrossEntropy\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.cache_clear()
    try:
        assert algorithm("cross_entropy:control").learner.__name__ == "CrossEntropy"
        assert unlabelled("cross_entropy:control") == "cross_entropy"
        with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
            check_algorithm("crossentropy")
    finally:
        installed.cache_clear()


# ---------------------------------------------------------------- a learner


def test_a_learner_of_ones_own_is_trained_resumed_and_loaded(examples, tmp_path, capsys):
    given = ["--env", "trees7", "--algo", "own_learner:CrossEntropy", "--merges", 384, *TINY]
    run = train(*given, out=tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    assert config["algo"] == "own_learner:CrossEntropy"
    assert (config["env"], config["env_kwargs"], config["embedding_dim"]) == (
        "HTM-Trees-v0",
        {"heights": [3]},
        6,
    )
    assert json.loads((run / "result.json").read_text())["updates"] == 2  # 8 * 4 trees of 6 merges
    assert main(["evaluate", str(run), "--episodes", "4"]) == 0
    one, other = agents.load(run), type(agents.load(run)).load(run)
    one.update(0.5)
    other.update(0.5)
    assert torch.equal(one.mean, other.mean)
    assert one.autoencoder.weights_hash() == other.autoencoder.weights_hash()
    with pytest.raises(
        ValueError, match="holds a run of own_learner:CrossEntropy; expected a Rein"
    ):
        agents.Reinforce.load(run)


SCRIPT = """
import sys
from agents import Learner, Reinforce, ReinforceConfig

class Chain(Learner):
    def update(self, progress):
        batch = self.sample(2)
        return self.finish_update(batch, batch.merges, progress)
    def plan(self, batch, generator, *, greedy):
        return batch.merges

def fall(before, after, first, second):
    return before.error - after.error

if __name__ == "__main__":
    about = {"env_kwargs": {"heights": [2]}, "embedding_dim": 3}
    Chain("HTM-Trees-v0", **about).train(merges=1, out=sys.argv[1])
    Reinforce("HTM-Trees-v0", ReinforceConfig(reward=fall), **about).save(sys.argv[2])
"""


def test_what_the_script_defines_is_named_by_its_module(tmp_path, monkeypatch):
    script, out = tmp_path / "script_of_mine.py", [str(tmp_path / "one"), str(tmp_path / "two")]
    script.write_text(SCRIPT)
    monkeypatch.setattr(sys, "argv", [str(script), *out])
    with pytest.raises(ValueError, match="the learner Chain is defined in the script itself"):
        runpy.run_path(str(script), run_name="__main__")  # where nothing can import it
    assert not (tmp_path / "one").exists()
    monkeypatch.syspath_prepend(str(tmp_path))  # as Python has the folder of a script
    runpy.run_path(str(script), run_name="__main__")
    chain, rewarded = map(agents.load, out)
    assert (chain.algo, chain.updates) == ("script_of_mine:Chain", 1)
    assert rewarded.run_config().config["reward"] == "script_of_mine:fall"


def test_a_reward_without_a_name_is_refused_before_training(tmp_path):
    config = agents.ReinforceConfig(reward=lambda before, after, first, second: after.error)
    learner = agents.Reinforce("HTM-Trees-v0", config, embedding_dim=3)
    with pytest.raises(ValueError, match=r"the reward .*<lambda> cannot be saved.* in a module"):
        learner.train(merges=100, out=tmp_path / "run")
    assert (learner.updates, (tmp_path / "run").exists()) == (0, False)


def test_an_error_of_ones_own_code_shows_its_place(tmp_path, monkeypatch, capsys):
    (tmp_path / "failing_of_mine.py").write_text(
        "from agents import Learner\n"
        "class Failing(Learner):\n"
        "    def update(self, progress):\n"
        "        return int('no number')\n"
        "    def plan(self, batch, generator, *, greedy):\n"
        "        return batch.merges\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ["--env", "trees7", "--algo", "failing_of_mine:Failing", "--merges", 100]
    train(*given, out=tmp_path / "one", status=1)
    shown = capsys.readouterr().err
    assert "'no number' (HTM_TRACEBACK=1 shows where)" in shown and "Traceback" not in shown
    monkeypatch.setenv("HTM_TRACEBACK", "1")
    train(*given, out=tmp_path / "two", status=1)
    assert "return int('no number')" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nothing")]) == 1
    assert "HTM_TRACEBACK" not in capsys.readouterr().err.splitlines()[-1]


class Wrong(Learner):
    """Counts and returns as it is told."""

    returned: object = {"train/nmse": 1.0}
    planned: object = None
    counts = (1, 1)

    def update(self, progress):
        self.updates += self.counts[0]
        self.merges_made += self.counts[1]
        return self.returned

    def plan(self, batch, generator, *, greedy):
        return self.planned


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"returned": None}, r"Wrong.update returned None; expected a dict of numbers"),
        ({"returned": {"train/nmse": "low"}}, r"Wrong.update returned \{'train/nmse': 'low'\}"),
        ({"counts": (0, 1)}, "Wrong.update left self.updates at 0; expected 1 more"),
        ({"counts": (1, 0)}, "Wrong.update left self.merges_made as it was 20 times in a row"),
    ],
)
def test_an_update_that_breaks_its_promise_is_told(wrong, message):
    learner = type("Wrong", (Wrong,), wrong)("HTM-Trees-v0", embedding_dim=3)
    with pytest.raises(ValueError, match=message):
        learner.train(merges=1000)


@pytest.mark.parametrize("merges", [None, torch.zeros(3, 2), torch.zeros(2, 6, 2)])
def test_a_plan_of_anything_but_merges_is_told(merges):
    learner = type("Wrong", (Wrong,), {"planned": merges})("HTM-Trees-v0", embedding_dim=3)
    for asked in (
        lambda: learner.evaluate(learner.task.dataset("test"), 2),
        lambda: learner.embed(learner.sample(1).tokens),
    ):
        with pytest.raises(ValueError, match=r"Wrong.plan returned .*int64 of shape \(., P - 1, 2"):
            asked()


def test_a_learner_of_ones_own_is_compared(examples, tmp_path):
    names = ["own_learner:CrossEntropy:again", "reinforce"]
    small = {"autoencoder": {"hidden_dim": 8}, "batch_size": 4}
    given = ["--envs", "HTM-Trees-v0", "--env-kwargs", '{"HTM-Trees-v0": {"heights": [2]}}']
    given += ["--algos", ",".join(names), "--seeds", "1", "--merges", "100"]
    given += ["--algo-options", json.dumps(dict.fromkeys(names, small)), "--out", str(tmp_path)]
    assert main(["compare", *given]) == 0
    assert main(["compare", *given]) == 0  # finished runs are known again
    with open(tmp_path / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert {row["algo"] for row in rows} == set(names)
    assert json.loads(rows[-1]["options"])["autoencoder.hidden_dim"] == 8
    folders = {path.name for path in (tmp_path / "runs" / "HTM-Trees-v0").iterdir()}
    assert folders == {"own_learner-CrossEntropy:again-0", "reinforce-0"}


def test_code_that_lies_in_the_folder_of_a_run_is_never_run(tmp_path, monkeypatch, capsys):
    run = train("--env", "trees7", "--algo", "chain", "--merges", 100, *TINY, out=tmp_path / "run")
    (run / "planted.py").write_text("raise SystemExit('it ran')")
    config = read_json(run / "config.json")
    monkeypatch.chdir(run)
    for field, name in (("algo", "planted:Mine"), ("env", "planted:Mine-v0")):
        write_json(run / "config.json", config | {field: name})
        assert main(["evaluate", "."]) == 1
        assert "a run is data" in capsys.readouterr().err
        monkeypatch.syspath_prepend(str(run))
        with pytest.raises(ValueError, match="the module lies in that folder"):
            load_learner(run)
    assert "planted" not in sys.modules


def test_what_is_no_algorithm_is_refused(tmp_path, capsys):
    given = ["--env", "trees7", "--algo", "json:JSONDecoder", "--merges", 100]
    train(*given, out=tmp_path / "run", status=2)
    assert "JSONDecoder" in capsys.readouterr().err


# ---------------------------------------------------------------- a reward


def test_a_reward_of_ones_own_by_its_name(examples, tmp_path):
    small = [*TINY, "--set", "policy_hidden_dim=8", "--set", "demonstration_share=[[0,0]]"]
    given = ["--env", "trees7", "--algo", "reinforce", "--reward", "own_reward:near"]
    run = train(*given, "--merges", 200, *small, out=tmp_path / "run")
    assert json.loads((run / "config.json").read_text())["config"]["reward"] == "own_reward:near"
    agent = agents.load(run)
    assert agent.run_config().config["reward"] == "own_reward:near"
    assert agent.update(0.5)["train/return"] < 0  # squared distances with a minus


def test_the_object_of_the_example_pays_the_same_by_episodes(examples):
    from own_reward import Near, near

    learners = [
        agents.Reinforce("HTM-Trees-v0", agents.ReinforceConfig(batch_size=4, reward=reward))
        for reward in (Near(), near)
    ]
    paid = [learner.update(0.0)["train/return"] for learner in learners]
    assert paid[0] == pytest.approx(paid[1], rel=1e-4)


def test_a_reward_that_is_an_object_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text(
        "class Fall:\n"
        "    def step(self, made):\n"
        "        return made.before.error - made.after.error\n"
        "    def episode(self, episodes):\n"
        "        return episodes.error_falls\n"
        "fall = Fall()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"reward": "rewards_of_mine:fall", "autoencoder": {"hidden_dim": 8}}
    run = RunConfig("HTM-Trees-v0", embedding_dim=4, algo="reinforce", config=options)
    learner = build_learner(run)
    assert not learner.reward.is_fall_of_error  # of one's own, so that nothing is known of it
    assert learner.run_config().config["reward"] == "rewards_of_mine:fall"
    options["reward"] = "rewards_of_mine:Fall"
    with pytest.raises(ValueError, match=r"the class Fall; expected an object of it, as Fall\(\)"):
        build_learner(run)


@pytest.mark.parametrize("algo", ["replay", "ppo"])
def test_learners_that_reward_anew_take_functions(algo):
    asked = []

    def fall(before, after, first, second):
        asked.append(len(first))
        return before.error - after.error

    classes = {"replay": agents.ReplayReinforce, "ppo": agents.PPOLearner}
    changes = {"autoencoder": {"hidden_dim": 8}, "demonstration_share": [[0.0, 0.0]]}
    changes |= {"n_envs": 4} if algo == "ppo" else {"batch_size": 4}
    base = configured(algo, changes)
    own, plain = (
        classes[algo]("HTM-Trees-v0", type(base)(**{**vars(base), **more}), embedding_dim=4)
        for more in ({"reward": fall, "failure": 0.0}, {"reward": "incremental", "failure": 0.0})
    )
    paid = [learner.update(0.0)["train/return"] for learner in (own, plain)]
    assert asked and paid[0] == pytest.approx(paid[1], rel=1e-4)


# ---------------------------------------------------------------- data


def test_data_of_ones_own_under_an_id_of_its_own(examples, tmp_path):
    env = gym.make("own_dataset:Rings-v0", points=3, embedding_dim=5)
    observation, _ = env.reset(seed=0)
    assert observation["tokens"].shape == (6, 5)
    copies = gym.make_vec("Rings-v0", num_envs=2, embedding_dim=5)
    assert copies.reset(seed=0)[0]["tokens"].shape == (2, 8, 5)
    flat = gym.make("own_dataset:Rings-Flat-v0", points=3, embedding_dim=5)
    assert np.array_equal(flat.reset(seed=0)[0][:30], observation["tokens"].ravel())
    given = ["--env", "own_dataset:Rings-v0", "--algo", "structure_sorted", "--merges", 200]
    given += ["--env-kwargs", '{"points": 3}', "--embedding-dim", 4, *TINY]
    run = train(*given, out=tmp_path / "run")
    assert json.loads((run / "config.json").read_text())["env"] == "own_dataset:Rings-v0"
    assert json.loads((run / "result.json").read_text())["test"]["tree_recall"] == 1.0
    assert agents.load(run).dataset.max_tokens == 6
    copies = agents.HTMVecEnv("own_dataset:Rings-v0", 2, points=3, embedding_dim=5)
    assert copies.reset()["tokens"].shape == (2, 6, 5)


def test_drawn_episodes_follow_their_keys_and_splits(examples):
    train_split = make_dataset("own_dataset:Rings-v0", points=3)
    keys = np.array([5, 0, 5], np.int64)
    batch = train_split.episodes(keys)
    assert torch.equal(batch.tokens[0], batch.tokens[2])
    assert torch.equal(batch.tokens[1], train_split.fixed(1).tokens[0])
    test_split = make_dataset("Rings-v0", "test", points=3)
    assert not torch.equal(test_split.fixed(1).tokens, train_split.fixed(1).tokens)
    assert torch.equal(test_split.mean, train_split.mean)
    assert batch.clades[0].sum(1).tolist() == [2, 3, 2, 3, 6]
    radius = np.linalg.norm(batch.tokens - batch.tokens.mean(1, keepdim=True), axis=2)
    assert radius.max() > 0.6


class Odd(htm_env.DrawnDataset):
    max_tokens, token_dim = 3, 2

    def __init__(self, split="train", draws=((0, 0), (1, 1)), merges=None):
        super().__init__(split)
        self.drawn, self.has_hierarchy = draws, merges is not None
        self.merges = merges

    def draw(self, generator):
        return (self.drawn, self.merges) if self.has_hierarchy else self.drawn


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"draws": np.zeros((4, 2))}, r"shape \(4, 2\); expected \(n, 2\) with n from 1 to 3"),
        ({"draws": np.zeros((2, 3))}, r"shape \(2, 3\)"),
        ({"draws": np.full((2, 2), np.nan)}, "not finite"),
        ({"merges": [(0, 0)]}, "make no tree of its 2 tokens"),
        ({"merges": [(0, 2)]}, "make no tree"),
        ({"merges": []}, "make no tree"),
    ],
)
def test_what_cannot_be_drawn_is_told(keywords, message):
    with pytest.raises(ValueError, match=message):
        Odd(**keywords).fixed(1)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"max_tokens": 3}, "Untold has no token_dim; expected a number"),
        ({"token_dim": 3}, "Untold has no max_tokens; expected a number"),
        ({"max_tokens": 2.5, "token_dim": 3}, "max_tokens of Untold is 2.5: expected a whole"),
        ({"max_tokens": 3, "token_dim": 3, "kind": "dots"}, "unknown kind 'dots'; choose from"),
        ({"max_tokens": 3, "token_dim": 3, "kind": "segments"}, "does not fit tokens of 3 numbers"),
    ],
)
def test_what_drawn_data_does_not_say_is_told(attributes, message):
    untold = type("Untold", (htm_env.DrawnDataset,), {"draw": lambda *_: None, **attributes})
    with pytest.raises(ValueError, match=message):
        untold.make("train")


def test_an_id_is_registered_once():
    for name in ("HTM-Trees-v0", "CartPole-v1"):
        with pytest.raises(ValueError, match=f"the id '{name}' is taken"):
            htm_env.register(name, dataset=Odd)
    for dataset, given in (
        (np.ndarray, "the class ndarray without 'make'"),
        (htm_env.DrawnDataset, "the class DrawnDataset without 'draw'"),
        (np.zeros((2, 3)), "an object of type ndarray"),
    ):
        message = rf"dataset of 'Odd-v0' is {given}; expected an htm_env\.Dataset class"
        with pytest.raises(ValueError, match=message):
            register_dataset("Odd-v0", dataset, {})
    for name in ("Rings", "Rings-v", "my module:Rings-v0"):
        with pytest.raises(ValueError, match="expected a name and a version, as in 'Name-v0'"):
            htm_env.register(name, dataset=Odd)
    with pytest.raises(ValueError, match="unknown id 'htm_env:Odd-v0'"):
        make_dataset("htm_env:Odd-v0")
    with pytest.raises(ValueError, match="No module named 'nowhere_at_all'"):
        make_dataset("nowhere_at_all:Odd-v0")
