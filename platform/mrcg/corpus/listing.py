"""The work of an ingestion, written down: which files are new, and how they are cut into segments.

A listing is a Parquet file whose rows are pages of a few files, sealed where there is a key: paths and manifests
name people, and an attempt that was killed stays for a while. A segment is a run of pages whose pixels make about
one file of the corpus. Walking and cutting hold one page in memory, however large the source is.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mrcg.corpus.ingestion import Rules
from mrcg.corpus.reader import QUARANTINE, SCANS
from mrcg.corpus.sources import Files, Source, SourceFile, Surveyor, listed, listing_table
from mrcg.storage import schemas
from mrcg.storage.filesystem import HashingFile
from mrcg.storage.store import Artefact, Store

#: Files of a page: what the smallest task reads.
PAGE = 64
#: A source gives at least so many segments where it has the pages, so that a few cores have something to do.
SEGMENTS = 8
#: Files that are looked at to learn how many bytes of pixels one gives.
SAMPLES = 32
#: From so many new files on, a few are read to learn what they give before the source is cut.
MEASURED = 2048
#: QuarantinedFile for reasons that may pass: read again when the source is ingested again.
PASSING = frozenset({"missing", "unreadable", "timeout", "crashed", "too_much_memory"})

Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Listing:
    """What a walk through a source found.

    Attributes:
        source: as the walk found it.
        files: new or changed ones.
        pages: rows of the listing.
        kept: digests of the files that the base has read already, sorted.
        samples: new files spread evenly over the source.
    """

    source: Source
    files: int
    pages: int
    kept: Digests
    samples: Sequence[SourceFile]


def file_digests(keys: Iterable[str], stamps: Iterable[str]) -> Digests:
    """64 bits for each file as it is now, by stored key and stamp: (n,)."""
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(f"{key}\x1f{stamp}".encode(), digest_size=8).digest(), "little")
            for key, stamp in zip(keys, stamps, strict=True)
        ),
        dtype=np.uint64,
    )


def known_files(corpus: Artefact) -> Digests:
    """Digests, sorted, of the files that a corpus has read for good."""
    found = [np.empty(0, dtype=np.uint64)]
    for _, data in corpus.each(SCANS):
        table = schemas.from_parquet(data, ["source_key", "stamp"])
        found.append(row_digests(table.group_by(["source_key", "stamp"]).aggregate([])))
    for _, data in corpus.each(QUARANTINE):
        table = schemas.from_parquet(data, ["source_key", "stamp", "reason"])
        lasting = pc.invert(pc.is_in(table["reason"], pa.array(sorted(PASSING))))
        found.append(row_digests(table.filter(lasting)))
    return np.unique(np.concatenate(found))


def row_digests(table: pa.Table) -> Digests:
    """``file_digests`` of the rows of ``schemas.SCANS`` or ``QUARANTINE``."""
    return file_digests(table["source_key"].to_pylist(), table["stamp"].to_pylist())


def write_listing(files: Files, total: int, rules: Rules, known: Digests, sink: HashingFile) -> Listing:
    """Walk a source and write down its new files.

    Args:
        files: the source.
        total: how many files it has.
        rules: for the stored keys.
        known: sorted digests of files that need no reading.
        sink: takes a Parquet file of ``schemas.PAGES``.
    """
    stride = max(1, total // SAMPLES)
    pages, count, samples = 0, 0, list[SourceFile]()
    found = np.zeros(len(known), dtype=bool)
    nonce = secrets.token_hex(16)
    with pq.ParquetWriter(sink, schemas.PAGES, compression="zstd") as writer:
        surveyor = Surveyor(files)
        for page in _pages(_new(surveyor.walk(), rules, known, found)):
            name = f"{nonce}-{pages}"
            data = schemas.to_parquet(listing_table(page))
            sealed = data if rules.pseudonyms is None else rules.pseudonyms.seal(data, name)
            writer.write_table(pa.table({"nonce": [name], "page": [sealed]}, schema=schemas.PAGES))
            samples += [file for place, file in enumerate(page, count) if place % stride == 0]
            pages += 1
            count += len(page)
    return Listing(surveyor.source(), count, pages, known[found], samples[:SAMPLES])


def cut_segments(pages: int, files: int, bytes_per_file: float, file_bytes: int) -> list[tuple[int, int]]:
    """Runs (first page, one past the last) of pages, each of about ``file_bytes`` of pixels.

    Args:
        pages: of the listing.
        files: in all pages.
        bytes_per_file: of pixels that a file gives, as measured on a few.
        file_bytes: wanted size.
    """
    if not pages:
        return []
    wanted = math.ceil(files * bytes_per_file / file_bytes)
    count = min(pages, max(SEGMENTS, wanted))
    edges = [number * pages // count for number in range(count + 1)]
    return list(itertools.pairwise(edges))


def read_pages(store: Store, path: str, pages: range, rules: Rules) -> Iterator[SourceFile]:
    """The files of some pages of a listing; one page in memory."""
    with store.fs.open(store.path(path), "rb") as file:
        yield from pages_in(pq.ParquetFile(file), pages, rules)


def pages_in(parquet: pq.ParquetFile, pages: Iterable[int], rules: Rules) -> Iterator[SourceFile]:
    """The files of some pages of an open listing."""
    for page in pages:
        (row,) = parquet.read_row_group(page).to_pylist()
        data = row["page"]
        yield from listed(
            schemas.from_parquet(data if rules.pseudonyms is None else rules.pseudonyms.seal(data, row["nonce"]))
        )


@dataclass(frozen=True)
class Plan:
    """The segments of an ingestion; written once, so that a resumed one cuts as the first did."""

    files: int
    segments: Sequence[tuple[int, int]]

    def to_bytes(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, value: dict[str, object]) -> Plan:
        """Of ``to_bytes``."""
        segments = value["segments"]
        assert isinstance(segments, list)
        return cls(int(str(value["files"])), [(int(first), int(last)) for first, last in segments])


def _new(
    walk: Iterable[SourceFile], rules: Rules, known: Digests, found: npt.NDArray[np.bool_]
) -> Iterator[SourceFile]:
    """The files that are not known; those that are get marked as found."""
    for page in _pages(walk):
        digests = file_digests((rules.stored_key(file.key) for file in page), (file.stamp for file in page))
        places = np.searchsorted(known, digests)
        inside = places < len(known)
        inside[inside] = known[places[inside]] == digests[inside]
        found[places[inside]] = True
        yield from (file for file, is_known in zip(page, inside.tolist(), strict=True) if not is_known)


def _pages(files: Iterable[SourceFile]) -> Iterator[list[SourceFile]]:
    waiting = iter(files)
    while page := list(itertools.islice(waiting, PAGE)):
        yield page
