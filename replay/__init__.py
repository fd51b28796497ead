"""Stored trees."""

__all__ = ()
