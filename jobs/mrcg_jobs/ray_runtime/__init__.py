"""Ray for the jobs: a cluster, its executor, progress and trainer."""
