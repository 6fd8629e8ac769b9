"""Neighbour lists on disk: rows, distances and relevance; embeddings are looked up when graphs are built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.index.distances import Neighbours
from mrcg.storage import schemas
from mrcg.storage.store import Artefact


@dataclass(frozen=True)
class GraphTable:
    """Neighbour lists of many queries, nearest first.

    Attributes:
        queries: (q,) gallery rows of the queries.
        neighbours_qn: (q, n) gallery rows of their neighbours, -1 for pads.
        distances_qn: (q, n) squared L2 distances.
        relevant_qn: (q, n) True where a neighbour has the query's label.
    """

    queries: npt.NDArray[np.int64]
    neighbours_qn: npt.NDArray[np.int64]
    distances_qn: npt.NDArray[np.float32]
    relevant_qn: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.queries)


def graph_table(queries: npt.NDArray[np.int64], part: str, near: Neighbours, labels: npt.NDArray[np.int64]) -> pa.Table:
    """Return the queries of one part as a table with the schema ``schemas.graphs``.

    Args:
        queries: (q,) gallery rows.
        part: train, held_out, validation or test.
        near: their neighbours.
        labels: (gallery rows,) a number for the label of each scan, -1 without a label.
    """
    query_labels = labels[queries][:, None]
    relevant = (labels[near.rows_qk] == query_labels) & (near.rows_qk >= 0) & (query_labels >= 0)
    n = near.rows_qk.shape[1]
    return pa.table(
        {
            "query": queries,
            "part": [part] * len(queries),
            "neighbours": _lists(near.rows_qk.astype(np.int32), n),
            "distances": _lists(near.distances_qk.astype(np.float32), n),
            "relevant": _lists(relevant, n),
        },
        schema=schemas.graphs(n),
    )


def read_graphs(artefact: Artefact, part: str) -> GraphTable:
    """Return the neighbour lists of one part from a version of kind ``graphs``."""
    tables = [schemas.from_parquet(data) for _, data in artefact.iter_files("graphs/")]
    table = pa.concat_tables(tables)
    table = table.filter(pa.compute.equal(table["part"], part))
    n = table.schema.field("neighbours").type.list_size

    def matrix(name: str) -> npt.NDArray[np.generic]:
        values: npt.NDArray[np.generic] = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, n)

    return GraphTable(
        table["query"].to_numpy().astype(np.int64),
        matrix("neighbours").astype(np.int64),
        matrix("distances").astype(np.float32),
        matrix("relevant").astype(bool),
    )


def _lists(values: npt.NDArray[np.generic], n: int) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), n)
