"""Commands as a user gives them, in this process."""

from __future__ import annotations

import pytest

from agents.cli import main


def status(*arguments: object) -> int:
    """The exit status, whether the command returns it or the parser exits with it."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line by which a command says that it was used wrongly."""
    assert status(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)
