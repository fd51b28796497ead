"""Limits on how the tests of this folder may reach into the code."""

import ast
import builtins
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGES = ("agents", "htm_env", "replay", "benchmarks")
MOST_REACHES = 20
NAMED_TUPLE = {"_replace", "_fields", "_asdict", "_make", "_field_defaults"}
PATCHES = {"setattr", "delattr", "setitem", "delitem"}


def of_project(module):
    return module.split(".")[0] in PACKAGES


def imported(tree):
    """Names that a file imports: those of the project and those of other libraries."""
    own, others = set(), set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                (own if of_project(alias.name) else others).add(name)
        elif isinstance(node, ast.ImportFrom):
            into = own if of_project(node.module or "") else others
            into.update(alias.asname or alias.name for alias in node.names)
    return own, others - own


def root(expression):
    """Left-most name of an expression such as `module.Class().attribute`, or None."""
    while not isinstance(expression, ast.Name):
        if isinstance(expression, ast.Attribute | ast.Subscript):
            expression = expression.value
        elif isinstance(expression, ast.Call):
            expression = expression.func
        else:
            return None
    return expression.id


def reaches(source):
    """Lines of a test file that patch the project or use a private name of it.

    Counted are `monkeypatch.setattr` and its kin, `mock.patch` and `setattr` on anything but a
    library's own names; methods and attributes of modules that are assigned; private imports; and
    private attributes (`object._name`) of anything but `self` and the libraries. The methods of a
    named tuple are public.
    """
    tree = ast.parse(source)
    own, others = imported(tree)
    libraries = others | {"self"}
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call():
                reached = patches(node, others)
            case ast.Attribute(attr=name):
                private = name.startswith("_") and not name.startswith("__")
                reached = private and name not in NAMED_TUPLE and root(node) not in libraries
            case ast.ImportFrom():
                private = any(alias.name.startswith("_") for alias in node.names)
                reached = private and of_project(node.module or "")
            case ast.Assign() | ast.AugAssign():
                method = isinstance(node.value, ast.Lambda) or (
                    isinstance(node.value, ast.Name) and node.value.id in functions
                )
                reached = any(
                    isinstance(target, ast.Attribute)
                    and root(target) not in libraries
                    and (method or getattr(target.value, "id", "") in own | {"module"})
                    for target in getattr(node, "targets", None) or [node.target]
                )
            case _:
                continue
        if reached:
            found.add(node.lineno)
    return sorted(found)


def patches(call, others):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in PATCHES:
        target = call.args[0]
    elif "patch" in ast.unparse(call.func).split(".") and root(call.func) != "monkeypatch":
        target = call.args[0] if call.args else None  # unittest.mock's
    else:
        return False
    if isinstance(target, ast.Constant) and isinstance(target.value, str):
        return of_project(target.value)
    return root(target) not in others


def test_few_tests_reach_into_the_code():
    places = [
        f"{path.name}:{line}"
        for path in sorted(TESTS.glob("*.py"))
        for line in reaches(path.read_text())
    ]
    assert len(places) <= MOST_REACHES, "\n".join(places)


def test_every_kind_of_reach_is_counted():
    source = """
import os
import htm_env.forest as forest
from agents.generation import generate
from agents.optim.precision import _hidden
from unittest.mock import patch

def spy():
    monkeypatch.setattr(forest, "BLOCK", 3)
    monkeypatch.setattr("agents.cli.bench.find", None)
    monkeypatch.setattr(learner.buffer, "sample", None)
    patch.setitem(generate.NAMES, "dummy", None)
    with patch("replay.buffer.Ring"): pass
    patch.object(forest, "BLOCK")
    setattr(forest, "BLOCK", 3)
    forest.BLOCK = 3
    policy.forward = spy
    learner._seed()
    forest._nearest()

def fine():
    monkeypatch.setattr(os, "replace", None)
    monkeypatch.setattr("os.replace", None)
    monkeypatch.setenv("HOME", "")
    batch._replace(tokens=None)
    self._count = os._exit
    autoencoder.merger = linear()
"""
    lines = source.splitlines()
    assert reaches(source) == [5, *range(lines.index("def spy():") + 2, lines.index("def fine():"))]
