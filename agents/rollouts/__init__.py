"""Episodes: how a policy makes whole trees of a batch of samples."""
