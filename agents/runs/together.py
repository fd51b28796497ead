"""One run of several processes: the first writes it, the others learn with it.

The first process, rank 0, has the folder, the logs, the scores and the pictures. The others get
the configuration and the state from it, and hand it their states for its checkpoints: of each what
differs from the first's, such as random numbers and stored episodes, but not the weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from agents.config.dataclasses_json import config_from_dict
from agents.config.run import RunConfig
from agents.optim.ranks import Processes, Ranks
from agents.runs.checkpoint import as_bytes, from_bytes
from agents.runs.data import recorded_data
from agents.runs.interruption import stop_requests
from agents.runs.loop import CheckpointDue, Trainable, Training
from htm_env.datasets import Dataset

State = dict[str, Any]


@runtime_checkable
class Joinable(Trainable, Protocol):
    """A learner of which several processes may have a copy."""

    dataset: Dataset
    device: torch.device
    ranks: Ranks

    def join(self, processes: Processes) -> None: ...

    def state(self) -> State: ...

    def restore(self, state: State) -> None: ...


def check_ranks(
    path: Path, state: State | None, recorded: int | None, processes: Processes | None
) -> None:
    """Raise ``ValueError`` where another number of ranks began a run than continues it.

    ``recorded`` is the number that began it, which counts where there is no checkpoint; None where
    it is not known.
    """
    count = 1 if processes is None else processes.count
    began = (recorded or count) if state is None else 1 + len(state["ranks"])
    if began != count:
        command = "htm train" if began == 1 else f"torchrun --nproc-per-node {began} ..."
        raise ValueError(
            f"{path} is of {began} processes that learn together, and this is {count}: expected as "
            f"many, since each goes on with its own random numbers and episodes ({command})"
        )


def begin(learner: Joinable, processes: Processes, run: RunConfig, state: State | None) -> None:
    """Let the others begin with the first: it has the configuration and the checkpoint, if any.

    Raises ``ValueError`` for a learner that learns in one process, or whose data is in fewer
    shards, as all others do too, and ``ConnectionError`` where the others do not come.
    """
    processes.connect(learner.device)
    told = {"run": run.as_dict(), "data": recorded_data(learner.dataset)}
    processes.broadcast(json.dumps(told).encode())
    processes.broadcast(as_bytes(state))
    learner.join(processes)  # last: what it refuses is refused by all, and none waits for another


def gather(processes: Processes, state: State) -> list[State]:
    """Of the state of every process but the first, what differs from the first's; nothing in the
    others."""
    states = [from_bytes(each) for each in processes.gather(as_bytes(state))]
    return [difference(other, states[0]) for other in states[1:]]


def assist(build: Callable[[RunConfig], Joinable], processes: Processes) -> None:
    """The part of a process that is not the first, from its start to the end of the budget.

    ``build`` makes the untrained learner of a configuration. Raises ``ValueError`` for other data
    than the first process has, and what a run raises.
    """
    processes.connect()
    told = json.loads(processes.broadcast())
    state = from_bytes(processes.broadcast())
    run = config_from_dict(RunConfig, told["run"])
    learner = build(run)
    data = json.loads(json.dumps(recorded_data(learner.dataset)))
    if data != told["data"]:
        raise ValueError(
            f"rank {processes.index} reads other data than rank 0; expected the same file"
        )
    learner.join(processes)
    assert run.budget is not None  # the first process trains under it
    training = Training(learner, run.budget, ranks=learner.ranks)
    if state is not None:
        differs = state["ranks"][processes.index - 1]
        own = with_difference({name: state[name] for name in ("learner", "training")}, differs)
        learner.restore(own["learner"])
        training.restore(own["training"])
    with stop_requests() as requested:
        for event in training.events(requested):
            if isinstance(event, CheckpointDue):
                gather(processes, {"learner": learner.state(), "training": training.state()})
        requested.obey(elsewhere=training.stopped)


def difference(value: Any, other: Any) -> State:
    """What of a nested state differs from another: ``{}`` for nothing, ``{"is": value}`` for
    another value, and ``{"in": {key: ...}}`` for dicts with the same keys."""
    if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
        inside = {key: difference(value[key], other[key]) for key in value}
        inside = {key: found for key, found in inside.items() if found}
        return {"in": inside} if inside else {}
    return {} if _same(value, other) else {"is": value}


def with_difference(other: Any, found: State) -> Any:
    """The value of which :func:`difference` found this difference to another."""
    if "is" in found:
        return found["is"]
    inside = found.get("in", {})
    if not inside:
        return other
    return {key: with_difference(other[key], inside.get(key, {})) for key in other}


def _same(value: Any, other: Any) -> bool:
    """True <--> they are the same to the last bit."""
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        if (value.dtype, value.shape) != (other.dtype, other.shape):
            return False
        return torch.equal(*(each.reshape(-1).view(torch.uint8) for each in (value, other)))
    if isinstance(value, list):
        return len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return repr(value) == repr(other)  # 0.0 is not -0.0
