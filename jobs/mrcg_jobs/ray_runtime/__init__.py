"""Ray for the jobs: cluster connection, executor, progress and trainer."""
