"""Wrong values for every argument: one clear error, and everything is as it was before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_cli import only_line, status

from agents import load
from agents.config.dataclasses_json import flattened, nested
from agents.evaluation.sets import PlacedSets
from agents.learners.reinforce import Reinforce
from agents.registry import ALGORITHMS, configured
from htm_env.datasets import dataset_class, make_dataset
from htm_env.env import HTMEnv
from htm_env.simulator import EnvConfig
from htm_env.vector_env import HTMVectorEnv

SMALL = {"autoencoder": "untrained", "embedding_dim": 4}
VALUES = (
    *(None, True, -1, 0, 0.5, 7, 2**62, 10**30, float("nan"), float("inf"), 1e300, -1e300),
    *("", "x", "7", "\x1b[31m\n", b"x", [], {}, [1, "a"], [1, 2.7, 3], {"a": 1}, object(), int),
    *(np.array([1, 2]), np.array(["a"]), np.float64(2.5), torch.ones(2), (1.0, float("nan"))),
)
EXPECTED = (ValueError, TypeError, FileNotFoundError, gym.error.Error)


def plain(value: Any) -> Any:
    """The same, comparable: the bytes of tensors and arrays."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.asarray(value)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- environments


def state_of(env: Any) -> Any:
    if hasattr(env, "num_envs"):
        return plain(env.state())
    population = env.population
    return plain(
        [
            env.np_random.bit_generator.state,
            [population.embeddings, population.forest.slots, population.forest.merges],
            list(population.batch[:4]),
        ]
    )


NOT_SEEDS = (-1, 2.7, "7", True, float("nan"), [1, 2], b"7")
NOT_KEYS = (-1, 1.9, "7", True, None, 2**62, float("nan"), [1, 2, 3, 4], b"7", {})
RESETS = [
    *({"seed": seed} for seed in (*NOT_SEEDS, [1, 2.7, 3], [1, -2, 3], ["1", 2, 3], [1, True, 2])),
    *({"seed": 5, "options": {"key": key}} for key in NOT_KEYS),
    *({"seed": [5, 6, 7], "options": {"key": [1, key, 3]}} for key in (2.5, -2, "2")),
]
MASKS = (1, [True, False, True], np.zeros(3, bool), np.ones(2, bool), np.ones(3, int), "x", None)
STEPS = (-1, 10**6, 2**62, 1.5, "0", None, [0, 1], np.array([0.0]), float("nan"))


def refuses(call: Callable[[], Any], env: Any) -> None:
    before = state_of(env)
    with pytest.raises(EXPECTED):
        call()
    assert state_of(env) == before


def test_a_refused_reset_or_step_changes_nothing():
    env = gym.make("HTM-Trees-v0", heights=[2], **SMALL, disable_env_checker=True).unwrapped
    env.reset(seed=3)
    for arguments in RESETS:
        refuses(lambda arguments=arguments: env.reset(**arguments), env)
    for action in STEPS:
        refuses(lambda action=action: env.step(action), env)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_refused_reset_or_step_of_copies_changes_nothing(mode):
    env = gym.make_vec("HTM-Trees-v0", 3, heights=[2], autoreset_mode=mode, **SMALL).unwrapped
    env.reset(seed=3)
    for arguments in RESETS:
        refuses(lambda arguments=arguments: env.reset(**arguments), env)
    for mask in MASKS:
        refuses(lambda mask=mask: env.reset(seed=4, options={"reset_mask": mask}), env)
    for action in STEPS:
        refuses(lambda action=action: env.step(action), env)
        refuses(lambda action=action: env.step([0, action, 0]), env)


def test_a_reset_that_fails_in_its_data_has_reseeded_no_copy(monkeypatch):
    env = gym.make_vec("HTM-Trees-v0", 3, heights=[2], **SMALL).unwrapped
    env.reset(seed=3)

    def failing(keys):
        raise FileNotFoundError("the data is gone")

    monkeypatch.setattr(env.simulator.dataset, "episodes", failing)
    refuses(lambda: env.reset(seed=4), env)
    some = {"reset_mask": np.array([True, False, True])}
    refuses(lambda: env.reset(seed=[1, 2, None], options=some), env)


# ---------------------------------------------------------------- arguments by name

DATA = np.random.default_rng(0).normal(size=(10, 3, 2))
IDS = {
    "HTM-Trees-v0": {"heights": [2]},
    "HTM-Crosses-v0": {},
    "HTM-Keys-v0": {},
    "HTM-Jets-v0": {},
    "HTM-v0": {"dataset": DATA},
}
OF_ENVIRONMENTS = [field.name for field in fields(EnvConfig) if field.name != "env_id"]


def cases() -> list[tuple[str, str, Any]]:
    names = {env_id: [*dataset_class(env_id).keywords(), "split"] for env_id in IDS}
    names["HTM-Trees-v0"] = [*names["HTM-Trees-v0"], *OF_ENVIRONMENTS, "num_envs"]
    return [(env_id, name, value) for env_id in IDS for name in names[env_id] for value in VALUES]


def made(env_id: str, name: str, value: Any) -> None:
    own = dict(IDS[env_id])
    if name == "num_envs":
        HTMVectorEnv(env_id, num_envs=value, **SMALL, **own)
    elif name in dataset_class(env_id).keywords():
        dataset = make_dataset(env_id, **(own | {name: value}))
        assert dataset.fixed(2).tokens.isfinite().all()
        assert dataset.mean.isfinite().all() and (dataset.std > 0).all()
    else:
        env = HTMEnv(env_id, **{**SMALL, **own, name: value})
        observation, _ = env.reset(seed=0)
        assert np.isfinite(observation["tokens"]).all()


def test_wrong_values_of_every_argument(mutations):
    every, outcomes = cases(), Counter()
    chosen = random.Random(0).sample(every, min(len(every), mutations // 2))
    for env_id, name, value in chosen:
        try:
            made(env_id, name, value)
            outcomes["taken"] += 1
        except EXPECTED:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes[f"{env_id} {name}={value!r}: {type(error).__name__} {error}"[:200]] += 1
    print(f"{len(chosen)} of {len(every)} arguments", dict(outcomes))
    assert set(outcomes) <= {"taken", "refused"}


def test_wrong_values_of_every_option_of_every_algorithm(mutations):
    every = [
        (algo, name, value)
        for algo in ALGORITHMS
        for name in flattened(asdict(configured(algo, {})))
        for value in VALUES
    ]
    outcomes: Counter[str] = Counter()
    for algo, name, value in random.Random(0).sample(every, min(len(every), mutations)):
        try:
            configured(algo, nested({name: value}))
            outcomes["taken"] += 1
        except ValueError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes[f"{algo} {name}={value!r}: {type(error).__name__} {error}"[:200]] += 1
    print(f"options of {len(every)}", dict(outcomes))
    assert set(outcomes) <= {"taken", "refused"}


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1"])
def test_a_seed_that_no_result_could_hold_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed is .*: expected a whole number from 0"):
        Reinforce("HTM-Trees-v0", embedding_dim=4, seed=seed)


@pytest.mark.parametrize("argument", ["sets", "lengths", "present"])
def test_wrong_sets_to_embed(argument):
    dataset, outcomes = make_dataset(DATA), Counter()
    for value in VALUES:
        given = {"sets": DATA[:2], argument: value}
        try:
            PlacedSets.read(dataset=dataset, **given)
            outcomes["taken"] += 1
        except ValueError:
            outcomes["refused"] += 1
        except Exception as error:
            outcomes[f"{argument}={value!r}: {type(error).__name__} {error}"[:200]] += 1
    assert set(outcomes) <= {"taken", "refused"}


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("offset", [1e8, 1.7e9, -1e12])
def test_numbers_that_32_bits_cannot_tell_apart_are_refused(offset):
    with pytest.raises(ValueError, match=r"column 1 has numbers near .* differ by about 0\.\d+"):
        make_dataset(DATA + np.array([0.0, offset]))
    near = make_dataset(DATA + np.array([0.0, 100.0]))
    assert near.std.numpy() == pytest.approx(make_dataset(DATA).std.numpy(), rel=1e-4)


def test_data_without_any_difference_is_refused():
    with pytest.raises(ValueError, match="one and the same token in all of its training rows"):
        make_dataset(np.full((10, 3, 2), 0.1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_action_for_numbers_that_are_not_finite(wrong):
    agent = Reinforce("HTM-Trees-v0", env_kwargs={"heights": [2]}, embedding_dim=4)
    env = gym.make("HTM-Trees-v0", heights=[2], autoencoder=agent.autoencoder)
    observation, _ = env.reset(seed=0)
    assert agent.predict(observation, deterministic=True)[0] in range(6)
    observation["tokens"][1, 2] = wrong
    with pytest.raises(ValueError, match="numbers in 'tokens' that are not finite"):
        agent.predict(observation)


# ---------------------------------------------------------------- names

LONGEST = len("htm: ") + 300
NAMES = ("a\nb.npz", "\x1b[31mred\x1b[0m.npz", "\r\x08x.npz", "\u202eabc.npz", "a b'\"$(x).npz")


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_printed_in_one_line_of_letters(name, tmp_path, capsys):
    path = tmp_path / name
    for command in (
        ["train", "--data", path, "--algo", "chain", "--merges", "40"],
        ["evaluate", path],
        ["compare", "--report", path, "--out", tmp_path / "report"],
        ["train", "--config", path],
    ):
        for content in (None, b"PK\x03\x04" + b"\x1b[2J" * 9):
            if content is not None:
                path.write_bytes(content)
            assert status(*command) in (1, 2)
            line = only_line(capsys.readouterr().err)
            assert line.isprintable() and len(line) <= LONGEST and "HTM_TRACEBACK" not in line
            path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "x", "--\x1b[31mred"],
        ["plot", "x", "--format", "\x1b[2J\u202e"],
        ["train", "--algo", "chain", "--mode", "\x1b[2J"],
        ["\x1b]0;title\x07"],
        ["bench", "\x1b[31mred"],
    ],
)
def test_what_is_no_option_is_printed_with_escapes(command, capsys):
    assert status(*command) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and r"\x1b" in captured.err
    assert all(line.isprintable() for line in captured.err.splitlines())


def test_words_of_a_file_are_not_sent_to_the_terminal(tmp_path, capsys):
    np.savez(tmp_path / "own.npz", tokens=DATA, split=["train"] * 9 + ["\x1b[2J" + "x" * 2000])
    command = ["train", "--data", tmp_path / "own.npz", "--algo", "chain", "--merges", "40"]
    assert status(*command) == 2
    line = only_line(capsys.readouterr().err)
    assert line.isprintable() and len(line) <= LONGEST and "row 9 is of split" in line


def test_a_folder_of_another_kind_is_no_run(tmp_path):
    for content in (None, "", "[]", "{"):
        folder = tmp_path / f"run {content}"
        folder.mkdir()
        if content is not None:
            (folder / "config.json").write_text(content)
        with pytest.raises((ValueError, FileNotFoundError), match=r"config\.json"):
            load(folder)
