"""Training code that all models share: checkpoints, batches and arrays cached on disk."""
