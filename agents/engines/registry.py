"""Engines by name: those of this project, and ``module:Class`` of your own."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from agents.config.dataclasses_json import config_from_dict
from agents.config.errors import did_you_mean
from agents.config.plug_ins import check_module, named_object, names_object
from agents.engines.base import Engine, Site

ENGINES = {
    "local": "agents.engines.local:LocalEngine",
    "folder": "agents.engines.folder:FolderEngine",
    "ray": "agents.engines.on_ray:RayEngine",
    "slurm": "agents.engines.on_slurm:SlurmEngine",
}
NEEDED = {"ray": "ray", "slurm": "submitit"}
"""The library of an engine; the extra that installs it has the engine's name."""


def check_engine(name: str) -> None:
    """Raise ``ValueError`` with the choices where no engine can have that name; loads none."""
    if name in ENGINES:
        return
    if not names_object(name):
        raise ValueError(
            f"unknown engine {name!r}{did_you_mean(name, ENGINES)}; choose from "
            f"{', '.join(ENGINES)}; or module:Class of your own"
        )
    check_module(name, "engine")


def engine_class(name: str) -> type[Engine]:
    """The engine of that name.

    Raises ``ValueError`` where there is none, where it is no :class:`Engine`, and naming the extra
    that is to be installed.
    """
    check_engine(name)
    library = NEEDED.get(name)
    if library is not None and find_spec(library) is None:
        raise ValueError(
            f"the engine {name} needs {library}: pip install 'htm-rl[{name}]', or "
            f"pip install '.[{name}]' in a checkout"
        )
    found = named_object(ENGINES.get(name, name), "engine")
    if not (isinstance(found, type) and issubclass(found, Engine)):
        raise ValueError(f"the engine {name!r} is {found!r}; expected a class of agents.engines")
    return found


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise ``ValueError`` for options that the engine does not have, and whatever
    :func:`engine_class` raises."""
    try:
        config_from_dict(engine_class(name).config_class, options)
    except ValueError as error:
        raise ValueError(f"the options of the engine {name}: {error}") from None


def make_engine(name: str, site: Site, options: dict[str, Any] | None = None) -> Engine:
    """An engine of a site; ``ValueError`` for options that it does not have."""
    kind = engine_class(name)
    return kind(site, config_from_dict(kind.config_class, options or {}))
