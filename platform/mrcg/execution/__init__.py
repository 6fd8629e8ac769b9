"""Where work runs: in this process or on a cluster (`executor`), or in a limited child process (`sandbox`)."""
