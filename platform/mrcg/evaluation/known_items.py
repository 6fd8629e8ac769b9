"""Search for gallery scans by their own pixels, unchanged and changed (docs/method.md#known-items)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import Distances, Fp16Vectors, Fp32Vectors, Mask, RowNumbers
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import facts_in, read_appearance
from mrcg.encoder.embedder import Embedder
from mrcg.hashing import draw, seed_of
from mrcg.imaging.changes import CHANGES
from mrcg.imaging.slices import Grey, resize
from mrcg.index.sharded_index import ShardedIndex
from mrcg.metrics.known_items import UNCHANGED, KnownRanks, Ranks
from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder, exact_copies
from mrcg.reranker.scorer import Scorer
from mrcg.storage.store import Artefact

#: The forms in which a scan is searched for.
FORMS = (UNCHANGED, *CHANGES)
#: Scans that are changed, embedded and scored together.
BATCH = 32


@dataclass(frozen=True)
class KnownSearches:
    """What s gallery scans find in c forms, n hits each, in ANN order.

    Attributes:
        rows: (s,) of the corpus.
        fitted: (s,) whether the encoder was fitted on each.
        scores_scn, distances_scn: of the reranker, -1 for pads; squared L2 of the whole vectors.
        copies_scn: whether a hit is an exact copy of the query as far as its vector can tell.
        own_scn: whether a hit has the pixels of the scan itself.
    """

    rows: RowNumbers
    fitted: Mask
    scores_scn: npt.NDArray[np.float32]
    distances_scn: Distances
    copies_scn: Mask
    own_scn: Mask

    def ranks(self, order: HitOrder) -> Ranks:
        """Return the (s, c) rank at which each scan finds itself in an order, infinity where it does not."""
        own, n = self.own_scn, self.own_scn.shape[-1]
        ranked = order.ranks(
            self.scores_scn.reshape(-1, n), self.distances_scn.reshape(-1, n), self.copies_scn.reshape(-1, n)
        )
        found = np.take_along_axis(own.reshape(-1, n), ranked, 1)
        ranks: Ranks = np.where(found.any(axis=1), found.argmax(axis=1) + 1.0, np.inf).reshape(own.shape[:2])
        return ranks


@dataclass(frozen=True)
class KnownItemSearch:
    """Searches a release for scans of its own gallery, as a caller with the pixels would.

    Attributes:
        corpus, split: of the release.
        fitted: (rows,) scans that the encoder was fitted on.
        embedder, index, scorer: its stages.
        trained_dim: dimensions of the trained part of a vector.
        neighbours: hits of a search.
    """

    corpus: Corpus
    split: Split
    fitted: Mask
    embedder: Embedder
    index: ShardedIndex
    scorer: Scorer
    trained_dim: int
    neighbours: int

    def drawn(self, count: int) -> RowNumbers:
        """Draw up to ``count`` gallery scans by id; up to half are scans that the encoder did not see."""
        ids = self.corpus.scans["image_id"]

        def chosen(rows: RowNumbers, most: int) -> list[int]:
            return sorted(rows.tolist(), key=lambda row: draw(0, "known item", ids[row].as_py()))[:most]

        gallery, fitted = self.split.train, self.fitted
        unseen = chosen(np.flatnonzero(gallery & ~fitted), (count + 1) // 2)
        seen = chosen(np.flatnonzero(gallery & fitted), count - len(unseen))
        return np.array(sorted([*unseen, *seen]), dtype=np.int64)

    def search(self, rows: RowNumbers) -> KnownSearches:
        """Search for scans in all forms."""
        hashes = np.array(self.corpus.scans["pixel_hash"].to_pylist(), dtype=object)
        parts = [self._batch(rows[start : start + BATCH], hashes) for start in range(0, len(rows), BATCH)]
        if not parts:
            empty = np.empty((0, len(FORMS), self.neighbours))
            floats = empty.astype(np.float32)
            return KnownSearches(rows, self.fitted[rows], floats, floats, empty > 0, empty > 0)
        return KnownSearches(
            rows, self.fitted[rows], *(np.concatenate(columns) for columns in zip(*parts, strict=True))
        )

    def _batch(
        self, rows: RowNumbers, hashes: npt.NDArray[np.object_]
    ) -> tuple[npt.NDArray[np.float32], Distances, Mask, Mask]:
        side = self.embedder.input_size
        pixels = np.empty((len(rows), len(FORMS), side, side), dtype=np.uint8)
        for place, grey in self.corpus.images(rows.tolist()):
            seed = seed_of(0, "known item", self.corpus.scans["image_id"][int(rows[place])].as_py())
            for form, changed in enumerate(forms_of(grey, seed)):
                pixels[place, form] = resize(changed, side)
        queries_qd = self.embedder.embed(pixels.reshape(-1, side, side))
        near = self.index.search(queries_qd, self.neighbours, self.split.train[: len(self.index)])
        vectors_qnd, mask_qn = self.index.vectors(near.rows_qk), near.rows_qk >= 0
        scores = self._scores(queries_qd, vectors_qnd, mask_qn)
        copies = exact_copies(queries_qd, vectors_qnd, self.trained_dim) & mask_qn
        own = (hashes[near.rows_qk] == np.repeat(hashes[rows], len(FORMS))[:, None]) & mask_qn
        shape = (len(rows), len(FORMS), self.neighbours)
        return scores.reshape(shape), near.distances_qk.reshape(shape), copies.reshape(shape), own.reshape(shape)

    def _scores(self, queries_qd: Fp32Vectors, vectors_qnd: Fp16Vectors, mask_qn: Mask) -> npt.NDArray[np.float32]:
        batches = [slice(start, start + BATCH) for start in range(0, len(queries_qd), BATCH)]
        return np.concatenate([self.scorer.score(queries_qd[b], vectors_qnd[b], mask_qn[b]) for b in batches])


def search_known_items(inputs: Mapping[str, Artefact], count: int, device: str = "cpu") -> KnownSearches | None:
    """Search for up to ``count`` scans of the gallery in all forms; None for a count of 0.

    Args:
        inputs: artefacts of the kinds corpus, splits, embeddings, graphs and rerankers.
        count: number of scans.
        device: torch device of the encoder and the reranker.

    Raises:
        IntegrityError: a file differs from the published one.
    """
    if not count:
        return None
    embeddings, graphs = inputs["embeddings"], inputs["graphs"].manifest
    store, facts = embeddings.store, facts_in(embeddings.manifest)
    encoder = store.artefact("encoders", embeddings.manifest.inputs["encoders"])
    corpus, split = Corpus(inputs["corpus"]), Split(inputs["splits"])
    search = KnownItemSearch(
        corpus=corpus,
        split=split,
        fitted=fitted_scans(corpus, split, encoder),
        embedder=Embedder.open(encoder, device, read_appearance(embeddings)),
        index=ShardedIndex.open(store.artefact("indexes", graphs.inputs["indexes"])),
        scorer=Scorer.open(inputs["rerankers"], device, facts.encoder),
        trained_dim=facts.trained_dim,
        neighbours=int(graphs.settings["graph"]["neighbours"]),
    )
    return search.search(search.drawn(count))


def fitted_scans(corpus: Corpus, split: Split, encoder: Artefact) -> Mask:
    """Return the (rows,) mask of the scans that an encoder was fitted on, which may be fewer than a later split says.

    If the splits that it was trained with are gone, because of an erasure, it is what ``split`` says.
    """
    store, version = encoder.store, encoder.manifest.inputs["splits"]
    if not store.has("splits", version):
        return split.fit
    trained = Split(store.artefact("splits", version))
    fitted: Mask = pc.is_in(corpus.scans["image_id"], trained.image_ids.filter(pa.array(trained.fit))).to_numpy()
    return fitted


def forms_of(grey: Grey, seed: int) -> Iterator[Grey]:
    """Yield the forms of a scan, in the order of ``FORMS``; equal seeds give equal forms."""
    yield grey
    for change in CHANGES.values():
        yield change(grey, np.random.default_rng(seed))


def known_ranks(found: KnownSearches, corpus: Corpus, served: HitOrder) -> KnownRanks:
    """Return at which rank each scan finds itself in each order."""
    ids, groups = corpus.scans["image_id"], corpus.groups
    orders = {"ann": BY_DISTANCE, "score": BY_SCORE, "served": served}
    return KnownRanks(
        image_ids=[str(ids[row].as_py()) for row in found.rows.tolist()],
        groups=[groups[row] for row in found.rows.tolist()],
        fitted=found.fitted,
        forms=FORMS,
        ranks={name: found.ranks(order) for name, order in orders.items()},
    )
