"""The neighbour lists of a report, scored, with all that measuring and drawing them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mrcg.arrays import Codes, Fp16Vectors, Mask, RowNumbers
from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.reader import Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import facts_in
from mrcg.evaluation.known_items import KnownSearches
from mrcg.evaluation.masking import ScanAttributes, mask_own_hits, masks_own, reachable
from mrcg.metrics.order import HitOrder, exact_copies
from mrcg.metrics.report import Queries
from mrcg.reranker.graph_table import GraphTable, read_graphs
from mrcg.reranker.neighbours import codes_of
from mrcg.reranker.scorer import Scorer, score_graphs
from mrcg.stages.counts import SplitCounts
from mrcg.storage.store import Artefact

BATCH = 64

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ScoredPart:
    """Neighbour lists of one part of the split, the (q, n) scores of the hits, and which are copies."""

    graphs: GraphTable
    scores: Scores
    copies: Mask

    def ranks(self, order: HitOrder) -> RowNumbers:
        """Return the (q, n) ANN ranks of the hits in an order."""
        return order.ranks(self.scores, self.graphs.distances_qn, self.copies)

    def relevant(self, order: HitOrder) -> Mask:
        """Return the (q, n) relevance of the hits in an order."""
        return np.take_along_axis(self.graphs.relevant_qn, self.ranks(order), 1)

    def hits(self, order: HitOrder) -> RowNumbers:
        """Return the (q, n) rows of the hits in an order, -1 for pads."""
        return np.take_along_axis(self.graphs.neighbours_qn, self.ranks(order), 1)

    def groups_n(self, groups: Sequence[str]) -> Codes:
        """Return, for each hit that is no pad, the number of its query's group; ``groups`` is by row of the corpus."""
        codes = codes_of([groups[row] for row in self.graphs.queries.tolist()])
        return codes[np.nonzero(self.nodes_qn)[0]]

    @property
    def nodes_qn(self) -> Mask:
        """(q, n) True where there is a hit, False for pads."""
        return self.graphs.neighbours_qn >= 0

    @property
    def nearest(self) -> npt.NDArray[np.float32]:
        """Squared L2 distance to the nearest hit, for the queries that have a hit."""
        nearest = self.graphs.distances_qn[:, 0]
        return nearest[np.isfinite(nearest) & self.nodes_qn[:, 0]]


@dataclass(frozen=True)
class ScoredLists:
    """The input of metrics and figures; ``vectors`` is (rows, d), ``masked`` the number of masked test hits."""

    protocol: str
    corpus: Corpus
    split: Split
    scans: ScanAttributes
    vectors: Fp16Vectors
    test: ScoredPart
    validation: ScoredPart
    masked: int
    known: KnownSearches | None

    def queries_of(self, part: ScoredPart) -> Queries:
        """The queries of a part."""
        rows = part.graphs.queries
        return Queries(
            [self.corpus.labels[row] or "" for row in rows.tolist()],
            [self.corpus.groups[row] for row in rows.tolist()],
            reachable(rows, self.split.train, self.scans, masks_own(self.protocol)),
        )


def score_lists(inputs: Mapping[str, Artefact], known: KnownSearches | None) -> ScoredLists:
    """Score the neighbour lists of the validation and the test part.

    Under protocol ``dedup``, hits of the query's own group or patient are removed from the lists before.

    Args:
        inputs: artefacts of the kinds corpus, splits, embeddings, graphs and rerankers.
        known: searches for gallery scans; None without known items.

    Raises:
        WeightsError: the reranker was trained on another encoder's embeddings.
    """
    corpus, split = Corpus(inputs["corpus"]), Split(inputs["splits"])
    protocol = inputs["splits"].manifest.counts_as(SplitCounts).protocol
    scans = ScanAttributes(corpus.labels, corpus.groups, corpus.scans["patient"].to_pylist())
    embeddings = inputs["embeddings"]
    vectors, facts = embeddings_of(embeddings), facts_in(embeddings.manifest)
    scorer = Scorer.open(inputs["rerankers"], encoder_fingerprint=facts.encoder)
    masked = {"validation": 0, "test": 0}
    parts: dict[str, ScoredPart] = {}
    for name in masked:
        graphs = read_graphs(inputs["graphs"], name)
        if masks_own(protocol):
            graphs, masked[name] = mask_own_hits(graphs, scans)
        scores = score_graphs(scorer.reranker, graphs, vectors, BATCH, scorer.device)
        parts[name] = ScoredPart(graphs, scores, _copies(graphs, vectors, facts.trained_dim))
    return ScoredLists(
        protocol, corpus, split, scans, vectors, parts["test"], parts["validation"], masked["test"], known
    )


def _copies(graphs: GraphTable, vectors_nd: Fp16Vectors, trained_dim: int) -> Mask:
    copies = np.zeros(graphs.neighbours_qn.shape, dtype=bool)
    for start in range(0, len(graphs), BATCH):
        rows = graphs.neighbours_qn[start : start + BATCH]
        queries = vectors_nd[graphs.queries[start : start + BATCH]]
        copies[start : start + BATCH] = exact_copies(queries, vectors_nd[rows], trained_dim) & (rows >= 0)
    return copies
