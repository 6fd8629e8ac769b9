"""Measure the weights of each of the last epochs, as in the tables of the paper (docs/method.md#the-paper)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import safetensors.torch

from mrcg.arrays import Vectors
from mrcg.corpus.embeddings import embeddings_of
from mrcg.corpus.features import StoredFeatures
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.corpus.splits import Split
from mrcg.encoder.appearance import facts_in
from mrcg.encoder.embedder import Embedder
from mrcg.encoder.model import Encoder
from mrcg.encoder.spec import read_spec as read_encoder_spec
from mrcg.errors import require
from mrcg.evaluation.masking import ScanAttributes, mask_own_hits, masks_own, reachable
from mrcg.evaluation.paper_systems import Trial, TrialEpoch, TrialFigures
from mrcg.index.distances import Neighbours
from mrcg.metrics.order import BY_SCORE
from mrcg.metrics.ranking import Relevance
from mrcg.metrics.report import query_figures
from mrcg.reranker.graph_table import GraphTable, read_graphs
from mrcg.reranker.model import Reranker
from mrcg.reranker.scorer import score_graphs
from mrcg.reranker.spec import read_spec as read_reranker_spec
from mrcg.stages.counts import SplitCounts
from mrcg.storage.store import Artefact
from mrcg.training.state import snapshots_of

BATCH = 64


class TestProtocol:
    """The test part of a protocol, and the figures of its queries under that protocol.

    Args:
        inputs: artefacts of the kinds corpus and splits.
    """

    def __init__(self, inputs: Mapping[str, Artefact]) -> None:
        self.corpus, self.split = Corpus(inputs["corpus"]), Split(inputs["splits"])
        self.protocol = inputs["splits"].manifest.counts_as(SplitCounts).protocol
        self.scans = ScanAttributes(self.corpus.labels, self.corpus.groups, self.corpus.scans["patient"].to_pylist())
        self.queries = np.flatnonzero(self.split.test)

    def masked(self, graphs: GraphTable) -> GraphTable:
        """Return the graphs; under protocol ``dedup`` without hits of the query's own group or patient."""
        return mask_own_hits(graphs, self.scans)[0] if masks_own(self.protocol) else graphs

    def epoch(self, number: int, graphs: GraphTable, relevant_qn: Relevance) -> TrialEpoch:
        """Return the figures of the test queries with the weights of one epoch.

        Args:
            number: the epoch.
            graphs: neighbour lists of the test queries.
            relevant_qn: (queries, n) ranked relevance.
        """
        reachable_q = reachable(graphs.queries, self.split.train, self.scans, masks_own(self.protocol))
        figures = query_figures(relevant_qn, reachable_q)
        labels = np.array([self.corpus.labels[query] for query in graphs.queries.tolist()], dtype=object)
        names, nodes_qn = TrialFigures.model_fields.keys() & figures.keys(), graphs.neighbours_qn >= 0

        def means(mask_q: npt.NDArray[np.bool_]) -> dict[str, float]:
            found = {name: float(figures[name][mask_q].mean()) for name in names}
            return {**found, "same_class": float(relevant_qn[mask_q].sum() / nodes_qn[mask_q].sum().clip(1))}

        return TrialEpoch(
            epoch=number,
            per_class={label: TrialFigures(**means(labels == label)) for label in sorted(set(labels))},
            **means(np.ones(len(labels), dtype=bool)),
        )

    def trial(self, epochs: list[TrialEpoch]) -> Trial:
        """Combine the figures of all epochs into a trial, sorted by epoch."""
        return Trial(
            protocol=self.protocol,
            queries=len(self.queries),
            gallery=int(self.split.train.sum()),
            epochs=tuple(sorted(epochs, key=lambda row: row.epoch)),
        )


def measure_rerankers(inputs: Mapping[str, Artefact], device: str) -> Trial:
    """Measure the reranked order with the weights of each of a reranker's last epochs; the encoder is not varied.

    Args:
        inputs: artefacts of the kinds corpus, splits, embeddings, graphs and rerankers.
        device: device that scores.
    """
    protocol, embeddings = TestProtocol(inputs), inputs["embeddings"]
    vectors, graphs = embeddings_of(embeddings), protocol.masked(read_graphs(inputs["graphs"], "test"))
    reranker = Reranker(read_reranker_spec(inputs["rerankers"], facts_in(embeddings.manifest).encoder))
    reranker.to(device)
    epochs = []
    for number, name in snapshots_of(inputs["rerankers"]).items():
        reranker.load_state_dict(safetensors.torch.load(inputs["rerankers"].read_bytes(name)))
        scores = score_graphs(reranker, graphs, vectors, BATCH, device)
        order = BY_SCORE.ranks(scores, graphs.distances_qn, np.zeros(scores.shape, dtype=bool))
        epochs.append(protocol.epoch(number, graphs, np.take_along_axis(graphs.relevant_qn, order, 1)))
    return protocol.trial(epochs)


def measure_encoder(inputs: Mapping[str, Artefact], number: int, neighbours: int, device: str) -> TrialEpoch:
    """Measure the ANN order with the weights of one epoch: embed the corpus and search the gallery exactly.

    Args:
        inputs: artefacts of the kinds corpus, splits and encoders, and features where the trunk is frozen.
        number: the epoch.
        neighbours: number of neighbours per query.
        device: device that embeds.
    """
    protocol, artefact = TestProtocol(inputs), inputs["encoders"]
    encoder = Encoder(read_encoder_spec(artefact)[0])
    encoder.load_state_dict(safetensors.torch.load(artefact.read_bytes(snapshots_of(artefact)[number])))
    embedder = Embedder(encoder, "", device)
    stored = StoredFeatures(inputs["features"]) if "features" in inputs else None
    parts = []
    for name in inputs["corpus"].names(IMAGES):
        features = None if stored is None else stored.of_file(name)
        parts.append(embedder.embed_images(protocol.corpus.images_of(name), BATCH, features)[1])
    vectors = np.concatenate(parts)
    gallery = np.flatnonzero(protocol.split.train)
    near = _exact(vectors[protocol.queries], vectors[gallery], neighbours)
    rows = np.where(near.rows_qk >= 0, gallery[near.rows_qk], -1)
    labels = np.array([*protocol.corpus.labels, None], dtype=object)
    relevant = (labels[rows] == labels[protocol.queries][:, None]) & (rows >= 0)
    graphs = protocol.masked(GraphTable(protocol.queries, rows, near.distances_qk, relevant))
    return protocol.epoch(number, graphs, graphs.relevant_qn)


def _exact(queries_qd: Vectors, gallery_nd: Vectors, k: int) -> Neighbours:
    faiss = require("faiss")
    index = faiss.IndexFlatL2(gallery_nd.shape[1])
    index.add(gallery_nd.astype(np.float32))
    distances, rows = index.search(queries_qd.astype(np.float32), k)
    return Neighbours(rows, np.where(rows >= 0, distances, np.float32(np.inf)))
