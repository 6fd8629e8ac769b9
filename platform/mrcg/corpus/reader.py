"""Reading a corpus: its table of scans, and pixels of chosen rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.imaging.slices import Grey, pixel_hash, resize
from mrcg.storage import schemas
from mrcg.storage.store import Artefact

SCANS, QUARANTINE, IMAGES = "scans/", "quarantine/", "images/"


def read_scans(artefact: Artefact, columns: Sequence[str] | None = None) -> pa.Table:
    """The whole table of ``schemas.SCANS`` of a corpus, or some of its columns."""
    return pa.concat_tables(schemas.from_parquet(data, columns) for _, data in artefact.each(SCANS))


def read_quarantine(artefact: Artefact) -> pa.Table:
    """The whole table of ``schemas.QUARANTINE`` of a corpus."""
    return pa.concat_tables(schemas.from_parquet(data) for _, data in artefact.each(QUARANTINE))


class Corpus:
    """A version of kind ``corpus``. Rows are those of its table of scans."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.scans: pa.Table = read_scans(artefact)
        self.labels: list[str | None] = self.scans["label"].to_pylist()
        self.groups: list[str] = self.scans["group_id"].to_pylist()
        self._row_of: dict[str, int] | None = None

    def __len__(self) -> int:
        return int(self.scans.num_rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """All labels, sorted."""
        return tuple(sorted({label for label in self.labels if label is not None}))

    def pixels(self, rows: Sequence[int], side: int) -> Grey:
        """(n, side, side) grey levels of some rows, in their order."""
        out = np.empty((len(rows), side, side), dtype=np.uint8)
        for place, grey in self.images(rows):
            out[place] = resize(grey, side)
        return out

    def images(self, rows: Sequence[int]) -> Iterator[tuple[int, Grey]]:
        """(place among ``rows``, grey levels at stored size) of some rows, file by file."""
        taken = self.scans.select(["file", "file_row"]).take(pa.array(rows, pa.int64()))
        wanted: dict[str, list[tuple[int, int]]] = {}
        for place, (name, file_row) in enumerate(
            zip(taken["file"].to_pylist(), taken["file_row"].to_pylist(), strict=True)
        ):
            wanted.setdefault(name, []).append((place, file_row))
        for name, places in wanted.items():
            places.sort(key=lambda one: one[1])
            data = self.artefact.read_bytes(name)
            for (place, _), (_, grey) in zip(places, images_in(data, [one[1] for one in places]), strict=True):
                yield place, grey

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """Rows of each file that are part of this corpus, rising: a file that an earlier one wrote may have more."""
        rows: dict[str, list[int]] = {}
        for name, file_row in zip(self.scans["file"].to_pylist(), self.scans["file_row"].to_pylist(), strict=True):
            rows.setdefault(name, []).append(file_row)
        return rows

    def images_of(self, name: str) -> Iterator[tuple[str, Grey]]:
        """(image id, grey levels at stored size) of one file of pixels, in the order of the scans."""
        return images_in(self.artefact.read_bytes(name), self._rows_of[name])

    def row_of(self, image_id: str) -> int:
        """Row of an image.

        Raises:
            NotFoundError: the corpus has no such image.
        """
        if self._row_of is None:
            self._row_of = {one: row for row, one in enumerate(self.scans["image_id"].to_pylist())}
        if image_id not in self._row_of:
            raise self.unknown(image_id)
        return self._row_of[image_id]

    def unknown(self, image_id: str) -> NotFoundError:
        """The error that says an image is not there."""
        return NotFoundError(f"no image {image_id} in corpus {self.artefact.manifest.version}")

    def image(self, image_id: str) -> Grey:
        """Grey levels at stored size of one image, read alone from its row group.

        Raises:
            NotFoundError: the corpus has no such image, or the store no such corpus any more.
            IntegrityError: its pixels are not those that were ingested.
        """
        row = self.row_of(image_id)
        name, file_row = self.scans["file"][row].as_py(), self.scans["file_row"][row].as_py()
        store = self.artefact.store
        try:
            with store.fs.open(store.path(self.artefact.relative(name)), "rb") as file:
                parquet = pq.ParquetFile(file)
                group = 0
                while file_row >= (rows := parquet.metadata.row_group(group).num_rows):
                    file_row -= rows
                    group += 1
                grey = grey_of(parquet.read_row_group(group), file_row)
        except FileNotFoundError as error:
            # A release that was opened before an erasure goes on to answer, but its pixels lie elsewhere now.
            raise NotFoundError(f"the pixels of {image_id} went with an old release: serve the current one") from error
        if pixel_hash(grey) != self.scans["pixel_hash"][row].as_py():
            raise IntegrityError(f"{name}: the pixels of {image_id} were changed after they were ingested")
        return grey


def images_in(data: bytes, rows: Sequence[int]) -> Iterator[tuple[str, Grey]]:
    """(image id, grey levels at stored size) of some rows of a file of ``schemas.IMAGES``; one row group in memory.

    Args:
        data: the Parquet file.
        rows: rising; a row may stand there more than once.
    """
    parquet = pq.ParquetFile(pa.BufferReader(data))
    group, start, table = -1, 0, None
    for row in rows:
        while table is None or row >= start + table.num_rows:
            start += 0 if table is None else table.num_rows
            group += 1
            # A group is only counted where none of its rows is wanted.
            rows_in_group = parquet.metadata.row_group(group).num_rows
            if row >= start + rows_in_group:
                start, table = start + rows_in_group, None
                continue
            table = parquet.read_row_group(group)
        yield table["image_id"][row - start].as_py(), grey_of(table, row - start)


def grey_of(images: pa.Table, row: int) -> Grey:
    """(height, width) grey levels of one row of ``schemas.IMAGES``."""
    height, width = images["height"][row].as_py(), images["width"][row].as_py()
    return np.frombuffer(images["pixels"][row].as_buffer(), dtype=np.uint8).reshape(height, width)


def rows_in(artefact: Artefact, name: str) -> int:
    """Images in a file of pixels, those too that the corpus has no more."""
    store = artefact.store
    with store.fs.open(store.path(artefact.relative(name)), "rb") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def without_rows(data: bytes, rows: Sequence[int]) -> bytes:
    """A file of pixels with some of its rows alone, in row groups of at most the size that it has."""
    parquet, sink = pq.ParquetFile(pa.BufferReader(data)), io.BytesIO()
    kept, start = np.asarray(rows, dtype=np.int64), 0
    with pixels_writer(sink) as writer:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            here = kept[(kept >= start) & (kept < start + count)] - start
            if len(here):
                writer.write_table(parquet.read_row_group(group).take(pa.array(here)), row_group_size=len(here))
            start += count
    return sink.getvalue()


def pixels_writer(sink: Any) -> pq.ParquetWriter:
    """A writer of files of pixels. Neither a dictionary nor statistics of pixels are of use to anybody."""
    return pq.ParquetWriter(
        sink, schemas.IMAGES, compression="zstd", use_dictionary=False, write_statistics=["image_id"]
    )
