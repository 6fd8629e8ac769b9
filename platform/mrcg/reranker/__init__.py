"""The GNN that scores the nodes of a query graph (paper §III-C, DESIGN §3)."""
