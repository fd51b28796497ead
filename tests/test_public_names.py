"""The public names and signatures, against ``public_names.txt``.

A change there is a change for users: ``python tests/test_public_names.py`` rewrites the file.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("public_names.txt")
PACKAGES = ("htm_env", "htm_env.wrappers", "replay", "agents", "agents.engines", "agents.ppo")
METHODS = (
    *("train", "predict", "plan", "evaluate", "figure", "update", "state", "restore"),
    *("save", "load", "add", "sample", "fit", "generate", "losses"),
    *("encode", "decode", "reconstruct", "standardise", "unmerge", "weights_hash"),
    *("embed", "trees", "transform", "inverse_transform", "score"),
    *("submit", "poll", "cancel", "command"),
    *("nested", "newick", "to_networkx", "to_linkage", "clades", "rows", "pad"),
)
PLAIN = (str, int, float, bool, tuple, type(None))


def signature(function: Any) -> str:
    """The parameters with their defaults, without annotations."""
    found = []
    for parameter in inspect.signature(function).parameters.values():
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, PLAIN):
            default = ...
        found.append(parameter.replace(annotation=parameter.empty, default=default))
    text = str(inspect.Signature(found))
    return text.replace("Ellipsis", "...")


def lines() -> Iterator[str]:
    """One line a name; under a class those of its methods that scripts depend on."""
    for package in PACKAGES:
        module = import_module(package)
        for name in sorted(module.__all__):
            value = getattr(module, name)
            yield f"{package}.{name}{signature(value) if callable(value) else ''}"
            for method in METHODS if inspect.isclass(value) else ():
                found = getattr(value, method, None)
                owner = next((base for base in value.__mro__ if method in vars(base)), object)
                if callable(found) and owner.__module__.startswith(PACKAGES):
                    yield f"{package}.{name}.{method}{signature(found)}"


def test_public_names_and_signatures_are_those_of_the_list():
    # In a process of its own: here the functions are wrapped, since their shapes are checked.
    printed = subprocess.run(
        [sys.executable, __file__, "--print"], check=True, capture_output=True, text=True
    ).stdout
    assert printed == LIST.read_text(), "rewrite the list: python tests/test_public_names.py"


if __name__ == "__main__":
    content = "".join(f"{line}\n" for line in lines())
    if "--print" in sys.argv:
        print(content, end="")
    else:
        LIST.write_text(content)
