"""What a user would write instead of this project's service: one process, FastAPI, torch and FAISS.

    python -m tests.bench.plain_service STORE PORT one|batched RECIPE

``one`` embeds, searches and reranks each scan by itself as it comes; ``batched`` puts those that wait together, as the
replicas of the service do. Both answer with the same hits: they use the release's own models and index.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File

from mrcg.config.loading import load_config
from mrcg.config.service import ServeSettings
from mrcg.releases.release import read_release
from mrcg.retrieval.loaders import EmbedderLoader, RerankerLoader, SearcherLoader, load_and_check
from mrcg.retrieval.preprocessing import QueryRules
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import RequestContext
from mrcg.storage.store import Store

K = 10
MOST = 16


class Search:
    """The work, for one scan or several."""

    def __init__(self, url: str, settings: ServeSettings) -> None:
        store = Store(url)
        release = read_release(store)
        torch.set_num_threads(settings.embedder.threads)
        self.rules = QueryRules.of(store, release, settings)
        self.embedder = load_and_check(EmbedderLoader(store), release)
        self.searcher, self.reranking = (
            load_and_check(SearcherLoader(store), release),
            load_and_check(RerankerLoader(store), release),
        )
        self.context = RequestContext("bench", None, float("inf"), release.number, "bench")

    def __call__(self, scans: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> list[list[dict[str, Any]]]:
        """(s, s) grey levels each -> hits, best first."""
        embeddings = self.embedder.embed(np.stack(scans))
        n = self.rules.search.neighbours
        found = self.searcher.search(embeddings, [self.context] * len(scans), n, [Scope()] * len(scans))
        scores = self.reranking.rerank(embeddings, [one.vectors_nd for one in found])
        return [
            [
                {"image_id": one.image_ids[at], "label": one.facts[at].label, "score": float(score[at])}
                for at in np.argsort(-score, kind="stable")[:K].tolist()
            ]
            for one, score in zip(found, scores, strict=True)
        ]


class Together:
    """Puts calls that wait while one is worked on together."""

    def __init__(self, work: Callable[[list[Any]], list[Any]]) -> None:
        self._work, self._pool = work, ThreadPoolExecutor(1)
        self._waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self._busy = False

    async def __call__(self, item: Any) -> Any:
        """The result for one item."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._busy:
            self._busy = True
            asyncio.create_task(self._run())  # noqa: RUF006 - it holds itself by what it waits for
        return await future

    async def _run(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            results = await asyncio.get_running_loop().run_in_executor(
                self._pool, self._work, [item for item, _ in some]
            )
            for (_, future), result in zip(some, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self._busy = False


def application(url: str, batched: bool, recipe: str) -> FastAPI:
    """The service."""
    app, search = FastAPI(), Search(url, load_config(recipe).serve)
    decoders, together = ThreadPoolExecutor(2), Together(search)

    @app.post("/v1/search")
    async def answer(image: Annotated[bytes, File()]) -> dict[str, Any]:
        if not batched:
            return {"hits": search([search.rules.prepare(image)])[0]}
        pixels = await asyncio.get_running_loop().run_in_executor(decoders, search.rules.prepare, image)
        return {"hits": await together(pixels)}

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    return app


if __name__ == "__main__":
    place, port, how, recipe = sys.argv[1:5]
    uvicorn.run(application(place, how == "batched", recipe), host="127.0.0.1", port=int(port), log_level="warning")
