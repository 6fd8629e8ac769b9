"""Batch jobs: Ray Data and Ray Train around library calls, one module per stage. See docs/architecture.md#rooms."""
