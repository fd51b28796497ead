"""Hierarchy reduction: vectors of given spans, level by level, without learning any structure."""
