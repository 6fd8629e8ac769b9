"""Query graphs: neighbour lists, node features and angular adjacency (paper §III-C, DESIGN §3)."""
