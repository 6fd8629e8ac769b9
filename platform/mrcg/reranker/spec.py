"""What a reranker on disk says of itself. Free of torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

WEIGHTS, SPEC, HISTORY = "model.safetensors", "reranker.json", "history.json"


class RerankerSpec(BaseModel):
    """What it takes to build a reranker again, apart from its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_dim: int
    hidden: int
    dropout: float
    drop_edge: float
