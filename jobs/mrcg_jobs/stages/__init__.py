"""The stages, one module each: ``run(job)`` calls the library and returns an ``Outcome``."""
