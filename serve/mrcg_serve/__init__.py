"""The online service: Ray Serve adapters around library classes (DESIGN §4)."""
