"""What ``make test-fast`` leaves out and ``make test-lowest`` installs."""

from __future__ import annotations

import tomllib

import pytest
from conftest import SLOW_MODULES
from lowest import COMPANIONS, ROOT, TOOLS, pins

CONSTRAINTS = "".join(f"{tool}==9.{number}\n" for number, tool in enumerate(TOOLS))


def test_every_slow_module_exists():
    names = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    assert names > SLOW_MODULES


def test_a_lower_bound_becomes_a_pin_and_a_tool_keeps_its_version():
    found = pins(["gymnasium>=1.2,<2", "POT>=0.9.5", "torch>=2.4"], CONSTRAINTS)
    tools = [f"{tool}==9.{number}" for number, tool in enumerate(TOOLS)]
    assert found == [*COMPANIONS, "gymnasium==1.2", "POT==0.9.5", *tools]


def test_what_has_no_version_is_an_error():
    with pytest.raises(ValueError, match="'rich' has no lower bound"):
        pins(["rich"], CONSTRAINTS)
    with pytest.raises(ValueError, match=r"constraints.txt has no version of torch"):
        pins([], "")


def test_every_dependency_has_a_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins(project["dependencies"], (ROOT / "constraints.txt").read_text())
    assert len(found) == len(COMPANIONS) + len(project["dependencies"]) - 1 + len(TOOLS)
