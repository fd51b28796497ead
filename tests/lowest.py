"""Pins at the lower bounds of ``pyproject.toml``: ``python tests/lowest.py > pins.txt``.

``make test-lowest`` installs them. PyTorch alone keeps the version of ``constraints.txt``: builds
for processors are to be had for few versions, and any other brings gigabytes of CUDA.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("torch", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "beartype", "moviepy")
"""Taken from ``constraints.txt``: PyTorch, and what the tests need beside the package."""
COMPANIONS = ("pyparsing<3.3",)
"""Not ours; later ones warn of the calls that the oldest matplotlib makes."""


def pins(requirements: list[str], constraints: str) -> list[str]:
    """``name==bound`` for every requirement, and the tools at the versions of the constraints.

    Raises ``ValueError`` for a requirement without a lower bound, and for a tool without a version.
    """
    found = list(COMPANIONS)
    for requirement in requirements:
        bound = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if bound is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        if bound[1] not in TOOLS:
            found.append(f"{bound[1]}=={bound[2]}")
    for tool in TOOLS:
        version = re.search(rf"^{tool}==(\S+)$", constraints, flags=re.MULTILINE)
        if version is None:
            raise ValueError(f"constraints.txt has no version of {tool}")
        found.append(f"{tool}=={version[1]}")
    return found


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print(*pins(project["dependencies"], (ROOT / "constraints.txt").read_text()), sep="\n")
