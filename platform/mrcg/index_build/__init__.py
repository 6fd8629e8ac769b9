"""Planning, building, measuring and compacting an index (docs/index.md#building-and-updating)."""
