"""What each stage of a search needs of a release: loaded, hashed while it is read, tried before it answers (DESIGN §4).

``check`` is tried when a release is taken on, and again and again while it answers: it really works on something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mrcg.config.settings import EngineName
from mrcg.corpus.reader import Corpus
from mrcg.encoder.spec import read_spec
from mrcg.errors import ReleaseError
from mrcg.imaging.slices import Grey
from mrcg.releases.release import Release
from mrcg.storage.store import Store

# What one stage needs is not imported into the processes of the others.
if TYPE_CHECKING:
    from mrcg.reranker.scorer import Reranking
    from mrcg.retrieval.searcher import Searcher

T = TypeVar("T")
#: Neighbours of the graph that a reranker is tried on.
TRIED = 8


class Loading(Protocol[T]):
    """How one stage loads its part of a release."""

    def key(self, release: Release) -> str:
        """Names what is loaded: releases that share it share what is in memory."""
        ...

    def load(self, release: Release) -> T:
        """Load it.

        Raises:
            IntegrityError: a file is not the one that was published.
            WeightsError: it does not fit the release's encoder.
        """
        ...

    def check(self, loaded: T) -> None:
        """Let it answer once.

        Raises:
            ReleaseError: the answer makes no sense.
        """
        ...


def load_and_check(loading: Loading[T], release: Release) -> T:
    """Load a stage's part of a release and let it answer once; raises what both raise."""
    loaded = loading.load(release)
    loading.check(loaded)
    return loaded


class Embeds(Protocol):
    """An encoder, whatever computes it."""

    fingerprint: str

    @property
    def input_size(self) -> int:
        """Side of the images it takes, pixels."""
        ...

    def embed(self, pixels_nss: Grey) -> npt.NDArray[np.float32]:
        """(n, s, s) grey levels -> (n, d) embeddings."""
        ...


@dataclass(frozen=True)
class LoadEmbedder:
    """The encoder, and what computes it."""

    store: Store
    device: str = "cpu"
    engine: EngineName = "torch"
    threads: int = 1

    def key(self, release: Release) -> str:
        """The encoder's version; int8 rounds as the scans of the corpus ask for."""
        return f"{release.encoder} {release.corpus}" if self.engine == "openvino-int8" else release.encoder

    def load(self, release: Release) -> Embeds:
        """As of ``Loading``."""
        from mrcg.encoder.embedder import Embedder

        loaded: Embeds = Embedder.open(self.store.artefact("encoders", release.encoder), self.device)
        if self.engine != "torch":
            from mrcg.encoder.openvino_embedder import SAMPLE, OpenVinoEmbedder

            assert isinstance(loaded, Embedder)
            sample = self._sample(release, SAMPLE, loaded.input_size) if self.engine == "openvino-int8" else None
            loaded = OpenVinoEmbedder(loaded, self.threads, sample)
        return loaded

    def _sample(self, release: Release, count: int, side: int) -> Grey:
        corpus = Corpus(self.store.artefact("corpus", release.corpus))
        rows = np.random.default_rng(0).permutation(len(corpus))[:count]
        return corpus.pixels(np.sort(rows).tolist(), side)

    def check(self, loaded: Embeds) -> None:
        """Embed one image."""
        grey = np.full((1, loaded.input_size, loaded.input_size), 128, dtype=np.uint8)
        if not np.isfinite(loaded.embed(grey)).all():
            raise ReleaseError(f"encoder {loaded.fingerprint} embeds an even image as nonsense: train it again")


@dataclass(frozen=True)
class LoadSearcher:
    """The index, or one of several parts of its shards."""

    store: Store
    part: int = 0
    parts: int = 1

    def key(self, release: Release) -> str:
        """The index's version."""
        return release.index

    def load(self, release: Release) -> Searcher:
        """As of ``Loading``."""
        from mrcg.retrieval.searcher import Searcher

        return Searcher.open(self.store, release.index, self.part, self.parts)

    def check(self, loaded: Searcher) -> None:
        """Search for one of its own vectors."""
        index = loaded.index
        if not len(index.gallery.rows):
            return  # of a small gallery some shards are empty
        near = index.search(index.vectors(index.gallery.rows[:1]), 1)
        if not (np.isfinite(near.distances_qk) | (near.rows_qk < 0)).all():
            raise ReleaseError("the index answers one of its own vectors with nonsense: `mrcg verify` the store")


@dataclass(frozen=True)
class LoadReranker:
    """The reranker, which has to fit the encoder."""

    store: Store
    device: str = "cpu"

    def key(self, release: Release) -> str:
        """The versions of both."""
        return f"{release.reranker} {release.encoder}"

    def load(self, release: Release) -> Reranking:
        """As of ``Loading``."""
        from mrcg.reranker.scorer import Reranking, Scorer

        _, fingerprint = read_spec(self.store.artefact("encoders", release.encoder))
        reranker = self.store.artefact("rerankers", release.reranker)
        return Reranking(Scorer.open(reranker, self.device, fingerprint))

    def check(self, loaded: Reranking) -> None:
        """Score one graph."""
        dim = loaded.scorer.reranker.spec.embedding_dim
        vectors = np.random.default_rng(0).standard_normal((TRIED, dim)).astype(np.float16)
        scores = loaded.rerank(vectors[:1].astype(np.float32), [vectors])[0]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ReleaseError("the reranker scores a graph with nonsense: train it again")
