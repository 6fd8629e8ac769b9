"""What computes the encoder on CPUs: how fast each engine is, and whether its queries find the same.

The gallery is embedded as the release has it, by torch in fp32; only the engine of the queries changes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mrcg.config.service import EngineName
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.imaging.slices import Grey
from mrcg.metrics.ranking import mean_average_precision
from mrcg.releases.release import Release, read_release
from mrcg.reranker.scorer import Reranking
from mrcg.retrieval.loaders import AnyEmbedder, EmbedderLoader, RerankerLoader, SearcherLoader, load_and_check
from mrcg.retrieval.query import Scope
from mrcg.retrieval.search import RequestContext, SearchHits
from mrcg.retrieval.searcher import Searcher
from mrcg.storage.store import Store

ENGINES: tuple[EngineName, ...] = ("torch", "openvino", "openvino-int8")
GALLERY_ENGINE = "torch"
BATCH, ROUNDS = 16, 5
#: The fp32 top so many that have to be among the deeper ones of another engine.
TOP = 10


@dataclass(frozen=True)
class Figures:
    """What one engine did.

    Attributes:
        engine, threads: of the queries.
        rate: images per second in batches of 16, the best round.
        map, reranked_map: of the test part's queries, in the index's order and the reranker's.
        kept: share of the hits of torch's top 10 that are among this engine's N nearest.
        queries: how many.
    """

    engine: str
    threads: int
    rate: float
    map: float
    reranked_map: float
    kept: float
    queries: int


def engines(url: str, threads: int = 2) -> list[Figures]:
    """All engines on the test part of a release."""
    torch.set_num_threads(threads)
    store = Store(url)
    release = read_release(store)
    corpus = Corpus(store.artefact("corpus", release.corpus))
    split = Split(store.artefact("splits", store.manifest("reports", release.report).inputs["splits"]))
    rows = np.flatnonzero(split.test & np.array([label is not None for label in corpus.scans["label"].to_pylist()]))
    labels = [corpus.scans["label"][row].as_py() for row in rows.tolist()]
    searcher, reranking = load_and_check(SearcherLoader(store), release), load_and_check(RerankerLoader(store), release)
    loaded: list[tuple[EngineName, AnyEmbedder]] = [
        (engine, load_and_check(EmbedderLoader(store, engine=engine, threads=threads), release)) for engine in ENGINES
    ]
    pixels = corpus.pixels(rows.tolist(), loaded[0][1].input_size)
    reference, figures = None, []
    for engine, embedder in loaded:
        embeddings = embedder.embed(pixels)
        found = _search(searcher, release, embeddings)
        reference = reference or found
        figures.append(
            Figures(
                engine=engine,
                threads=threads,
                rate=_rate(embedder, pixels),
                map=mean_average_precision(_relevance(found, labels)),
                reranked_map=mean_average_precision(_relevance(found, labels, _orders(reranking, embeddings, found))),
                kept=_kept(reference, found),
                queries=len(rows),
            )
        )
    return figures


def _rate(embedder: AnyEmbedder, pixels: Grey) -> float:
    batches = [pixels[start : start + BATCH] for start in range(0, 8 * BATCH, BATCH)]
    best = 0.0
    for turn in range(ROUNDS + 1):
        start = time.perf_counter()
        for batch in batches:
            embedder.embed(batch)
        rate = sum(map(len, batches)) / (time.perf_counter() - start)
        best = max(best, rate) if turn else 0.0  # the first warms up
    return best


def _search(searcher: Searcher, release: Release, embeddings: npt.NDArray[np.float32]) -> list[SearchHits]:
    context = RequestContext("bench", None, float("inf"), release.number, "bench")
    count = len(embeddings)
    return searcher.search(embeddings, [context] * count, release.neighbours, [Scope()] * count)


def _orders(
    reranking: Reranking, embeddings: npt.NDArray[np.float32], found: list[SearchHits]
) -> list[npt.NDArray[np.int64]]:
    orders: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(found), BATCH):
        some = found[start : start + BATCH]
        scores = reranking.rerank(embeddings[start : start + BATCH], [one.vectors_nd for one in some])
        orders += [np.argsort(-row, kind="stable") for row in scores]
    return orders


def _relevance(
    found: list[SearchHits], labels: list[str], orders: list[npt.NDArray[np.int64]] | None = None
) -> npt.NDArray[np.bool_]:
    relevant = np.array(
        [[facts.label == label for facts in one.facts] for one, label in zip(found, labels, strict=True)]
    )
    return relevant if orders is None else np.take_along_axis(relevant, np.stack(orders), axis=1)


def _kept(reference: list[SearchHits], found: list[SearchHits]) -> float:
    kept = [len(set(one.image_ids[:TOP]) & set(other.image_ids)) for one, other in zip(reference, found, strict=True)]
    return sum(kept) / (TOP * len(kept))
