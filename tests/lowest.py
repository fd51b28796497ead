"""Pins at the lower bounds of ``pyproject.toml``: ``python tests/lowest.py > pins.txt``.

``make test-lowest`` installs them. PyTorch alone keeps the version of ``constraints.txt``: a build for
processors is to be had for few versions, and any other would bring gigabytes of CUDA.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype")
"""Of the extra ``dev``, those that the tests of ``make test-lowest`` import."""
_BOUND = re.compile(r"([A-Za-z0-9_-]+)>=([0-9.]+)")


def pins(project: dict, constraints: str) -> list[str]:
    """``name==bound`` for every dependency and for the tools of the tests.

    Raises ``ValueError`` for a requirement without a lower bound.
    """
    wanted = project["dependencies"] + [
        requirement
        for requirement in project["optional-dependencies"]["dev"]
        if requirement.partition(">=")[0] in TOOLS
    ]
    found = []
    for requirement in wanted:
        bound = _BOUND.match(requirement)
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        name, version = bound.groups()
        if name == "torch":
            (version,) = re.findall(r"^torch==(\S+)$", constraints, flags=re.MULTILINE)
        found.append(f"{name}=={version}")
    return found


if __name__ == "__main__":
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print(*pins(described, (ROOT / "constraints.txt").read_text()), sep="\n")
