"""Merge trees of one sample, and the formats in which people write trees."""
