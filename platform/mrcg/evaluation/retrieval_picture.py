"""The retrieval picture: some test queries and their first hits, like paper Fig. 6 and 7."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mrcg.arrays import RowNumbers
from mrcg.corpus.reader import Corpus
from mrcg.hashing import draw
from mrcg.imaging.contact_sheet import Panel, PanelRow, retrieval_picture
from mrcg.reranker.graph_table import GraphTable

HITS_SHOWN = 10


def retrieval_panels(
    corpus: Corpus,
    test: GraphTable,
    orders: Mapping[str, RowNumbers],
    scores: npt.NDArray[np.float32],
    count: int,
    figures: str,
) -> bytes:
    """Return a PNG of some test queries with their first ten hits in each order.

    Args:
        corpus: corpus with the pixels and labels.
        test: neighbour lists of the test queries.
        orders: (q, n) ANN ranks of the hits by the name of the order, best first.
        scores: (q, n) scores of the nodes, in ANN order.
        count: maximum number of queries.
        figures: text that the title shows after the number of queries.
    """
    chosen = chosen_queries(corpus, test, count)
    shown = [
        (q, name, [r for r in ranks_qn[q].tolist() if test.neighbours_qn[q, r] >= 0][:HITS_SHOWN])
        for q in chosen
        for name, ranks_qn in orders.items()
    ]
    rows = [int(test.queries[q]) for q in chosen]
    for q, _, ranks in shown:
        rows += [int(test.neighbours_qn[q, r]) for r in ranks]
    distinct = sorted(set(rows))
    pixels = {distinct[place]: grey for place, grey in corpus.images(distinct)}
    panels = []
    for q, name, ranks in shown:
        query = int(test.queries[q])
        hits = [
            Panel(
                pixels[int(test.neighbours_qn[q, r])],
                corpus.labels[int(test.neighbours_qn[q, r])] or "unlabelled",
                f"score {scores[q, r]:.2f}, ANN rank {r + 1}",
                bool(test.relevant_qn[q, r]),
            )
            for r in ranks
        ]
        panels.append(PanelRow(Panel(pixels[query], corpus.labels[query] or "unlabelled", name), hits))
    return retrieval_picture(panels, f"Hits of {len(chosen)} test queries, {figures}")


def chosen_queries(corpus: Corpus, test: GraphTable, count: int) -> list[int]:
    """Choose queries for the picture, taking classes in turn; the draw depends on ids, not on the results."""
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
