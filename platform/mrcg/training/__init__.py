"""Training without a model of its own: checkpoints, batches and features cached on disk."""
