"""Where units of work run: processes of this machine, a shared folder, Ray, Slurm, or your own."""

from agents.engines.base import Engine, NoOptions, Progress, Site, Unit, UnitState, run_units
from agents.engines.registry import make_engine

__all__ = [
    "Engine",
    "NoOptions",
    "Progress",
    "Site",
    "Unit",
    "UnitState",
    "make_engine",
    "run_units",
]
