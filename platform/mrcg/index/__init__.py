"""The sharded FAISS index: file layout, search, filters and merging (see docs/index.md and docs/design.md#search)."""
