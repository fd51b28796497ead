"""Candidate pairs: the nearest neighbours of every token."""
