"""Throughput, memory and held-out errors; each prints a table and writes JSON and Markdown."""
