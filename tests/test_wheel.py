"""A built wheel, installed outside the checkout, is the whole package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import gymnasium as gym, htm_env, agents, replay
print(htm_env.__file__)
for env_id in ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0"):
    env = gym.make(env_id)
    env.reset(seed=0)
    print(env_id, env.unwrapped.autoencoder.weights_hash())
from importlib.resources import files
from htm_env.drawing.page import SCRIPTS
for name in ("page.html", "page.css", *SCRIPTS):
    assert files("htm_env.drawing.page").joinpath(name).is_file(), name
"""


@pytest.mark.slow
def test_an_installed_wheel_brings_its_weights_and_its_page(tmp_path: Path) -> None:
    from htm_env.weights import pretrained_autoencoder

    def run(*command: str, **kwargs) -> str:
        finished = subprocess.run(command, capture_output=True, text=True, **kwargs)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    )
    printed = run(
        sys.executable, "-c", PROGRAM, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}
    )
    assert str(site) in printed
    for env_id in ("HTM-Trees-v0", "HTM-Crosses-v0", "HTM-Digits-v0", "HTM-Keys-v0"):
        assert f"{env_id} {pretrained_autoencoder(env_id).weights_hash()}" in printed
