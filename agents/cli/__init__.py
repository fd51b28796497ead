"""The command line ``htm``."""

from agents.cli.command import main

__all__ = ["main"]
