"""Searching for good options of an algorithm."""
