"""Frozen, nested configuration dataclasses as JSON, and back."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def config_from_dict(config_class: type[Config], values: dict[str, Any]) -> Config:
    """The dataclass of which ``dataclasses.asdict`` gave ``values``, perhaps through JSON.

    A field that is missing takes its default. Raises ``ValueError`` naming a field that
    ``config_class`` does not have.
    """
    known = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ValueError(f"{config_class.__name__} has no field {name!r}; expected {known}")
    hints = get_type_hints(config_class)
    return config_class(**{name: _restored(hints[name], value) for name, value in values.items()})


def _restored(hint: Any, value: Any) -> Any:
    """JSON has no dataclasses, which the annotation names, and no tuples: all lists were some."""
    if isinstance(value, dict):
        for choice in (hint, *get_args(hint)):  # of a union, the member that it can be
            if isinstance(choice, type) and is_dataclass(choice):
                return config_from_dict(choice, value)
    if isinstance(value, str) and get_origin(hint) is tuple:  # one name may stand for itself
        return (value,)
    if isinstance(value, list | tuple):
        return tuple(_restored(None, item) for item in value)
    return value


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def check_bounds(config: Any, **bounds: tuple[float | int, float | int]) -> None:
    """Raise ``ValueError`` naming the first field that is not a number within its bounds.

    A field that is declared as ``int`` takes whole numbers only.
    """
    whole = {field.name for field in fields(config) if field.type in ("int", int)}
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if name in whole and not isinstance(value, int):
            raise ValueError(f"{name} is {value}; expected a whole number")
        if not (isinstance(value, int | float) and low <= value <= high):
            upper = f" and at most {high:g}" if math.isfinite(high) else ""
            raise ValueError(f"{name} is {value}; expected at least {low:g}{upper}")
