"""The stages of the pipeline: what each makes, reads and counts."""
