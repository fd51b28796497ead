"""One run: the training loop, its folder, checkpoints and logs."""
