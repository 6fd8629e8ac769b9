"""Commands that start batch jobs."""
