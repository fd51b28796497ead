"""Context encoders, in front of the pair scorer; each is imported when it is made."""

from __future__ import annotations

from importlib import import_module

from agents.encoders.base import Context, ContextEncoder, Spans
from agents.encoders.config import ContextConfig

__all__ = [
    "ENCODERS",
    "NO_ENCODER",
    "Context",
    "ContextConfig",
    "ContextEncoder",
    "Spans",
    "check_encoder",
    "make_encoder",
]

NO_ENCODER = "none"
"""The name of a policy that scores every pair by itself."""
ENCODERS = {
    "attention": "agents.encoders.attention:AttentionEncoder",
    "glom": "agents.encoders.glom.encoder:GlomEncoder",
    "hierarchical": "agents.encoders.hierarchical.encoder:HierarchicalEncoder",
    "spans": "agents.encoders.reduction.encoder:SpanEncoder",
}
"""Module and class of every encoder by its name, which is also that of its options in
:class:`ContextConfig`."""


def check_encoder(name: str) -> str:
    """``name``; ``ValueError`` with the choices where it is no encoder's, nor ``none``."""
    if name not in (NO_ENCODER, *ENCODERS):
        choices = ", ".join([NO_ENCODER, *ENCODERS])
        raise ValueError(f"unknown encoder {name!r}; choose from {choices}")
    return name


def make_encoder(name: str, config: ContextConfig, coordinates: int) -> ContextEncoder:
    """The context encoder of that name, for tokens of ``config.width`` numbers.

    ``coordinates`` is ``T`` of the data, which some encoders do not use. Raises
    ``ValueError`` for an unknown name, and what the encoder's constructor raises.
    """
    module, kind = ENCODERS[check_encoder(name)].split(":")
    encoder: type[ContextEncoder] = getattr(import_module(module), kind)
    return encoder(config.width, getattr(config, name), coordinates)
