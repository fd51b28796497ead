"""Context encoders, which stand in front of the pair scorer."""
