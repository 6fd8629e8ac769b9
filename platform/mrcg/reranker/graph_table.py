"""Neighbour lists on disk: ids, distances and labels; features are gathered when needed (DESIGN §3)."""

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
    """Neighbour lists of many queries: (q,) gallery rows, (q, n) rows (-1 pads), distances and labels."""

    queries: npt.NDArray[np.int64]
    neighbours_qn: npt.NDArray[np.int64]
    distances_qn: npt.NDArray[np.float32]
    relevant_qn: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.queries)


def graph_table(queries: npt.NDArray[np.int64], part: str, near: Neighbours, labels: npt.NDArray[np.int64]) -> pa.Table:
    """Table of ``schemas.graphs`` for queries of one part.

    Args:
        queries: (q,) gallery rows.
        part: train, held_out, validation or test.
        near: their neighbours.
        labels: (rows of the gallery,) a number for each label, -1 where there is none.
    """
    of_query = labels[queries][:, None]
    relevant = (labels[near.rows_qk] == of_query) & (near.rows_qk >= 0) & (of_query >= 0)
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
    """The neighbour lists of one part of a version of kind ``graphs``."""
    tables = [schemas.from_parquet(data) for _, data in artefact.each("graphs/")]
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
