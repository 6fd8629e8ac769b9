"""Evaluate a reranker on the test part: the orders of the hits side by side (docs/design.md#evaluation)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Distances, Mask, RowNumbers
from mrcg.config.settings import EvaluateSettings
from mrcg.corpus.reader import Corpus
from mrcg.evaluation.figures import (
    MapPoints,
    confusion_figure,
    curves_figure,
    distance_figure,
    map_figure,
    nodes_figure,
    reliability_figure,
)
from mrcg.evaluation.graded_likeness import graded_likeness
from mrcg.evaluation.html_report import Drawings, report_page
from mrcg.evaluation.known_items import KnownSearches, known_ranks
from mrcg.evaluation.markdown import tables_markdown
from mrcg.evaluation.masking import OwnScans, count_shared, masks_own
from mrcg.evaluation.neighbouring_slices import neighbouring_slices
from mrcg.evaluation.order_choice import GRID, GridFigures, choose_order, order_of
from mrcg.evaluation.projection import project_to_plane
from mrcg.evaluation.retrieval_picture import retrieval_panels
from mrcg.evaluation.scored_lists import ScoredLists, ScoredPart, score_lists
from mrcg.hashing import draw
from mrcg.metrics.calibration import (
    UNSURE,
    Calibration,
    fit_platt,
    reliability,
    skill,
    slope_interval,
    why_withheld,
)
from mrcg.metrics.known_items import KnownRanks
from mrcg.metrics.order import BY_DISTANCE, BY_SCORE, HitOrder, OrderChoice
from mrcg.metrics.ranking import DEPTH, average_precision, precision_at
from mrcg.metrics.report import (
    CAVEAT,
    CAVEAT_KNOWN,
    KNOWN,
    PAGE,
    PICTURE,
    QUERIES,
    REPORT,
    SEED,
    TABLES,
    Intervals,
    Leakage,
    OutOfDistribution,
    Report,
    Training,
    confusion,
    gains,
    order_figures,
    query_figures,
)
from mrcg.reranker.graph_table import GraphTable, read_graphs
from mrcg.reranker.spec import HISTORY
from mrcg.storage import schemas
from mrcg.storage.store import Artefact


def evaluate(
    inputs: Mapping[str, Artefact],
    settings: EvaluateSettings,
    facts: Mapping[str, float],
    encoder: Artefact | None = None,
    known: KnownSearches | None = None,
) -> dict[str, bytes]:
    """Choose the order of the hits, measure the test part, draw the figures and return the files of the report.

    Under protocol ``dedup``, hits of the query's own group or patient are removed from the lists before scoring.

    Args:
        inputs: artefacts of the kinds corpus, splits, embeddings, graphs and rerankers.
        settings: settings of the report.
        facts: ``recall`` of the index and ``epochs`` of the encoder, from their manifests.
        encoder: artefact of kind encoders, for its training curves; None omits them.
        known: searches for gallery scans, see ``search_known_items``; None omits known items.

    Returns:
        Content of the report's files by name; equal inputs give equal bytes.

    Raises:
        MissingExtraError: a package of the extra ``train`` is not installed.
    """
    scored = score_lists(inputs, known)
    trainings = _training(encoder), _training(inputs["rerankers"])
    chosen = _chosen_order(scored, settings)
    ranks = None if known is None else known_ranks(known, scored.corpus, chosen.order)
    report = _measure(scored, settings, facts, trainings, chosen, ranks)
    test, served = scored.test, report.served_figures
    title = f"protocol {report.protocol}: MAP {100 * served.map:.1f} (ANN order {100 * report.ann.map:.1f})"
    orders = {"by distance": BY_DISTANCE, "by score": BY_SCORE}
    served_as = next((f"{name}, served" for name, order in orders.items() if order == chosen.order), "served")
    orders = {name: order for name, order in orders.items() if order != chosen.order} | {served_as: chosen.order}
    picture = retrieval_panels(
        scored.corpus,
        test.graphs,
        {name: test.ranks(order) for name, order in orders.items()},
        test.scores,
        settings.picture_queries,
        title,
    )
    drawings = _draw(report, scored, _training_graphs(inputs), settings.map_images)
    sources = dict(inputs) if encoder is None else {**inputs, "encoders": encoder}
    versions = sorted((kind, artefact.manifest.version) for kind, artefact in sources.items())
    known_table = {} if ranks is None else {KNOWN: schemas.to_parquet(pa.table(ranks.columns(), schemas.KNOWN_ITEMS))}
    return {
        **known_table,
        REPORT: report.model_dump_json(indent=1).encode(),
        QUERIES: schemas.to_parquet(_query_table(scored, chosen.order)),
        TABLES: tables_markdown(report).encode(),
        PICTURE: picture,
        PAGE: report_page(report, drawings, picture, versions),
    }


def _chosen_order(scored: ScoredLists, settings: EvaluateSettings) -> OrderChoice:
    """Choose the order on the validation part, which the encoder was not fitted on."""
    if settings.order == "score":
        return OrderChoice()
    known, validation = scored.known, scored.validation
    figures = query_figures_of_orders(validation.relevant, [order_of(weight) for weight in GRID])
    first_kl, groups = np.empty((0, len(GRID))), list[str]()
    if known is not None and (unseen := scored.split.validation[known.rows] & ~known.fitted).any():
        ranks = [known.ranks(order_of(weight))[unseen, 1:] for weight in GRID]
        first_kl = np.stack([(weight_ranks == 1).mean(axis=1) for weight_ranks in ranks], axis=1)
        groups = [scored.corpus.groups[row] for row in known.rows[unseen].tolist()]
    return choose_order(
        GridFigures(*figures, list(scored.queries_of(validation).groups), first_kl, groups), settings.bootstrap
    )


def query_figures_of_orders(
    relevant: Callable[[HitOrder], Mask], orders: Sequence[HitOrder]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the (q, l) AP and P@1 of each query in each order."""
    each = [relevant(order)[:, :DEPTH] for order in orders]
    return np.stack([average_precision(ranked) for ranked in each], 1), np.stack([precision_at(r, 1) for r in each], 1)


def _measure(
    scored: ScoredLists,
    settings: EvaluateSettings,
    facts: Mapping[str, float],
    trainings: tuple[Training, Training],
    chosen: OrderChoice,
    ranks: KnownRanks | None,
) -> Report:
    corpus, split, test = scored.corpus, scored.split, scored.test
    queries, rows = scored.queries_of(test), test.graphs.queries
    before, by_score, served = test.graphs.relevant_qn, test.relevant(BY_SCORE), test.relevant(chosen.order)
    resamples, first_hits = settings.bootstrap, test.ranks(chosen.order)[:, 0]
    hits = {"ann": test.hits(BY_DISTANCE), "score": test.hits(BY_SCORE), "served": test.hits(chosen.order)}
    leakage = Leakage(
        near_duplicates=count_shared(split.test, split.train, corpus.scans["cluster_id"].to_pylist()),
        same_patient=count_shared(split.test, split.train, scored.scans.patients),
        patients_known=sum(scored.scans.patients[row] is not None for row in rows.tolist()),
    )
    return Report(
        protocol=scored.protocol,
        queries=len(test.graphs),
        gallery=int(split.train.sum()),
        depth=min(DEPTH, before.shape[1]),
        ann=order_figures(before, queries, resamples),
        reranked=order_figures(by_score, queries, resamples),
        gain=gains(before, by_score, queries, resamples),
        order=chosen,
        served=order_figures(served, queries, resamples),
        served_gain=gains(before, served, queries, resamples),
        known_items=None if ranks is None else ranks.figures(resamples, SEED),
        neighbouring_slices=neighbouring_slices(corpus.scans, rows, split.train, hits),
        graded_likeness=graded_likeness(
            corpus.scans,
            rows,
            split.train,
            OwnScans(scored.scans) if masks_own(scored.protocol) else None,
            hits,
            queries.groups,
            resamples,
        ),
        bootstrap=resamples,
        confusion=confusion(
            queries.labels,
            _hit_classes(corpus, test, np.zeros_like(rows)),
            _hit_classes(corpus, test, first_hits),
        ),
        calibration=_calibration(scored.validation, test, corpus.groups, resamples),
        typical_distance=_median(scored.validation.graphs.distances_qn[scored.validation.nodes_qn]),
        out_of_distribution=_out_of_distribution(scored.validation, test, settings.ood_quantile),
        index_recall_at_50=facts["recall"],
        leaking_queries=count_shared(split.test, split.train, corpus.groups),
        leakage=leakage,
        masked_hits=scored.masked,
        encoder_epochs=int(facts["epochs"]),
        encoder_training=trainings[0],
        reranker_training=trainings[1],
        caveat=CAVEAT if leakage.patients_known < len(rows) else CAVEAT_KNOWN,
    )


def _median(distances: Distances) -> float | None:
    finite = distances[np.isfinite(distances)]
    return float(np.median(finite)) if len(finite) else None


def _query_table(scored: ScoredLists, served: HitOrder) -> pa.Table:
    """Return the figures of each test query in each order, to find failing queries and to compare runs."""
    test, queries = scored.test, scored.queries_of(scored.test)
    columns: dict[str, Any] = {
        "image_id": scored.corpus.scans["image_id"].take(test.graphs.queries),
        "group_id": queries.groups,
        "label": queries.labels,
    }
    for name, order in (("ann", BY_DISTANCE), ("reranked", BY_SCORE), ("served", served)):
        figures = query_figures(test.relevant(order), queries.reachable_q)
        columns |= {f"{name}_{figure}": figures[figure].astype(np.float32) for figure in Intervals.model_fields}
    return pa.table(columns, schema=schemas.QUERIES)


def _hit_classes(corpus: Corpus, test: ScoredPart, ranks_q: RowNumbers) -> list[str | None]:
    """Return the class of the hit at the given ANN rank of each query; None without a hit or a label."""
    rows = np.take_along_axis(test.graphs.neighbours_qn, ranks_q[:, None], 1)[:, 0]
    return [corpus.labels[row] if row >= 0 else None for row in rows.tolist()]


def _calibration(validation: ScoredPart, test: ScoredPart, groups: Sequence[str], resamples: int) -> Calibration:
    """Fit the score map on the validation part and measure the reliability on the test part."""
    scores, relevant = test.scores[test.nodes_qn], test.graphs.relevant_qn[test.nodes_qn]
    test_groups = test.groups_n(groups)
    known, targets = validation.scores[validation.nodes_qn], validation.graphs.relevant_qn[validation.nodes_qn]
    fitted = fit_platt(known, targets)
    if fitted is None:
        calibration = Calibration(raw=reliability(scores, relevant), map=None, calibrated=None)
    else:
        probabilities = fitted.apply(scores)
        unsure = probabilities < UNSURE
        calibration = Calibration(
            raw=reliability(scores, relevant),
            map=fitted,
            calibrated=reliability(probabilities, relevant),
            slope=slope_interval(known, targets, validation.groups_n(groups), SEED),
            skill=skill(probabilities, relevant, test_groups, resamples, SEED),
            skill_below=skill(probabilities[unsure], relevant[unsure], test_groups[unsure], resamples, SEED),
        )
    return calibration.model_copy(update={"withheld": why_withheld(calibration)})


def _out_of_distribution(validation: ScoredPart, test: ScoredPart, quantile: float) -> OutOfDistribution:
    """Take the threshold from the nearest-hit distances of the validation queries and flag test queries above it."""
    threshold = float(np.quantile(validation.nearest, quantile)) if len(validation.nearest) else None
    return OutOfDistribution(
        threshold=threshold,
        quantile=quantile,
        flagged=0 if threshold is None else int((test.nearest > threshold).sum()),
        median_distance=float(np.median(test.nearest)) if len(test.nearest) else None,
    )


def _training(artefact: Artefact | None) -> Training:
    """Read the training history of an artefact; empty if there is none (untrained or not made by a training)."""
    if artefact is None or HISTORY not in artefact.names():
        return Training()
    history = json.loads(artefact.read_bytes(HISTORY))
    return Training(best_epoch=history.get("best_epoch", -1), epochs=tuple(history.get("epochs", ())))


def _training_graphs(inputs: Mapping[str, Artefact]) -> list[GraphTable]:
    """Return the graphs that the reranker was trained on, as far as they are in the store."""
    reranker = inputs["rerankers"]
    source = reranker.manifest.settings["reranker"]["graphs"]
    if source != "cross_fit":
        graphs = read_graphs(inputs["graphs"], source)
        # After an update that only grew the gallery, the graphs have no training part.
        return [graphs] if len(graphs) else []
    folds = [version for name, version in reranker.manifest.inputs.items() if name.startswith("graphs:")]
    store = reranker.store
    return [
        read_graphs(store.artefact("graphs", version), "train") for version in folds if store.has("graphs", version)
    ]


def _draw(report: Report, scored: ScoredLists, training_graphs: Sequence[GraphTable], map_images: int) -> Drawings:
    trainings = {
        name: training
        for name, training in (("encoder", report.encoder_training), ("reranker", report.reranker_training))
        if training.epochs
    }
    nodes = {"test": scored.test.graphs.relevant_qn.sum(axis=1)}
    if training_graphs:
        counts = [graphs.relevant_qn.sum(axis=1) for graphs in training_graphs]
        nodes = {"training": np.concatenate(counts), **nodes}
    points = _map_points(scored, map_images)
    return Drawings(
        confusion=confusion_figure(report.confusion),
        reliability=reliability_figure(report.calibration),
        nodes=nodes_figure(nodes, scored.test.graphs.relevant_qn.shape[1]),
        distance=distance_figure(scored.validation.nearest, scored.test.nearest, report.out_of_distribution),
        curves=curves_figure(trainings) if trainings else None,
        map=None if points is None else map_figure(points),
    )


def _map_points(scored: ScoredLists, limit: int) -> MapPoints | None:
    """Project up to ``limit`` gallery and test scans; the draw depends on ids, not on row order or class."""
    ids = scored.corpus.scans["image_id"].to_pylist()
    rows = np.flatnonzero(scored.split.train | scored.split.test).tolist()
    chosen = sorted(sorted(rows, key=lambda row: draw(0, "map", ids[row]))[:limit])
    points = project_to_plane(scored.vectors[chosen])
    if points is None:
        return None
    return MapPoints(points, [scored.corpus.labels[row] or "" for row in chosen], scored.split.test[chosen])
