"""Names that stand for objects of other modules: ``module:name``.

Names become objects on the command line and where a run is loaded, nowhere else. A module is found
by its name on Python's path, and is never read from the folder of a run: files that someone else
made are data, and may name only code that is installed here already.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agents.config.errors import did_you_mean

ALIASES = {"sb3": "stable_baselines3"}
"""Short names of modules."""
SCRIPT = "__main__"
"""The module that Python runs."""
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_][\w./-]*")


def names_object(name: Any) -> bool:
    """True <--> it is text of the form ``module:name``."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def named_object(name: str, what: str) -> Any:
    """The object that ``module:name`` names; imports the module.

    Raises ``ValueError``, which calls it ``what``, where there is no such module or object.
    """
    module, _, attributes = name.partition(":")
    check_module(name, what)
    found: Any = None
    try:
        found = import_module(ALIASES.get(module, module))
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        known = () if found is None else (n for n in dir(found) if callable(getattr(found, n)))
        like = did_you_mean(attributes, known)
        raise ValueError(f"the {what} {name!r} cannot be loaded: {error}{like}") from None
    return found


def found_object(value: Any, what: str) -> Any:
    """The object that ``module:name`` names; anything else as it is.

    Raises ``ValueError``, which calls it ``what``, where there is no such module or object.
    """
    return named_object(value, what) if names_object(value) else value


def saved_name(value: Any, what: str, given: str | None = None) -> str | None:
    """What a file says of an object: the name that it was ``given`` by, or its own; text and None
    as they are.

    Raises ``ValueError``, which calls it ``what``, for an object that no run could find again.
    """
    if isinstance(value, str | None):
        return value
    own = given or name_of(value)
    if own is None:
        name = getattr(value, "__qualname__", repr(value))
        raise ValueError(
            f"the {what} {name} cannot be saved, since no run finds it again; define it in a "
            "module of its own, by def or as a constant, not as a lambda, inside a function or in "
            "the script itself"
        )
    return own


def check_module(name: str, what: str) -> None:
    """Raise ``ValueError`` where the module of ``module:name`` is not on Python's path.

    Only the first part of its name is looked for, and nothing is imported.
    """
    module = _top(name)
    if module not in sys.modules and find_spec(module) is None:
        raise ValueError(
            f"the {what} {name!r} cannot be loaded: there is no module {module!r} here or on "
            "Python's path"
        )


def name_of(value: Any) -> str | None:
    """``module:name`` of an object that is found by it, later too; None for any other.

    A function or a class has a name of its own; another object that of a constant in the module of
    its class.
    """
    module, name = (getattr(value, about, None) for about in ("__module__", "__qualname__"))
    if isinstance(module, str) and name is None:
        constants = vars(sys.modules[module]) if module in sys.modules else {}
        name = next((own for own, constant in constants.items() if constant is value), None)
    if not (isinstance(module, str) and isinstance(name, str)):
        return None
    found: Any = sys.modules.get(module)
    for attribute in name.split("."):
        found = getattr(found, attribute, None)
    imported = imported_name(module)
    return f"{imported}:{name}" if found is value and imported != SCRIPT else None


def imported_name(module: str) -> str:
    """The name by which a module is imported.

    Of the script that runs, the name that ``python -m`` was given, or the stem of its file where
    that imports the same file; ``__main__``, which is another script another time, where neither
    does.
    """
    script = sys.modules.get(SCRIPT)
    if module != SCRIPT or script is None:
        return module
    if script.__spec__ is not None:
        return script.__spec__.name
    file = Path(getattr(script, "__file__", None) or "")
    spec = find_spec(file.stem) if file.stem.isidentifier() and file.stem != SCRIPT else None
    same = spec is not None and spec.origin and Path(spec.origin).resolve() == file.resolve()
    return file.stem if same else module


def check_outside(folder: Path, names: Iterable[Any]) -> None:
    """Raise ``ValueError`` naming the first ``module:name`` whose module lies in a run's folder."""
    for name in filter(names_object, names):
        module = _top(name)
        spec = None if module in sys.modules else find_spec(module)
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        for place in places:
            if place is not None and Path(place).resolve().is_relative_to(folder.resolve()):
                raise ValueError(
                    f"{folder} names {name!r}, and the module lies in that folder; a run is data: "
                    "install the module, or put it elsewhere on Python's path"
                )


def _top(name: str) -> str:
    """The first part of the module of ``module:name``."""
    module = name.partition(":")[0].partition(".")[0]
    return ALIASES.get(module, module)


@contextmanager
def modules_of_this_folder() -> Iterator[None]:
    """Let Python find modules of the working folder meanwhile, behind all others."""
    here = str(Path.cwd())
    added = not sys.flags.safe_path and not {"", here} & set(sys.path)
    if added:
        sys.path.append(here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
