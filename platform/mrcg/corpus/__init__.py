"""From a source of scans to a corpus, its splits and its embeddings."""
