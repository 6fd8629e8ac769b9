"""The layout of an index on disk: the shard of each scan, and the files of each part.

::

    index.json                    facts: kind, effort, sites, parts
    trained.faiss                 the empty trained index that every part starts from (only kinds that are trained)
    parts/<name>.faiss            the FAISS index of a part (kind flat has none: its vectors are the index)
    parts/<name>.vectors.f16      exact embeddings, row-major, memory-mapped
    rows/<name>.arrow             schemas.ROWS: the scan of each row; all null where the row is deleted

A shard consists of one or several parts: those of the first build, and those that later versions added. A later version
refers to the parts that it did not change; only tables of rows that changed are written again
(docs/index.md#building-and-updating).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field

from mrcg.frozen import Frozen

FACTS, TRAINED, VECTORS = "index.json", "trained.faiss", ".vectors.f16"
#: Leading hexadecimal digits of an image id, a hash, that decide its shard: they fit into a signed 64-bit number.
_DIGITS = 15
#: Ids converted to numbers at a time.
_BLOCK = 16_384
KindName = Literal["flat", "hnsw", "ivf_flat", "ivf_sq", "opq_ivf_pq"]


class Shape(Frozen):
    """The kind of an index and its parameters: all that FAISS needs to create it.

    Attributes:
        kind: flat; HNSW; IVF-flat; IVF with 8-bit scalars; OPQ + IVF-PQ, refined from the exact vectors.
        dim: dimensions of an embedding.
        lists: coarse cells of the IVF kinds, shared by all parts; 0 for the others.
        links: links of an HNSW node (M).
        pq_bytes: bytes of a PQ code.
        refine: candidates per requested neighbour that are ordered again by exact distance.
    """

    kind: KindName
    dim: int
    lists: int = 0
    links: int = 0
    pq_bytes: int = 0
    refine: int = 1

    @property
    def trained(self) -> bool:
        """Whether the index has to be trained before vectors can be added (IVF kinds)."""
        return self.lists > 0

    @property
    def inner_dim(self) -> int:
        """Dimensions of cells and codes: OPQ rotates wide vectors into narrower ones."""
        return min(self.dim // self.pq_bytes, 4) * self.pq_bytes if self.kind == "opq_ivf_pq" else self.dim


class PartFacts(Frozen):
    """One part: its shard, its name, its rows on disk, and how many of them are not deleted."""

    shard: int
    name: str
    rows: int
    live: int


class IndexFacts(Frozen):
    """``index.json``.

    Attributes:
        nprobe_or_ef: nprobe (IVF) or ef_search (HNSW) that reached the recall; 0 for flat. ``effort`` in the file.
        recall: recall@50 against exact search.
        measured: number of vectors when the recall was measured; 0 before that.
        trained_on: number of vectors when the index was trained.
        generation: 0 for a new or retrained index, one more with each version that grows from it.
        sites: first shard and number of shards of each site; scans of other sites are spread over all shards.
    """

    # Serialised under the field name of existing files.
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
    """File names of a part."""

    index: str
    vectors: str
    rows: str


def part_files(name: str) -> PartFiles:
    """Return the file names of a part."""
    return PartFiles(f"parts/{name}.faiss", f"parts/{name}{VECTORS}", f"rows/{name}.arrow")


def part_name(shard: int, generation: int, number: int) -> str:
    """Return the name of a part: its shard, the generation that built it, and its number within both."""
    return f"{shard:05d}-{generation:03d}-{number:02d}"


def allocate_shards(counts: Mapping[str, int], shards: int) -> dict[str, tuple[int, int]]:
    """Return the first shard and the number of shards of each site.

    A site gets shards in proportion to its scans, at least one; small sites share a shard.

    Args:
        counts: scans of each site; "" stands for scans without a site.
        shards: number of shards of the index.
    """
    total, start, ranges = sum(counts.values()), 0, {}
    for site in sorted(counts):
        first = min(start * shards // max(total, 1), shards - 1)
        start += counts[site]
        last = max(first + 1, start * shards // max(total, 1))
        ranges[site] = (first, last - first)
    return ranges


def shards_of(
    image_ids: pa.ChunkedArray, scan_sites: pa.ChunkedArray, sites: Mapping[str, tuple[int, int]], shards: int
) -> npt.NDArray[np.int64]:
    """Return the (n,) shards of images: each is one of its site's shards, chosen by the image id, which is a hash."""
    heads = pc.utf8_slice_codeunits(image_ids, 0, _DIGITS).cast(pa.binary()).cast(pa.binary(_DIGITS)).combine_chunks()
    digits = np.frombuffer(heads.buffers()[1], np.uint8, len(heads) * _DIGITS, heads.offset * _DIGITS)
    numbers = np.empty(len(heads), dtype=np.int64)
    for start in range(0, len(heads), _BLOCK):
        block = digits[start * _DIGITS : (start + _BLOCK) * _DIGITS]
        # The low 4 bits of an ASCII digit are its value; those of a letter a to f are its value minus 9.
        values = ((block & 15) + 9 * (block >> 6)).reshape(-1, _DIGITS).astype(np.int64)
        numbers[start : start + _BLOCK] = values @ (16 ** np.arange(_DIGITS - 1, -1, -1, dtype=np.int64))
    coded = pc.fill_null(scan_sites, "").combine_chunks().dictionary_encode()
    ranges = [sites.get(site, (0, shards)) for site in coded.dictionary.to_pylist()]
    first, count = np.array(ranges, dtype=np.int64).reshape(-1, 2)[coded.indices.to_numpy()].T
    image_shards: npt.NDArray[np.int64] = first + numbers % count
    return image_shards


def count_scans_by_site(scan_sites: pa.ChunkedArray) -> dict[str, int]:
    """Return the number of scans of each site; "" stands for scans without a site."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(pc.fill_null(scan_sites, "")).to_pylist()}
