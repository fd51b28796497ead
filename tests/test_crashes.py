"""Killed at any write, a run is one consistent state; two processes never write to one folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_resume
from test_cli import only_line, status

from agents.config.budget import Budget
from agents.config.run import RunConfig
from agents.learners.fixed_order import FixedOrder, FixedOrderConfig
from agents.optim.autoencoder_trainer import AutoencoderConfig
from agents.runs.checkpoint import load_state
from agents.runs.directory import RunDirectory
from agents.runs.lock import locked
from agents.runs.session import open_agent, resume_run, start_run
from htm_env.autoencoder import HTMAutoencoder, tensors_hash

CALLS = ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink")
"""Functions of ``os`` that change what is on the disk; an ``fsync`` ends every write."""


class Quick(FixedOrder):
    """Chains of two samples; its scores and its picture take no time."""

    def evaluate(self, dataset, count=0, *, sampled=True):
        return {"nmse": float(self.autoencoder.token_std.sum()), "mean_height": 1.0}

    def figure(self, dataset):
        from matplotlib.figure import Figure

        return Figure((0.1, 0.1))


DATA = np.random.default_rng(0).normal(size=(20, 3, 2)).astype(np.float32)
BUDGET = Budget(merges=100)
"""Two updates on 32 samples of two merges, a checkpoint after each."""


def build(run: RunConfig | None = None) -> Quick:
    config = FixedOrderConfig(policy="chain", autoencoder=AutoencoderConfig(hidden_dim=2))
    return Quick("HTM-v0", config, env_kwargs={"dataset": DATA}, embedding_dim=2)


def train(folder: Path) -> None:
    start_run(build(), BUDGET, folder, progress_bar=False)


def resume(folder: Path) -> None:
    if RunDirectory(folder).holds_run:
        resume_run(folder, build, progress_bar=False)
    else:
        train(folder)


@contextmanager
def killed_at(moment: int, calls: list[str]) -> Iterator[None]:
    """End this process at once before a call that changes the disk; 0 kills never.

    ``calls`` gets the names of all that were made.
    """

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **keywords: Any) -> Any:
            calls.append(name)
            if len(calls) == moment:
                os._exit(9)
            return call(*arguments, **keywords)

        return counting

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, counted(name, getattr(os, name)))
        yield


def in_a_child(act: Callable[[], None]) -> int:
    """The exit status of a process that does this and ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
        child = os.fork()
    if child == 0:
        try:
            act()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def course_of(folder: Path) -> dict:
    """Everything that a run leaves behind, but for the time that it took and its place."""
    course = test_resume.course_of(folder)
    del course["result"]["env_kwargs"]
    return course


def check_consistent(folder: Path) -> None:
    """What is on the disk is of one moment: an autoencoder of the very state beside it."""
    directory = RunDirectory(folder)
    checkpoints = [path for path in (directory.checkpoint, directory.before) if path.exists()]
    for checkpoint in checkpoints:
        state = load_state(checkpoint / "training.safetensors")
        autoencoder = HTMAutoencoder.load(checkpoint / "autoencoder.safetensors")
        weights = tensors_hash(state["learner"]["autoencoder"])
        assert autoencoder.weights_hash() == weights
    result = directory.load_result() if directory.holds_run else None
    if result is not None:
        assert (
            HTMAutoencoder.load(directory.autoencoder_path).weights_hash()
            == (result["weights_hash"])
        )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict, list[str]]:
    """The course of a run that nothing disturbs, and the calls that it made."""
    folder, calls = tmp_path_factory.mktemp("undisturbed") / "run", []
    train(folder.with_name("first"))  # libraries that are loaded at first use change the disk too
    with killed_at(0, calls):
        train(folder)
    check_consistent(folder)
    return course_of(folder), calls


@pytest.mark.parametrize("part", range(4))
def test_killed_before_any_rename_or_fsync_it_ends_as_if_nothing_had_happened(
    undisturbed, tmp_path, part
):
    expected, calls = undisturbed
    assert calls.count("replace") > 2 * 3  # two files and a folder, twice
    for moment in range(part + 1, len(calls) + 1, 4):
        folder = tmp_path / str(moment)

        def killed(folder=folder, moment=moment):
            with killed_at(moment, []):
                train(folder)

        assert in_a_child(killed) == 9, calls[moment - 1]
        check_consistent(folder)
        resume(folder)
        assert course_of(folder) == expected, f"killed before call {moment}, {calls[moment - 1]}"
        assert not list(folder.rglob(".*.tmp"))


def test_a_resumed_run_that_is_killed_again_goes_on_too(undisturbed, tmp_path):
    expected, calls = undisturbed
    folder = tmp_path / "run"
    for moment in (len(calls) // 2, 14, 5, 9):
        act = train if not folder.exists() else resume

        def killed(act=act, moment=moment):
            with killed_at(moment, []):
                act(folder)

        assert in_a_child(killed) == 9
        check_consistent(folder)
    resume(folder)
    assert course_of(folder) == expected


def test_a_full_disk_is_told_with_its_file_and_leaves_the_checkpoint_before(tmp_path, undisturbed):
    folder = tmp_path / "run"
    sizes = [2_000, 8_000, 40_000]
    for size in sizes:

        def limited(size=size):
            import resource

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                resume(folder)
            except OSError as error:
                os._exit(7 if str(folder) in str(error) else 1)

        assert in_a_child(limited) == 7
        assert not list(folder.rglob("*.tmp"))
        check_consistent(folder)
    resume(folder)
    assert course_of(folder) == undisturbed[0]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, undisturbed):
    folder = tmp_path / "run"
    train(folder)
    for file in ("training", "autoencoder"):
        path = folder / "checkpoint" / f"{file}.safetensors"
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        if file == "training":
            with pytest.warns(UserWarning, match=r"training.*changed.*the checkpoint before it"):
                resume(folder)
        else:
            with pytest.raises(ValueError, match="it was changed after it was written"):
                HTMAutoencoder.load(path)
            resume(folder)
        assert course_of(folder) == undisturbed[0]


def test_saving_that_is_killed_leaves_the_agent_as_it_was_before_or_after(tmp_path):
    learner, calls = build(), []
    learner.save(tmp_path / "agent")
    hashes = {learner.autoencoder.weights_hash()}
    learner.train(merges=70)
    hashes.add(learner.autoencoder.weights_hash())
    shutil.copytree(tmp_path / "agent", tmp_path / "whole")
    with killed_at(0, calls):
        learner.save(tmp_path / "whole")
    for moment in [number for number, name in enumerate(calls, start=1) if name == "replace"]:
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "agent", folder)

        def killed(folder=folder, moment=moment):
            with killed_at(moment, []):
                learner.save(folder)

        assert in_a_child(killed) == 9, calls[moment - 1]
        check_consistent(folder)
        assert open_agent(folder, build).autoencoder.weights_hash() in hashes
    learner.save(folder)
    assert open_agent(folder, build).updates == learner.updates


def test_an_agent_is_saved_over_no_run_and_over_no_other_agent(tmp_path):
    learner, other = build(), build()
    other.task = replace(other.task, seed=1)
    train(tmp_path / "run")
    learner.save(tmp_path / "agent")
    for folder, agent, message in (
        ("run", learner, "run holds a run with its result; save the agent to another folder"),
        ("agent", other, "agent holds another agent; save this one to another folder"),
    ):
        before = files_of(tmp_path / folder)
        with pytest.raises(FileExistsError, match=message):
            agent.save(tmp_path / folder)
        assert files_of(tmp_path / folder) == before
    shutil.rmtree(tmp_path / "agent" / "checkpoint")  # as killed before the first was whole
    other.save(tmp_path / "agent")
    assert RunDirectory(tmp_path / "agent").load_config().seed == 1


def test_what_is_no_state_of_this_run_is_refused(tmp_path):
    learner, other = build(), build()
    learner.save(tmp_path / "a")
    other.task = type(other.task)(**{**vars(other.task), "seed": 1})
    other.save(tmp_path / "b")
    (tmp_path / "b" / "checkpoint").rename(tmp_path / "a" / "checkpoint.before")
    (tmp_path / "a" / "checkpoint").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"is of another run: its seed is 1, and that .* is 0"):
        RunDirectory(tmp_path / "a").load_checkpoint()
    state = learner.state()
    name = next(iter(state["autoencoder"]))
    weights = state["autoencoder"][name]
    for wrong, message in (
        (weights.double(), "expected torch.float32"),
        (weights[..., None], "expected torch.float32"),
        (weights * float("nan"), "not finite"),
        (None, "missing"),
    ):
        tensors = {**state["autoencoder"], name: wrong}
        tensors = {key: value for key, value in tensors.items() if value is not None}
        with pytest.raises(ValueError, match=message):
            learner.restore({**state, "autoencoder": tensors})


# ---------------------------------------------------------------- one process at a time

HOLDER = """
import subprocess, sys
from agents.runs.lock import locked
with locked(sys.argv[1]) as lock:
    child = None
    if len(sys.argv) > 2:
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        child = subprocess.Popen(command, pass_fds=[lock])
    print(child.pid if child else 0, flush=True)
    input()
"""


@contextmanager
def holder(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A process that has the lock of a folder, and the id of its child if it is to have one."""
    command = [sys.executable, "-c", HOLDER, str(folder), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_second_process_is_refused_before_it_writes(tmp_path, capsys):
    begun = tmp_path / "begun"
    train(begun)
    for folder in (tmp_path / "new", begun):
        with holder(folder) as (process, _):
            before = files_of(folder)
            says = rf"{folder.name} is in use by process {process.pid} since 20\d\d-"
            for act in (train, resume, build().save):
                with pytest.raises(ValueError, match=says):
                    act(folder)
            assert files_of(folder) == before
    with holder(begun) as (process, _):
        assert status("train", "--resume", begun) == 1
        assert f"in use by process {process.pid} since" in only_line(capsys.readouterr().err)
    resume(begun)  # the lock of a process that was killed is no lock


def test_a_folder_stays_locked_until_the_last_process_that_has_the_lock_ends(tmp_path):
    with holder(tmp_path, "with child") as (process, child):
        process.kill()
        process.wait()
        says = rf"process {process.pid} since .*or by one that it started"
        with pytest.raises(ValueError, match=says), locked(tmp_path):
            pass
        os.kill(child, signal.SIGKILL)
        for _ in range(100):
            try:
                with locked(tmp_path):
                    return
            except ValueError:
                signal.sigtimedwait([], 0.02)
    raise AssertionError("the folder is still locked")


def test_a_folder_that_nothing_was_written_to_is_removed(tmp_path):
    with locked(tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "file").write_text("")
    assert (tmp_path / "a" / "file").exists()
