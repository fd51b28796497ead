"""Any algorithm of Stable-Baselines3's interface as a learner, beside the autoencoder."""
