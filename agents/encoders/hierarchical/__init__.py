"""Hierarchical attention: hierarchies at several compression rates, side by side and merged at each
layer, or one between the blocks of the next lower one (``hourglass``).

``transformer`` is a causal language model, of use without any merging; ``encoder`` is the same
layers, in both directions, as context encoder of a population.
"""
