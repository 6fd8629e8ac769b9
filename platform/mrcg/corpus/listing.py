"""The listing of new source files, and its division into segments (docs/corpus.md#incremental-ingestion).

A listing is a Parquet file. Each row is a page of ``FILES_PER_PAGE`` files, encrypted if there is a key: paths and
manifests name people, and the attempt of a killed run stays in the store for a while. A segment is a run of pages whose
pixels fill about one file of the corpus. Only one page is in memory at a time, however large the source is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrcg.corpus.folder_walk import UNUSABLE
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.reader import QUARANTINE, SCANS
from mrcg.corpus.sources import Source, SourceFile, SourceReader, Surveyor, files_in_listing, listing_table
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Artefact, Store

#: Files in a page, the smallest unit of work.
FILES_PER_PAGE = 64
#: Minimum number of segments if there are enough pages, so that a few cores can share a small source.
MIN_SEGMENTS = 8
#: Maximum number of files read to measure how many bytes of pixels a file yields.
SAMPLE_FILES = 32
#: With more new files than this, a sample is read before cutting, to estimate the bytes of pixels per file.
MEASURE_ABOVE_FILES = 2048
#: Quarantine reasons that may not recur: such files are read again by the next ingestion.
TRANSIENT_REASONS = frozenset({*UNUSABLE, "changed", "timeout", "crashed", "too_much_memory"})

Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Listing:
    """Summary of a walk through a source and of the listing that it wrote.

    Attributes:
        source: location, digest and counts as of this walk.
        files: number of new or changed files.
        pages: rows of the listing.
        kept: sorted digests of the files that are in the source and that the base has already read.
        samples: at most ``SAMPLE_FILES`` new files, spread evenly.
    """

    source: Source
    files: int
    pages: int
    kept: Digests
    samples: Sequence[SourceFile]


def file_digests(keys: Iterable[str], stamps: Iterable[str]) -> Digests:
    """Return an (n,) array of 64-bit digests, one for each pair of stored key and stamp."""
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(f"{key}\x1f{stamp}".encode(), digest_size=8).digest(), "little")
            for key, stamp in zip(keys, stamps, strict=True)
        ),
        dtype=np.uint64,
    )


def known_files(corpus: Artefact) -> Digests:
    """Return the sorted digests of the files that need no reading again: all but those with a transient failure."""
    digests = [np.empty(0, dtype=np.uint64)]
    for _, data in corpus.iter_files(SCANS):
        table = schemas.from_parquet(data, ["source_key", "stamp"])
        digests.append(row_digests(table.group_by(["source_key", "stamp"]).aggregate([])))
    for _, data in corpus.iter_files(QUARANTINE):
        table = schemas.from_parquet(data, ["source_key", "stamp", "reason"])
        permanent = pc.invert(pc.is_in(table["reason"], pa.array(sorted(TRANSIENT_REASONS))))
        digests.append(row_digests(table.filter(permanent)))
    return np.unique(np.concatenate(digests))


def row_digests(table: pa.Table) -> Digests:
    """Return the ``file_digests`` of the rows of a scans or quarantine table."""
    return file_digests(table["source_key"].to_pylist(), table["stamp"].to_pylist())


def write_listing(source: SourceReader, total: int, rules: Rules, known: Digests, sink: HashingFile) -> Listing:
    """Walk a source and write the listing of its new files.

    Args:
        source: to walk.
        total: number of files in the source; sets how far apart the samples are.
        rules: of this ingestion; their key gives the stored keys and encrypts the pages.
        known: sorted digests of the files that need no reading.
        sink: receives a Parquet file of ``schemas.PAGES``.

    Raises:
        SourceError: the source has no files, or a row of its manifest is wrong.
    """
    stride = max(1, total // SAMPLE_FILES)
    pages, count, samples = 0, 0, list[SourceFile]()
    is_kept = np.zeros(len(known), dtype=bool)
    with pq.ParquetWriter(sink, schemas.PAGES, compression="zstd") as writer:
        surveyor = Surveyor(source)
        for page in _pages(_new_files(surveyor.walk(), rules, known, is_kept)):
            data = schemas.to_parquet(listing_table(page))
            sealed = data if rules.pseudonyms is None else rules.pseudonyms.seal(data, _page_name(pages))
            writer.write_table(pa.table({"page": [sealed]}, schema=schemas.PAGES))
            samples += [file for number, file in enumerate(page, count) if number % stride == 0]
            pages += 1
            count += len(page)
    return Listing(surveyor.source(), count, pages, known[is_kept], samples[:SAMPLE_FILES])


def cut_segments(pages: int, files: int, bytes_per_file: float, file_bytes: int) -> list[tuple[int, int]]:
    """Divide the pages into segments (first page, one past the last), each of about ``file_bytes`` of pixels.

    A segment has at least one page, and there are at least ``MIN_SEGMENTS`` segments if there are enough pages.

    Args:
        pages: number of pages in the listing.
        files: number of files in all pages.
        bytes_per_file: bytes of pixels that a file yields, measured on a sample; 0 if not measured.
        file_bytes: target size of a segment.
    """
    if not pages:
        return []
    by_size = math.ceil(files * bytes_per_file / file_bytes)
    count = min(pages, max(MIN_SEGMENTS, by_size))
    edges = [number * pages // count for number in range(count + 1)]
    return list(itertools.pairwise(edges))


def read_pages(store: Store, path: str, pages: range, rules: Rules) -> Iterator[SourceFile]:
    """Yield the files of a range of pages of a listing, with one page in memory at a time."""
    with store.fs.open(store.path(path), "rb") as file:
        yield from pages_in(pq.ParquetFile(file), pages, rules)


def pages_in(parquet: pq.ParquetFile, pages: Iterable[int], rules: Rules) -> Iterator[SourceFile]:
    """Yield the files of some pages of an open listing."""
    for page in pages:
        (row,) = parquet.read_row_group(page, use_threads=False).to_pylist()  # see schemas.from_parquet
        data = row["page"]
        yield from files_in_listing(
            schemas.from_parquet(data if rules.pseudonyms is None else rules.pseudonyms.unseal(data, _page_name(page)))
        )


@dataclass(frozen=True)
class Plan:
    """The segments of an ingestion; stored once, so that a resumed run uses the same segments.

    Attributes:
        files: number of files to read.
        segments: (first page, one past the last page) of each.
    """

    files: int
    segments: Sequence[tuple[int, int]]

    def to_bytes(self) -> bytes:
        """Encode as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, value: dict[str, object]) -> Plan:
        """Decode the parsed JSON of ``to_bytes``."""
        segments = value["segments"]
        assert isinstance(segments, list)
        return cls(int(str(value["files"])), [(int(first), int(last)) for first, last in segments])


def _new_files(
    files: Iterable[SourceFile], rules: Rules, known: Digests, is_kept: npt.NDArray[np.bool_]
) -> Iterator[SourceFile]:
    """Yield the files whose digests are not in ``known``; set ``is_kept`` at the positions of the others."""
    for page in _pages(files):
        digests = file_digests((rules.stored_key(file.key) for file in page), (file.stamp for file in page))
        places = np.searchsorted(known, digests)
        inside = places < len(known)
        inside[inside] = known[places[inside]] == digests[inside]
        is_kept[places[inside]] = True
        yield from (file for file, is_known in zip(page, inside.tolist(), strict=True) if not is_known)


def _page_name(number: int) -> str:
    """Return what a page is encrypted under, so that no page of a listing can stand in for another of it."""
    return f"page {number} of the listing"


def _pages(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    remaining = iter(files)
    while page := list(itertools.islice(remaining, FILES_PER_PAGE)):
        yield page
