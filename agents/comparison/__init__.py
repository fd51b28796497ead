"""Comparisons of algorithms: planning, running, results, statistics and reports."""
