"""Random actions, legal and not, in the single and the batched environment in step:
``python -m benchmarks.fuzzed_environment``.

A case is an id, flat ones included, with a reward, a set of candidates, a rule for illegal actions
and an autoreset mode, drawn at random from those that the data allows. Sixteen copies are one
batch, and beside them are as many single environments in Gymnasium's ``SyncVectorEnv``. After every
step both must agree (whole numbers exactly, others within ``1e-5``, or of their size where that is
above 1), and what the environment's docstring promises must hold: who is active, what is legal,
what an action does, when an episode ends, and what it earned.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from benchmarks.measuring import Row
from benchmarks.table import RESULTS, origin, report
from htm_env.env import HTMEnv
from htm_env.registration import FLAT_IDS, IDS
from htm_env.rewards import REWARDS
from htm_env.vector_env import HTMVectorEnv
from htm_env.wrappers.flat import make_flat, make_flat_vector

ACTIONS = 1_000_000
COPIES = 16
STEPS = 400
"""Steps of all copies in one case before the next one is drawn."""
ILLEGAL = 0.15
"""The share of actions that are drawn from all, legal or not."""
MOST_INVALID = 4
"""Illegal actions that cut an episode off."""
PENALTY = -1.0
CLOSE = 1e-5
SETS = [np.random.default_rng(9).normal(size=(2 + row % 6, 3)) for row in range(60)]
"""The data of HTM-v0: 2 to 7 tokens."""
NEAR = {"candidates": "knn", "k": 3}
PAIRS: tuple[dict[str, Any], ...] = ({}, NEAR, {**NEAR, "neighbours": "centroids"})


class Case(NamedTuple):
    """What the copies and the single environments are made with."""

    env_id: str
    reward: str | None
    """None: the id's own."""
    pairs: dict[str, Any]
    invalid_action: str
    mode: AutoresetMode

    def make(self) -> tuple[VectorEnv, VectorEnv]:
        """The batched environment and the single ones; ``ValueError`` where the data forbids it."""
        of = FLAT_IDS.get(self.env_id, self.env_id)
        arguments: dict[str, Any] = {
            **self.pairs,
            "invalid_action": self.invalid_action,
            "max_invalid_actions": MOST_INVALID,
            "invalid_penalty": PENALTY,
        }
        if of != "HTM-Jets-v0":
            arguments["autoencoder"] = "untrained"
        if of == "HTM-v0":
            arguments["dataset"] = SETS
        if self.reward is not None:
            arguments["reward"] = self.reward
        kinds: Any = (make_flat, make_flat_vector) if of != self.env_id else (HTMEnv, HTMVectorEnv)
        single, batched = kinds
        together = batched(of, num_envs=COPIES, autoreset_mode=self.mode, **arguments)
        one = partial(single, of, **arguments)
        return together, SyncVectorEnv([one] * COPIES, copy=False, autoreset_mode=self.mode)


def cases(env_id: str, rng: np.random.Generator) -> Iterator[Case]:
    """All that the data of an id allows, in a random order, again and again."""
    rewards = [None, *REWARDS]
    rules, modes = ("penalize", "remap"), list(AutoresetMode)
    every = [Case(env_id, *parts) for parts in itertools.product(rewards, PAIRS, rules, modes)]
    while every:
        for number in rng.permutation(len(every)):
            yield every[number]


@dataclass
class Found:
    """What came of the actions on one id."""

    env_id: str
    actions: int = 0
    illegal: int = 0
    episodes: int = 0
    cut: int = 0
    cases: set[str] = field(default_factory=set)
    largest: float = 0.0
    """The largest difference between single and batched, in units of max(1, size)."""
    broken: list[str] = field(default_factory=list)

    def row(self) -> Row:
        return {
            "id": self.env_id,
            "actions": self.actions,
            "illegal": self.illegal,
            "episodes": self.episodes,
            "cut off": self.cut,
            "cases": len(self.cases),
            "largest difference": self.largest,
            "broken": len(self.broken),
        }


class Course:
    """One case: two environments in step, and what is known of them."""

    def __init__(self, case: Case, found: Found, seed: int) -> None:
        self.case, self.found = case, found
        self.together, self.singles = case.make()
        found.cases.add(str(case))
        observation, info = self.compare(
            self.together.reset(seed=seed), self.singles.reset(seed=seed)
        )
        self.ended, self.returns = np.zeros(COPIES, bool), np.zeros(COPIES)
        self.invalid = np.zeros(COPIES, int)
        self.take(observation, info, np.ones(COPIES, bool))

    def take(self, observation: Any, info: dict[str, Any], started: np.ndarray) -> None:
        """What is shown now; of the copies that have ``started``, it begins an episode."""
        self.mask, self.active = info["action_mask"].astype(bool), info["num_active"].copy()
        self.first = np.where(started, info["error"], getattr(self, "first", 0.0))
        self.returns[started], self.invalid[started] = 0.0, 0
        if isinstance(observation, dict):
            leaves = observation["leaf_counts"].sum(1)
            self.leaves = np.where(started, leaves, getattr(self, "leaves", leaves))
            self.check("leaves are neither made nor lost", leaves == self.leaves)
            self.check("active", observation["active"].sum(1) == self.active)
            empty = observation["active"] == 0
            self.check("empty slots", not observation["tokens"][empty].any())
            self.check("empty slots", not observation["leaf_counts"][empty].any())
            self.check("finite", np.isfinite(observation["tokens"]).all())
            if not self.case.pairs:
                pairs = self.active * (self.active - 1)
                ongoing = self.active > 1
                self.check("legal pairs", self.mask.sum(1)[ongoing] == pairs[ongoing])

    def step(self, rng: np.random.Generator) -> None:
        """Act in every copy, and compare and check all that comes back."""
        actions = self.chosen(rng)
        legal = self.mask[np.arange(COPIES), actions]
        if self.case.mode is AutoresetMode.DISABLED and self.ended.any():
            options = {"reset_mask": self.ended}
            shown = self.compare(
                self.together.reset(options=options), self.singles.reset(options=options)
            )
            fresh, self.ended = self.ended, np.zeros(COPIES, bool)
            known = self.info_of_all(shown[1], fresh)
            self.take(shown[0], known, fresh)
            return
        before, alive = self.active, ~self.ended
        shown = self.compare(self.together.step(actions), self.singles.step(actions))
        observation, rewards, terminated, truncated, info = shown
        finished = terminated | truncated
        if self.case.mode is AutoresetMode.SAME_STEP and finished.any():
            last = {
                key: np.where(finished, info["final_info"][key], info[key])
                for key in ("num_active", "invalid", "executed_action", "error")
            }
        else:
            last = info
        self.check_step(actions, legal, before, alive, rewards, terminated, truncated, last)
        started = finished if self.case.mode is AutoresetMode.SAME_STEP else ~alive
        if self.case.mode is AutoresetMode.NEXT_STEP:
            self.check("a new episode earns nothing", not rewards[~alive].any())
        self.ended = finished & (self.case.mode is not AutoresetMode.SAME_STEP)
        self.take(observation, info, started)

    def chosen(self, rng: np.random.Generator) -> np.ndarray:
        """A legal action each, or any."""
        weights = rng.random(self.mask.shape) * self.mask
        anything = rng.integers(self.mask.shape[1], size=COPIES)
        return np.where(rng.random(COPIES) < ILLEGAL, anything, weights.argmax(1))

    def info_of_all(self, info: dict[str, Any], fresh: np.ndarray) -> dict[str, Any]:
        """After a reset of some copies: what is known of the others is as it was."""
        return {
            "action_mask": np.where(fresh[:, None], info["action_mask"], self.mask),
            "num_active": np.where(fresh, info["num_active"], self.active),
            "error": info["error"],
        }

    def check_step(
        self,
        actions: np.ndarray,
        legal: np.ndarray,
        before: np.ndarray,
        alive: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        last: dict[str, Any],
    ) -> None:
        """What an action does, in the copies that were ``alive`` before it."""
        remaps = self.case.invalid_action == "remap"
        merged = legal | remaps
        self.found.actions += int(alive.sum())
        self.found.illegal += int((alive & ~legal).sum())
        self.found.episodes += int(terminated.sum())
        self.found.cut += int(truncated.sum())
        self.invalid += alive & ~merged
        self.returns += np.where(alive & merged, rewards, 0.0)
        made = last["executed_action"]
        self.check("finite", np.isfinite(rewards).all())
        self.check("invalid", (last["invalid"] == ~legal)[alive])
        self.check("one merge", (last["num_active"] == before - merged)[alive])
        self.check("executed", ((made == actions) == legal)[alive])
        self.check("executed", ((made >= 0) == merged)[alive])
        self.check("executed is legal", self.mask[np.arange(COPIES), made][alive & merged])
        self.check("terminated", (terminated == (last["num_active"] == 1))[alive])
        self.check("truncated", (truncated == (self.invalid >= MOST_INVALID))[alive])
        penalised = alive & ~merged
        self.check("penalty", np.isclose(rewards[penalised], PENALTY / MOST_INVALID))
        if self.case.reward in ("incremental", "terminal"):
            earned = self.first - last["error"]
            near = np.isclose(self.returns, earned, rtol=1e-4, atol=1e-4)
            self.check("the return is the first error minus the last", near[terminated])

    def check(self, what: str, holds: Any) -> None:
        if not np.all(holds):
            self.found.broken.append(f"{what}: {self.case}")

    def compare(self, mine: Any, theirs: Any) -> Any:
        """Note where the two differ; returns the first."""
        self._compare(mine, theirs, "")
        return mine

    def _compare(self, mine: Any, theirs: Any, place: str) -> None:
        if theirs is None or mine is None:
            self.check(f"none {place}", theirs is mine)
        elif isinstance(theirs, dict):
            here = theirs.get("_action_mask")
            self.check(f"keys {place}", mine.keys() == theirs.keys())
            for key in mine.keys() & theirs.keys():
                if key == "action_mask" and here is not None:  # ours are true where theirs are 0
                    self._compare(mine[key][here], theirs[key][here], f"{place}/{key}")
                else:
                    self._compare(mine[key], theirs[key], f"{place}/{key}")
        elif isinstance(theirs, tuple | list) or np.asarray(theirs).dtype.hasobject:
            self.check(f"length {place}", len(mine) == len(theirs))
            for own, other in zip(mine, theirs, strict=True):
                self._compare(own, other, place)
        elif np.issubdtype(np.asarray(theirs).dtype, np.floating):
            mine, theirs = (np.asarray(value, np.float64) for value in (mine, theirs))
            differences = np.abs(mine - theirs) / np.maximum(1.0, np.abs(theirs))
            largest = float(differences.max(initial=0.0))
            self.found.largest = max(self.found.largest, largest)
            self.check(f"single and batched {place}", largest <= CLOSE)
        else:
            self.check(f"single and batched {place}", np.array_equal(mine, theirs))

    def close(self) -> None:
        self.together.close()
        self.singles.close()


def fuzz(env_id: str, actions: int, seed: int = 0, steps: int = STEPS) -> Found:
    """At least that many random actions on one id, so many steps in one case after the other."""
    rng = np.random.default_rng([seed, len(env_id), *env_id.encode()])
    found = Found(env_id)
    for case in cases(env_id, rng):
        if found.actions >= actions or len(found.broken) > 100:
            return found
        try:
            course = Course(case, found, int(rng.integers(2**31)))
        except ValueError:  # a reward that the data does not have
            continue
        for _ in range(steps):
            course.step(rng)
        course.close()
    raise AssertionError("there is no end of cases")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actions", type=int, default=ACTIONS, help="of all ids together")
    parser.add_argument("--ids", nargs="*", default=[*IDS, *FLAT_IDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    given = sys.argv[1:] if arguments is None else arguments
    made_by = origin("benchmarks.fuzzed_environment", given)
    rows = []
    for env_id in options.ids:
        started = time.process_time()
        found = fuzz(env_id, -(-options.actions // len(options.ids)), options.seed)
        rows.append(found.row())
        seconds = time.process_time() - started
        print(f"{env_id}: {found.actions} actions, {seconds:.0f} s", file=sys.stderr, flush=True)
        for line in dict.fromkeys(found.broken):
            print(f"broken: {line}", file=sys.stderr)
        report("fuzzed_environment", rows, options.out, made_by=made_by)  # so far


if __name__ == "__main__":
    main()
