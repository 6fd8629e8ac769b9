"""The sharded FAISS index: build, search, merge (DESIGN §2, §4)."""
