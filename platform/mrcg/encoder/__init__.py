"""The triplet CNN that embeds scans: model, losses, batches, training and embedding (docs/method.md#encoder)."""
