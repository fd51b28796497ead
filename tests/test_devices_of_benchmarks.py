"""Throughput benchmarks measure the device that they are told, and wait for it."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.cli import main as htm
from benchmarks import (
    against_reference,
    candidates,
    environment,
    generation,
    joint_training,
    limit,
    matrix_products,
    measuring,
    neighbour_lists,
    running,
    scaling,
    table,
    time_to_error,
)
from benchmarks.__main__ import main as bench_main

TREES7 = {"env": "HTM-Trees-v0", "geometry": {"heights": (3,)}, "trees": 4, "target": 5}


@pytest.fixture
def waits(monkeypatch) -> list[str]:
    """The names of the devices that were waited for."""
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    return waited


@pytest.fixture
def usable(monkeypatch) -> None:
    """The device ``meta``, which holds no numbers, passes for one that can compute."""
    zeros = torch.zeros

    def pretended(*shape, device="cpu", **options):
        return zeros(*shape, device="cpu" if str(device) == "meta" else device, **options)

    monkeypatch.setattr(torch, "zeros", pretended)


def test_times_are_taken_when_the_device_is_done(waits):
    """After each call; none waits for the processor."""
    measuring.seconds_of(lambda: waits.append("work"), 0.0, "meta")
    assert waits == 3 * ["work", "meta"]
    waits.clear()
    works = {"one": lambda: waits.append("one"), "other": lambda: waits.append("other")}
    measuring.seconds_by_turns(works, 0.0, "meta")
    assert waits == ["one", "other", "meta", *2 * ["one", "meta", "other", "meta"]]
    waits.clear()
    measuring.seconds_of(lambda: waits.append("work"), 0.0)
    assert waits == 3 * ["work"]


def test_the_memory_of_a_device_is_that_of_its_allocator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"meta": 3 * 2**30}.get)
    assert measuring.peak_gigabytes("meta") == 3
    assert 0 < measuring.peak_gigabytes() != 3


def test_products_are_made_where_the_weights_are():
    layer = torch.nn.Linear(3, 2, device="meta")
    seen = matrix_products.rows_seen(lambda: layer(torch.ones(4, 3, device="meta")))
    made = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            made.append(function(*arguments, **(kwargs or {})))
            return made[-1]

    with Seen():
        matrix_products.products(seen)()
    assert {values.device.type for values in made} == {"meta"}


def test_a_table_says_what_it_was_measured_on(tmp_path):
    for device in ("cpu", "meta"):
        table.report("times", [{"ms": 1.0}], tmp_path, device)
        assert json.loads((tmp_path / "times.json").read_text())["machine"]["device"] == device


# ---------------------------------------------------------------- the option


class ReachedError(Exception):
    """Stands in for measuring."""


@pytest.mark.parametrize("name", running.ANYWHERE)
def test_what_is_measured_is_told_the_device(name, monkeypatch, usable):
    module = import_module(f"benchmarks.{name}")
    in_this_process = {"environment": "measure", "generation": "seconds", "merge_rounds": "learned"}

    def reached(*arguments):
        raise ReachedError(arguments)

    if name in in_this_process:
        monkeypatch.setattr(module, in_this_process[name], reached)
    else:
        monkeypatch.setattr(ProcessPoolExecutor, "submit", reached)
    for given, device in (([], "cpu"), (["--device", "meta"], "meta")):
        with pytest.raises(ReachedError) as found:
            module.main(given)
        assert found.value.args[0][-1] == device


@pytest.mark.parametrize("name", running.ANYWHERE)
def test_a_device_that_is_not_there_is_wrong_usage(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        import_module(f"benchmarks.{name}").main(["--device", "abacus"])
    assert stopped.value.code == 2
    assert "device 'abacus' cannot be used here: " in capsys.readouterr().err.splitlines()[-1]


def test_the_device_is_passed_on(monkeypatch, usable):
    commands = []

    def pretended(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pretended)
    assert htm(["bench", "limit", "--quick", "--device", "meta"]) == 0
    assert bench_main(["--device", "meta"]) == 0
    assert bench_main(["text"]) == 0
    first, *others, last = (command[2:] for command in commands)
    assert first == ["benchmarks.limit", *running.QUICK["limit"], "--device", "meta"]
    assert others == [[f"benchmarks.{name}", "--device", "meta"] for name in running.THROUGHPUT]
    assert last == ["benchmarks.text"]


def test_benchmarks_of_the_processor_alone_refuse_a_device(monkeypatch, capsys, usable):
    monkeypatch.setattr(subprocess, "run", None)
    assert htm(["bench", "limit", "text", "--device", "meta"]) == 2
    error = capsys.readouterr().err
    assert "'text' runs on the processor only" in error
    assert str(sorted(running.ANYWHERE)) in error
    assert htm(["bench", "--device", "abacus"]) == 2
    assert "device 'abacus' cannot be used here" in capsys.readouterr().err


# ---------------------------------------------------------------- on every device


PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}


class Products(TorchDispatchMode):
    """The kinds of device that multiply matrices while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
        made = function(*arguments, **(kwargs or {}))
        if function.overloadpacket in PRODUCTS:
            self.devices.add(made.device.type)
        return made


SMALL = joint_training.SIZES[0]._replace(trees=8)
MEASURES = {
    **{
        f"environment, {way}": partial(environment.measure, way, "7", 1, "incremental", 0.01)
        for way in environment.WAYS
    },
    "joint training": partial(joint_training.measure, "reinforce", SMALL, "all", 0.0),
    "limit": partial(limit.shares, 0.0, 4),
    "joint step": partial(limit.joint_steps, 0.0, 4),
    "reference": partial(against_reference.measure, TREES7, against_reference.REFERENCE, 0.0),
    "ours": partial(against_reference.measure, TREES7, "reinforce", 0.0),
    **{way: partial(scaling.measure, way, 16, 0.0) for way in scaling.WAYS},
    "repairs": partial(neighbour_lists.repairs, 16, 0.0),
    "generation": partial(generation.seconds, 7, 4, samples=8),
    "candidates": partial(candidates.measure, "knn", 2, 0, 100, "validation"),
    "time to error": partial(time_to_error.measure, "trees7", "reinforce", 0, 0.2, None),
}

IN_ARRAYS = {"environment, single", "environment, sync"}
"""One episode on the processor is merged in numpy, without a product of torch."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_benchmarks_compute_where_they_are_told(name, device):
    with Products() as products:
        MEASURES[name](device)
    assert products.devices == (set() if device == "cpu" and name in IN_ARRAYS else {device})
