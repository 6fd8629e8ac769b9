"""The stages of the pipeline and the versions of their artefacts."""
