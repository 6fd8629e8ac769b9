"""MRI retrieval with a triplet CNN, a sharded FAISS index and a graph reranker.

``import mrcg`` offers what a notebook needs; each name loads its module when it is first used. The rest of the library
is in the packages that docs/architecture.md#rooms draws. The library never imports Ray: the shells ``mrcg_jobs`` (batch
jobs) and ``mrcg_serve`` (the service) run it on a cluster.

::

    import mrcg

    pipeline = mrcg.LocalPipeline.open(mrcg.Store("store"))
    answer = pipeline.search(Path("scan.png").read_bytes(), mrcg.SearchParams(k=10))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mrcg.version import __version__

if TYPE_CHECKING:
    from mrcg.api.client import AsyncClient, Client
    from mrcg.api.requests import EmbeddingQuery, Filters, ImageIdQuery, SearchParams
    from mrcg.config.loading import load_config
    from mrcg.errors import (
        AlreadyExistsError,
        AmbiguousError,
        FingerprintError,
        ForbiddenError,
        ImageError,
        IntegrityError,
        LostRaceError,
        MissingExtraError,
        MrcgError,
        NotFoundError,
        ReleaseError,
        ReleaseNotLoadedError,
        ServiceError,
        SettingsError,
        SourceError,
        StageUnavailableError,
        StoreError,
        TrainingError,
        UsageError,
        WeightsError,
    )
    from mrcg.retrieval.local import LocalPipeline
    from mrcg.storage.store import Store

__all__ = [
    "AlreadyExistsError",
    "AmbiguousError",
    "AsyncClient",
    "Client",
    "EmbeddingQuery",
    "Filters",
    "FingerprintError",
    "ForbiddenError",
    "ImageError",
    "ImageIdQuery",
    "IntegrityError",
    "LocalPipeline",
    "LostRaceError",
    "MissingExtraError",
    "MrcgError",
    "NotFoundError",
    "ReleaseError",
    "ReleaseNotLoadedError",
    "SearchParams",
    "ServiceError",
    "SettingsError",
    "SourceError",
    "StageUnavailableError",
    "Store",
    "StoreError",
    "TrainingError",
    "UsageError",
    "WeightsError",
    "__version__",
    "load_config",
]

_MODULES = {
    "AsyncClient": "api.client",
    "Client": "api.client",
    "EmbeddingQuery": "api.requests",
    "Filters": "api.requests",
    "ImageIdQuery": "api.requests",
    "LocalPipeline": "retrieval.local",
    "SearchParams": "api.requests",
    "Store": "storage.store",
    "load_config": "config.loading",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
