"""Search for one query: the same steps whether the stages run in this process or on a cluster."""
