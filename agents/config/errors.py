"""What the command line refuses before anything is done."""

from __future__ import annotations

import json
from typing import Any

import torch


class UsageError(Exception):
    """The command line asks for something that cannot be meant."""


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """The JSON object behind a flag, empty without one; :class:`UsageError` for anything else."""
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{flag} {text!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{flag} {text!r} is not a JSON object, such as '{{\"k\": 1}}'")
    return values


def set_threads(count: int) -> None:
    """Let one operation of torch use so many threads; raises :class:`UsageError` below one."""
    if count < 1:
        raise UsageError(f"--threads is {count}; expected at least 1")
    torch.set_num_threads(count)
