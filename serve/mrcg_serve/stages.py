"""The stages of a search as calls to other deployments."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mrcg.errors import NotFoundError
from mrcg.imaging.slices import Grey
from mrcg.query import Embedding, Scope
from mrcg.search import Found, Influences, RequestContext, StageUnavailableError

log = logging.getLogger(__name__)


class RemoteStages:
    """Embedder, searcher and reranker behind Serve handles. Nobody waits past a request's deadline."""

    def __init__(self, embedder: DeploymentHandle, searcher: DeploymentHandle, reranker: DeploymentHandle) -> None:
        self._embedder = embedder
        self._searcher = searcher
        self._reranker = reranker

    async def embed(self, context: RequestContext, pixels_ss: Grey) -> Embedding:
        """(s, s) grey levels -> (d,)."""
        vector: Embedding = await _ask("embedder", self._embedder.embed, context, pixels_ss)
        return vector

    async def look_up(self, context: RequestContext, image_id: str) -> Embedding:
        """(d,) stored embedding of an image that the context allows."""
        vector: Embedding = await _ask("searcher", self._searcher.look_up, context, image_id)
        return vector

    async def search(self, context: RequestContext, embedding_d: Embedding, n: int, scope: Scope) -> Found:
        """The n nearest that the context allows and the scope asks for."""
        found: Found = await _ask("searcher", self._searcher.search, context, embedding_d, n, scope)
        return found

    async def rerank(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16]
    ) -> npt.NDArray[np.float32]:
        """(n,) scores of the neighbours."""
        scores: npt.NDArray[np.float32] = await _ask(
            "reranker", self._reranker.rerank, context, embedding_d, vectors_nd
        )
        return scores

    async def explain(
        self, context: RequestContext, embedding_d: Embedding, vectors_nd: npt.NDArray[np.float16], nodes: list[int]
    ) -> Influences:
        """What moved the scores of some of the neighbours."""
        influences: Influences = await _ask("reranker", self._reranker.explain, context, embedding_d, vectors_nd, nodes)
        return influences


async def _ask(stage: str, method: Any, context: RequestContext, *values: object) -> Any:
    try:
        async with asyncio.timeout(max(0.0, context.remaining())):
            return await method.remote(context, *values)
    except TimeoutError as error:
        raise StageUnavailableError(f"the {stage} did not answer before the deadline") from error
    except NotFoundError as error:
        # Ray's own class with the same base: its text is a traceback.
        raise (error.cause if isinstance(error, RayTaskError) else error) from None
    except (RayError, RayServeException) as error:
        log.warning("request %s: %s failed", context.trace, stage, exc_info=True)
        raise StageUnavailableError(f"the {stage} is overloaded or down ({type(error).__name__})") from error
