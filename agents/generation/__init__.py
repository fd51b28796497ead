"""New samples from a trained run, and measures of their quality."""
