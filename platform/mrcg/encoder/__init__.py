"""The triplet CNN that embeds scans: model, losses, batches, training, embedding (paper §III, DESIGN §3)."""
