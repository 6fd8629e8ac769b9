"""All shards of an index together: assign, search, merge, gather."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.index.shard import Mask, Neighbours, Rows, Shard, Vectors, exact_distances, shard_files
from mrcg.store import Artefact


def shard_of(site: str | None, image_id: str, shards: int) -> int:
    """Shard of an image: by site, then by the hash of its id (DESIGN §2)."""
    data = f"{site or ''}\x1f{image_id}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") % shards


def merge(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """The k nearest of several searches of the same queries; ties by gallery row."""
    rows = np.concatenate([part.rows_qk for part in parts], axis=1)
    distances = np.concatenate([part.distances_qk for part in parts], axis=1)
    order = np.lexsort((rows, distances), axis=1)[:, :k]
    return Neighbours(np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1))


class ShardedIndex:
    """The gallery in memory. Rows are those of the corpus' scans.parquet."""

    def __init__(self, shards: Sequence[Shard], probes: int) -> None:
        self.shards = list(shards)
        self.probes = probes
        total = sum(len(shard.rows) for shard in shards)
        self._shard = np.full(total, -1, dtype=np.int32)
        self._local = np.full(total, -1, dtype=np.int64)
        for number, shard in enumerate(shards):
            self._shard[shard.rows] = number
            self._local[shard.rows] = np.arange(len(shard.rows))
        assert (self._shard >= 0).all(), "the shards do not hold every row once"
        table = pa.concat_tables([shard.table for shard in shards]).sort_by("row")
        self.image_ids: list[str] = table["image_id"].to_pylist()
        self.labels: list[str | None] = table["label"].to_pylist()
        self.groups: list[str] = table["group_id"].to_pylist()

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.shards[0].vectors_nd.shape[1])

    @classmethod
    def open(cls, artefact: Artefact) -> ShardedIndex:
        """Load an index; every file is hashed as it is read.

        Raises:
            IntegrityError: a file is not the one that was published.
        """
        facts = json.loads(artefact.read_bytes("index.json"))
        shards = [Shard.read(*(artefact.read_bytes(name) for name in shard_files(n))) for n in range(facts["shards"])]
        return cls(shards, facts["probes"])

    def search(self, queries_qd: Vectors, k: int, allowed: Mask | None = None) -> Neighbours:
        """The k nearest allowed images of each query over all shards, nearest first.

        Args:
            queries_qd: (q, d) embeddings.
            k: how many; fewer come back only where fewer are allowed.
            allowed: (rows of the gallery,), None allows all.
        """
        assert allowed is None or len(allowed) == len(self)
        return merge([shard.search(queries_qd, k, allowed, self.probes) for shard in self.shards], k)

    def vectors(self, rows: Rows) -> npt.NDArray[np.float16]:
        """(..., d) stored embeddings of gallery rows; zeros where a row is -1."""
        flat = rows.reshape(-1)
        out = np.zeros((len(flat), self.dim), dtype=np.float16)
        for number, shard in enumerate(self.shards):
            here = (flat >= 0) & (self._shard[flat] == number)
            out[here] = shard.vectors_nd[self._local[flat[here]]]
        return out.reshape(*rows.shape, self.dim)


def recall_at(found: Rows, exact: Rows) -> float:
    """Share of the exact neighbours that a search found: (q, k) rows against (q, k) rows, -1 pads."""
    hits = total = 0
    for mine, true in zip(found, exact, strict=True):
        wanted = set(true[true >= 0].tolist())
        hits += len(wanted & set(mine.tolist()))
        total += len(wanted)
    return hits / total if total else 1.0


def exact_search(queries_qd: Vectors, vectors_nd: Vectors, k: int) -> Rows:
    """(q, k) nearest rows by brute force; ties by row, -1 where there are fewer."""
    rows = np.full((len(queries_qd), k), -1, dtype=np.int64)
    for number, query in enumerate(queries_qd):
        order = np.argsort(exact_distances(query, vectors_nd), kind="stable")[:k]
        rows[number, : len(order)] = order
    return rows
