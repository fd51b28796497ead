"""Stored trees."""

__all__: list[str] = []
