"""Evaluate encoders and rerankers: reports, figures and the systems of the paper (docs/design.md#evaluation)."""
