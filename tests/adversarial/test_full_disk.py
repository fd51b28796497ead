"""A disk that is full at any write: one line, the checkpoint before is whole, the run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_cli import status
from test_crashes import check_consistent, course_of, in_a_child, resume, train
from test_outputs import QUICK, WRITERS, finished_run, refused

FULL, OTHER = 7, 8
"""Exit statuses of a child: an error that names the folder, and any other."""
MOST = 256
"""Kilobytes that a run and its checkpoints fit into."""


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of its own of so many kilobytes, where this user may mount one."""
    folder.mkdir(exist_ok=True)
    size = ["-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and os.getuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", *size], check=False).returncode != 0:
        pytest.skip("no disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(folder)
    return course_of(folder)


@pytest.mark.timeout(1200)  # of the long form
def test_a_run_on_a_full_disk_goes_on_where_there_is_room(undisturbed, tmp_path, in_full):
    """Every file in turn is the one that does not fit."""
    disk = tmp_path / "disk"
    step = 4 if in_full else 40  # the file system gives pages of four
    full = 0
    for kilobytes in range(8, MOST, step):
        with small_disk(disk, kilobytes):

            def act() -> None:
                try:
                    train(disk / "run")
                except OSError as error:
                    os._exit(FULL if f"No space left on device: '{disk}" in str(error) else OTHER)

            ended = in_a_child(act)
            assert ended in (0, FULL), kilobytes
            full += ended == FULL
            check_consistent(disk / "run")
            assert not list(disk.rglob("*.tmp"))
            enlarge(disk)
            resume(disk / "run")
            assert course_of(disk / "run") == undisturbed
    assert full > 3


def test_a_command_on_a_full_disk_says_which_file(tmp_path, capfd, in_full):
    finished, disk = finished_run(tmp_path), tmp_path / "disk"
    for command in WRITERS if in_full else QUICK:
        with small_disk(disk, 4):
            capfd.readouterr()
            arguments = WRITERS[command](finished, disk / "out")
            assert in_a_child(lambda given=arguments: os._exit(status(*given))) == 1
            line = refused(capfd.readouterr().err)
            assert f"No space left on device: '{disk}" in line
            assert not list(disk.rglob("*.tmp"))
    command = [sys.executable, "-m", "agents.cli", "view", str(finished), "--samples", "1"]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=own
        )
    assert "No space left on device: 'standard output'" in refused(done.stderr)
    assert done.returncode == 1
