"""Planning, filling, measuring and compacting an index."""
