"""Corpora of scans: reading sources, ingestion, grouping, splits and stored embeddings."""
