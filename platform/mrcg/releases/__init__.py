"""Releases: promotion and rollback, garbage collection, verification."""
