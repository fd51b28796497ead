"""Throughput, memory and held-out errors; each prints a table and writes it as JSON and Markdown."""
