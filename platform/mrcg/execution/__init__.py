"""Where work runs: in this process or on a cluster (`executor`), or in a memory-limited child process (`sandbox`)."""
