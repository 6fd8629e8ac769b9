"""The store: file systems, the node cache, manifests, attempts, table schemas and the catalog of versions."""
