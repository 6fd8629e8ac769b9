"""The GNN that scores the nodes of a query graph (docs/method.md#reranker)."""
