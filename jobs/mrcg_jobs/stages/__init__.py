"""One module for each stage: `run(job)` around library calls."""
