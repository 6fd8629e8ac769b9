"""The graph of stages and the versions that follow from it."""
