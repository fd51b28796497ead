"""Ctrl-C and SIGTERM in the first seconds: one line, a status that says so, and no folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SLOW_IMPORT = """
import signal, sys, time
from agents.runs.interruption import Terminated, handled, raise_at_once
with handled(raise_at_once, signal.SIGINT, signal.SIGTERM):
    try:
        import slow
        time.sleep(10)
    except Terminated:
        sys.exit("terminated, " + str(slow.value))
"""


def catches(process: subprocess.Popen, number: int) -> bool:
    """True <--> the process has a handler for this signal, as far as the system can tell."""
    about = Path(f"/proc/{process.pid}/status")
    lines = dict(line.split(":", 1) for line in about.read_text().splitlines())
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nothing tells the handlers")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.0, 0.8])
def test_a_signal_in_the_first_seconds_ends_in_one_line(tmp_path, how, seconds):
    """That many seconds after Python itself has started, which answers to signals as it likes."""
    command = [sys.executable, "-m", "agents.cli", "train", "--env", "HTM-Trees-v0"]
    command += ["--algo", "reinforce", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not catches(process, signal.SIGTERM):
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(how)
    errors = process.communicate()[1].decode()
    assert errors == "htm: interrupted\n"
    assert process.returncode == 128 + how
    assert not (tmp_path / "run").exists()


def test_a_signal_in_an_import_is_raised_behind_it(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nvalue = 'whole'\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", SLOW_IMPORT],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "terminated, whole\n"
