"""Hierarchical attention: parallel hierarchies at several compression rates, merged at each layer.

``transformer`` is a causal language model, of use without any merging; ``encoder`` is the same
layers, in both directions, as context encoder of a population.
"""
