"""Readers that turn file bytes into checked grey slices, near-duplicate search, and phantoms. No Ray, no torch."""
