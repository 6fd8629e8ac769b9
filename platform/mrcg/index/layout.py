"""How an index lies on disk: which shard a scan belongs to, and the files of each part (DESIGN §2).

::

    index.json                    facts: kind, effort, sites, parts
    trained.faiss                 the empty trained index that all parts are filled from (kinds that are trained)
    parts/<name>.faiss            candidates of one part (kind flat has none: its vectors are the index)
    parts/<name>.vectors.f16      exact embeddings, row-major, memory-mapped
    rows/<name>.arrow             schemas.ROWS: which scan each row is; all null where it is gone

A shard is several parts: what the first build filled, and what later ones added. A version that grows refers to
the parts it did not change; only its tables of rows are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

FACTS, TRAINED, VECTORS = "index.json", "trained.faiss", ".vectors.f16"
#: Of an image id, a hash in hexadecimal: what fits into 64 bits with a sign.
_DIGITS = 15
#: Ids whose digits are in memory as numbers at once.
_BLOCK = 16_384
KindName = Literal["flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shape(_Frozen):
    """What kind of index it is: all that FAISS has to be told.

    Attributes:
        kind: flat; HNSW; IVF-flat; IVF with 8-bit scalars; OPQ + IVF-PQ, refined from the exact vectors.
        dim: of an embedding.
        lists: coarse cells of the IVF kinds, shared by all parts.
        links: of an HNSW node.
        pq_bytes: of a PQ code.
        refine: candidates per wanted neighbour whose exact distance is computed.
    """

    kind: KindName
    dim: int
    lists: int = 0
    links: int = 0
    pq_bytes: int = 0
    refine: int = 1

    @property
    def trained(self) -> bool:
        """Whether it learns from vectors before it takes any."""
        return self.lists > 0

    @property
    def inner_dim(self) -> int:
        """Of the vectors that cells and codes are made of: OPQ turns wide ones into narrower ones."""
        return min(self.dim // self.pq_bytes, 4) * self.pq_bytes if self.kind == "opq_ivf_pq" else self.dim


class PartFacts(_Frozen):
    """One part: its shard, its name, rows on disk and how many of them are still there."""

    shard: int
    name: str
    rows: int
    live: int


class IndexFacts(_Frozen):
    """``index.json``.

    Attributes:
        nprobe_or_ef: nprobe (IVF) or ef_search (HNSW) that reached the recall; 0 for flat. ``effort`` in the file.
        recall: recall@50 against exact search, and ``measured`` the number of vectors when it was measured.
        trained_on: vectors that there were when it was trained.
        sites: first shard and number of shards of each site; others go by their hash over all shards.
    """

    # Serialised under the name that old files have.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True)

    shape: Shape
    shards: int
    nprobe_or_ef: int = Field(alias="effort")
    recall: float
    measured: int
    trained_on: int
    generation: int
    sites: Mapping[str, tuple[int, int]]
    parts: tuple[PartFacts, ...]


@dataclass(frozen=True)
class PartFiles:
    """Names of the files of a part."""

    index: str
    vectors: str
    rows: str


def part_files(name: str) -> PartFiles:
    """The files of a part."""
    return PartFiles(f"parts/{name}.faiss", f"parts/{name}{VECTORS}", f"rows/{name}.arrow")


def part_name(shard: int, generation: int, piece: int) -> str:
    """Name of a part: its shard, the generation that filled it, and which piece of that."""
    return f"{shard:05d}-{generation:03d}-{piece:02d}"


def allot(counts: Mapping[str, int], shards: int) -> dict[str, tuple[int, int]]:
    """First shard and number of shards of each site.

    A site has shards of its own in proportion to its scans where there are enough of them; small sites share one.

    Args:
        counts: scans of each site; "" stands for none.
        shards: of the whole index.
    """
    total, start, found = sum(counts.values()), 0, {}
    for site in sorted(counts):
        first = min(start * shards // max(total, 1), shards - 1)
        start += counts[site]
        last = max(first + 1, start * shards // max(total, 1))
        found[site] = (first, last - first)
    return found


def shard_of(site: str | None, image_id: str, sites: Mapping[str, tuple[int, int]], shards: int) -> int:
    """Shard of an image: by site, then by its id, which is a hash (DESIGN §2)."""
    first, count = sites.get(site or "", (0, shards))
    return first + int(image_id[:_DIGITS], 16) % count


def shards_of(
    image_ids: pa.ChunkedArray, scan_sites: pa.ChunkedArray, sites: Mapping[str, tuple[int, int]], shards: int
) -> npt.NDArray[np.int64]:
    """Shards of many images: ``shard_of`` of each."""
    heads = pc.utf8_slice_codeunits(image_ids, 0, _DIGITS).cast(pa.binary()).cast(pa.binary(_DIGITS)).combine_chunks()
    digits = np.frombuffer(heads.buffers()[1], np.uint8, len(heads) * _DIGITS, heads.offset * _DIGITS)
    numbers = np.empty(len(heads), dtype=np.int64)
    for start in range(0, len(heads), _BLOCK):
        some = digits[start * _DIGITS : (start + _BLOCK) * _DIGITS]
        # The low bits of an ASCII digit are its value, those of a letter its value less 9.
        values = ((some & 15) + 9 * (some >> 6)).reshape(-1, _DIGITS).astype(np.int64)
        numbers[start : start + _BLOCK] = values @ (16 ** np.arange(_DIGITS - 1, -1, -1, dtype=np.int64))
    coded = pc.fill_null(scan_sites, "").combine_chunks().dictionary_encode()
    places = [sites.get(site, (0, shards)) for site in coded.dictionary.to_pylist()]
    first, count = np.array(places, dtype=np.int64).reshape(-1, 2)[coded.indices.to_numpy()].T
    found: npt.NDArray[np.int64] = first + numbers % count
    return found


def scans_of_sites(scan_sites: pa.ChunkedArray) -> dict[str, int]:
    """Scans of each site; "" stands for none."""
    return {one["values"]: one["counts"] for one in pc.value_counts(pc.fill_null(scan_sites, "")).to_pylist()}
