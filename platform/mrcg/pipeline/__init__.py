"""The steps of a run, a reindex and an erasure, and the versions of their artefacts."""
