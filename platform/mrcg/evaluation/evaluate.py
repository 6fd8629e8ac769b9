"""Evaluate a reranker on the test part: ANN order and reranked side by side (DESIGN §3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mrcg.config import EvaluateSettings
from mrcg.corpus import Corpus, Split, embeddings_of
from mrcg.evaluation.metrics import DEPTH
from mrcg.evaluation.picture import Panel, PanelRow, retrieval_picture
from mrcg.evaluation.report import PICTURE, REPORT, TABLES, Report, order_figures, tables_markdown
from mrcg.graph.table import GraphTable, read_graphs
from mrcg.hashing import draw
from mrcg.reranker.scorer import Scorer
from mrcg.reranker.train import rerank_order, score_graphs
from mrcg.store import Artefact

HITS_SHOWN = 10
BATCH = 64


def evaluate(
    inputs: Mapping[str, Artefact], settings: EvaluateSettings, facts: Mapping[str, float]
) -> dict[str, bytes]:
    """Measure and draw.

    Args:
        inputs: artefacts of the kinds corpus, splits, embeddings, graphs and rerankers.
        settings: of the report.
        facts: ``recall`` of the index and ``epochs`` of the encoder, as their manifests state them.

    Returns:
        The report's files by name.
    """
    corpus, split = Corpus(inputs["corpus"]), Split(inputs["splits"])
    test, validation = read_graphs(inputs["graphs"], "test"), read_graphs(inputs["graphs"], "validation")
    scorer = Scorer.open(inputs["rerankers"])
    scores = score_graphs(scorer.reranker, test, embeddings_of(inputs["embeddings"]), BATCH, scorer.device)
    order = rerank_order(scores)
    labels = [corpus.labels[row] or "" for row in test.queries.tolist()]
    gallery = Counter(label for label, ok in zip(corpus.labels, split.train, strict=True) if ok and label)
    report = Report(
        protocol=str(inputs["splits"].manifest.counts["protocol"]),
        queries=len(test),
        gallery=int(split.train.sum()),
        depth=min(DEPTH, test.relevant_qn.shape[1]),
        ann=order_figures(test.relevant_qn, labels, gallery),
        reranked=order_figures(np.take_along_axis(test.relevant_qn, order, 1), labels, gallery),
        index_recall_at_50=facts["recall"],
        leaking_queries=_leaking(corpus, split),
        ood_threshold=_ood_threshold(validation, settings.ood_quantile),
        encoder_epochs=int(facts["epochs"]),
    )
    return {
        REPORT: report.model_dump_json(indent=1).encode(),
        TABLES: tables_markdown(report).encode(),
        PICTURE: _picture(corpus, test, order, scores, settings.picture_queries, report),
    }


def _leaking(corpus: Corpus, split: Split) -> int:
    """Queries that have an image of their own group in the gallery."""
    groups = np.array(corpus.groups)
    return int(np.isin(groups[split.test], groups[split.train]).sum())


def _ood_threshold(validation: GraphTable, quantile: float) -> float | None:
    """Distance to the nearest other group that few validation queries exceed; None without any."""
    nearest = validation.distances_qn[:, 0]
    nearest = nearest[np.isfinite(nearest)]
    return float(np.quantile(nearest, quantile)) if len(nearest) else None


def _picture(
    corpus: Corpus,
    test: GraphTable,
    order: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    count: int,
    report: Report,
) -> bytes:
    chosen = _chosen_queries(corpus, test, count)
    ranks = {q: [r for r in order[q, :HITS_SHOWN].tolist() if test.neighbours_qn[q, r] >= 0] for q in chosen}
    rows = [int(test.queries[q]) for q in chosen]
    for q in chosen:
        rows += [int(test.neighbours_qn[q, r]) for r in ranks[q]]
    distinct = sorted(set(rows))
    pixels = {distinct[place]: grey for place, grey in corpus.images(distinct)}
    panels = []
    for q in chosen:
        query = int(test.queries[q])
        hits = [
            Panel(
                pixels[int(test.neighbours_qn[q, r])],
                corpus.labels[int(test.neighbours_qn[q, r])] or "unlabelled",
                f"score {scores[q, r]:.2f}, ANN rank {r + 1}",
                bool(test.relevant_qn[q, r]),
            )
            for r in ranks[q]
        ]
        panels.append(PanelRow(Panel(pixels[query], corpus.labels[query] or "unlabelled", "query"), hits))
    title = (
        f"Reranked hits of {len(chosen)} test queries, protocol {report.protocol}: "
        f"MAP {100 * report.reranked.map:.1f} (ANN order {100 * report.ann.map:.1f})"
    )
    return retrieval_picture(panels, title)


def _chosen_queries(corpus: Corpus, test: GraphTable, count: int) -> list[int]:
    """Queries for the picture: classes in turn, drawn by id and not by how well they did."""
    ids = corpus.scans["image_id"]
    by_class: dict[str, list[int]] = {}
    for q in sorted(range(len(test)), key=lambda q: draw(0, "picture", ids[int(test.queries[q])].as_py())):
        by_class.setdefault(corpus.labels[int(test.queries[q])] or "", []).append(q)
    chosen: list[int] = []
    while len(chosen) < min(count, len(test)):
        for label in sorted(by_class):
            if by_class[label] and len(chosen) < count:
                chosen.append(by_class[label].pop(0))
    return chosen
