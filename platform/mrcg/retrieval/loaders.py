"""Load what each stage of a search needs of a release. File hashes are checked on read, and the loaded part is tested.

``check`` runs when a release is loaded, and repeatedly as a health check while it serves: it does real work
(docs/architecture.md#how-a-release-is-loaded-pinned-and-dropped).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mrcg.config.service import EngineName
from mrcg.corpus.reader import Corpus
from mrcg.encoder.appearance import TENSORS, read_appearance
from mrcg.encoder.spec import read_spec
from mrcg.errors import ReleaseError
from mrcg.imaging.slices import Grey
from mrcg.releases.release import Release
from mrcg.storage.store import Store

# A process imports only what its own stage needs.
if TYPE_CHECKING:
    from mrcg.reranker.scorer import Reranking
    from mrcg.retrieval.searcher import Searcher

T = TypeVar("T")
#: Nodes of the random graph that a reranker is checked with.
CHECK_NODES = 8


class Loader(Protocol[T]):
    """How one stage loads its part of a release."""

    def key(self, release: Release) -> str:
        """Return a name for what is loaded; releases with the same key share it in memory."""
        ...

    def load(self, release: Release) -> T:
        """Load the stage's part of a release.

        Raises:
            IntegrityError: a file differs from the published one.
            WeightsError: the reranker was trained on another encoder's embeddings.
        """
        ...

    def check(self, loaded: T) -> None:
        """Run the loaded part once on test input.

        Raises:
            ReleaseError: the output is not valid.
        """
        ...


def load_and_check(loader: Loader[T], release: Release) -> T:
    """Load a stage's part of a release and check it; raises what ``load`` and ``check`` raise."""
    loaded = loader.load(release)
    loader.check(loaded)
    return loaded


class AnyEmbedder(Protocol):
    """An encoder on any engine."""

    fingerprint: str

    @property
    def input_size(self) -> int:
        """Side length of the images that it takes, in pixels."""
        ...

    def embed(self, pixels_nss: Grey) -> npt.NDArray[np.float32]:
        """(n, s, s) grey levels -> (n, d) embeddings."""
        ...


@dataclass(frozen=True)
class EmbedderLoader:
    """Loads the encoder and prepares it for an engine.

    Attributes:
        device: torch device; OpenVINO always runs on the CPU.
        engine: library that computes the embeddings.
        threads: number of threads that OpenVINO uses.
    """

    store: Store
    device: str = "cpu"
    engine: EngineName = "torch"
    threads: int = 1

    def key(self, release: Release) -> str:
        """Return the encoder's version and the hash of the appearance part, for int8 also the corpus to calibrate on.

        Indexes that grew from one another have the same appearance part.
        """
        index = self.store.artefact("indexes", release.index)
        appearance = index.entry(TENSORS).sha256 if TENSORS in index.names() else ""
        return f"{release.encoder} {appearance} {release.corpus if self.engine == 'openvino-int8' else ''}"

    def load(self, release: Release) -> AnyEmbedder:
        """Load the encoder; see ``Loader``."""
        from mrcg.encoder.embedder import Embedder

        encoder, index = self.store.artefact("encoders", release.encoder), self.store.artefact("indexes", release.index)
        loaded: AnyEmbedder = Embedder.open(encoder, self.device, read_appearance(index))
        if self.engine != "torch":
            from mrcg.encoder.openvino_embedder import CALIBRATION_SCANS, OpenVinoEmbedder

            assert isinstance(loaded, Embedder)
            sample = (
                self._sample(release, CALIBRATION_SCANS, loaded.input_size) if self.engine == "openvino-int8" else None
            )
            loaded = OpenVinoEmbedder(loaded, self.threads, sample)
        return loaded

    def _sample(self, release: Release, count: int, side: int) -> Grey:
        corpus = Corpus(self.store.artefact("corpus", release.corpus))
        rows = np.random.default_rng(0).permutation(len(corpus))[:count]
        return corpus.pixels(np.sort(rows).tolist(), side)

    def check(self, loaded: AnyEmbedder) -> None:
        """Embed a uniform grey image."""
        grey = np.full((1, loaded.input_size, loaded.input_size), 128, dtype=np.uint8)
        if not np.isfinite(loaded.embed(grey)).all():
            raise ReleaseError(
                f"encoder {loaded.fingerprint} produces non-finite embeddings for a uniform image: retrain it"
            )


@dataclass(frozen=True)
class SearcherLoader:
    """Loads the index, or one of several parts of it.

    Attributes:
        part, parts: the part to load, from 0, and the number of parts; each part has the shards ``part::parts``.
    """

    store: Store
    part: int = 0
    parts: int = 1

    def key(self, release: Release) -> str:
        """Return the index's version."""
        return release.index

    def load(self, release: Release) -> Searcher:
        """Load the shards of this part; see ``Loader``."""
        from mrcg.retrieval.searcher import Searcher

        return Searcher.open(self.store, release.index, self.part, self.parts)

    def check(self, loaded: Searcher) -> None:
        """Search for the first stored vector."""
        index = loaded.index
        if not len(index.gallery.rows):
            return  # a small gallery has empty shards
        near = index.search(index.vectors(index.gallery.rows[:1]), 1)
        if not (np.isfinite(near.distances_qk) | (near.rows_qk < 0)).all():
            raise ReleaseError(
                "the index returns a non-finite distance for one of its own vectors: run `mrcg verify` on the store"
            )


@dataclass(frozen=True)
class RerankerLoader:
    """Loads the reranker, which must have been trained on the release's encoder."""

    store: Store
    device: str = "cpu"

    def key(self, release: Release) -> str:
        """Return the versions of reranker and encoder."""
        return f"{release.reranker} {release.encoder}"

    def load(self, release: Release) -> Reranking:
        """Load the reranker; see ``Loader``."""
        from mrcg.reranker.scorer import Reranking, Scorer

        _, fingerprint = read_spec(self.store.artefact("encoders", release.encoder))
        reranker = self.store.artefact("rerankers", release.reranker)
        return Reranking(Scorer.open(reranker, self.device, fingerprint))

    def check(self, loaded: Reranking) -> None:
        """Score a graph of random vectors."""
        dim = loaded.scorer.reranker.spec.embedding_dim
        vectors = np.random.default_rng(0).standard_normal((CHECK_NODES, dim)).astype(np.float16)
        scores = loaded.rerank(vectors[:1].astype(np.float32), [vectors])[0]
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ReleaseError("the reranker gives scores outside 0 to 1 for a test graph: retrain it")
