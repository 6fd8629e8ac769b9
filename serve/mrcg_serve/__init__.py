"""The online service: Ray Serve adapters around library classes (docs/serving.md)."""
