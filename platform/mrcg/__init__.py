"""MRI retrieval with a triplet CNN, a sharded FAISS index and a graph reranker.

The library holds every stage as plain functions and classes and never imports Ray; the shells
``mrcg_jobs`` (batch) and ``mrcg_serve`` (online) run them on a cluster. Start at ``mrcg.config.settings`` for
the settings, ``mrcg.pipeline.stages`` for the pipeline and ``mrcg.retrieval.local`` for a search in one process.
"""

__version__ = "0.1.0"
