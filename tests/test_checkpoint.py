"""States survive on the disk exactly, or not at all."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.runs.checkpoint import load_state, save_state
from htm_env.files import atomic_write_text

tensors = st.sampled_from(
    [
        torch.tensor(1.5),
        torch.empty(0, 3),
        torch.arange(6).view(2, 3).t(),  # not contiguous
        torch.tensor([True, False]),
        torch.tensor([math.nan, -0.0, math.inf]),
        torch.arange(4, dtype=torch.uint8),
        torch.tensor([1.0], dtype=torch.float64),
    ]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text() | st.integers()
states = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner),
    max_leaves=12,
)


def same(read: Any, written: Any) -> bool:
    """Equal to the last bit, with lists where tuples were."""
    if isinstance(written, torch.Tensor):
        return (
            isinstance(read, torch.Tensor)
            and read.dtype == written.dtype
            and read.shape == written.shape
            and read.numpy().tobytes() == written.numpy().tobytes()
        )
    if isinstance(written, dict):
        return list(read) == list(written) and all(same(read[k], written[k]) for k in written)
    if isinstance(written, list | tuple):
        return len(read) == len(written) and all(map(same, read, written))
    if isinstance(written, float):
        both_nan = math.isnan(written) and math.isnan(read)
        return isinstance(read, float) and (
            both_nan or np.float64(read).tobytes() == np.float64(written).tobytes()
        )
    return type(read) is type(written) and read == written


@given(state=states)
def test_any_state_reads_back_exactly(tmp_path_factory, state):
    path = tmp_path_factory.getbasetemp() / "state.safetensors"
    save_state(path, state)
    assert same(load_state(path), state)


def test_keys_that_look_alike_stay_apart(tmp_path):
    state = {
        "a/b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        1: torch.tensor(3),
        "1": torch.tensor(4),
        "__metadata__": torch.tensor(5),
    }
    save_state(tmp_path / "s", state)
    assert same(load_state(tmp_path / "s"), state)


def test_optimizer_and_generator_continue_from_a_file(tmp_path):
    """What resuming is: the next step and the next draw are those of the one that never stopped."""

    def make() -> tuple[torch.nn.Linear, torch.optim.Adam, torch.Generator]:
        generator = torch.Generator().manual_seed(3)
        layer = torch.nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
        return layer, torch.optim.Adam(layer.parameters()), generator

    def step(layer, adam, generator):
        layer(torch.randn(4, 2, generator=generator)).square().sum().backward()
        adam.step()
        adam.zero_grad()

    layer, adam, generator = make()
    step(layer, adam, generator)
    state = {"l": layer.state_dict(), "a": adam.state_dict(), "g": generator.get_state()}
    save_state(tmp_path / "s", state)
    step(layer, adam, generator)

    other, other_adam, other_generator = make()
    read = load_state(tmp_path / "s")
    other.load_state_dict(read["l"])
    other_adam.load_state_dict(read["a"])
    other_generator.set_state(read["g"])
    step(other, other_adam, other_generator)
    assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("state", [{"a": object()}, {("a",): 1}, {True: 1}, [np.int64(3)]])
def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path, state):
    with pytest.raises(ValueError, match="expected"):
        save_state(tmp_path / "s", state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("crash_in", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, crash_in
):
    save_state(tmp_path / "s", {"version": 1})

    def crash(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, crash_in, crash)
    with pytest.raises(OSError, match="no space"):
        save_state(tmp_path / "s", {"version": 2})
    assert load_state(tmp_path / "s") == {"version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


KILLED = """
import os, sys
from htm_env.files import atomic_write_text
os.fsync = lambda descriptor: os._exit(9)
atomic_write_text(sys.argv[1], "half")
"""


def test_what_a_killed_writer_left_is_gone_after_the_next_write(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a"], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 1  # the leftover
    atomic_write_text(tmp_path / "b", "another file")
    assert len(list(tmp_path.iterdir())) == 2
    atomic_write_text(tmp_path / "a", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    save_state(tmp_path / "cut", {"weights": torch.zeros(100)})
    content = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(content[:keep])
    with pytest.raises(ValueError, match="cut"):
        load_state(tmp_path / "cut")


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_state(tmp_path / "nowhere")
    torch.save({"a": 1}, tmp_path / "pickle")
    with pytest.raises(ValueError, match="pickle"):
        load_state(tmp_path / "pickle")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="foreign"):
        load_state(tmp_path / "foreign")
