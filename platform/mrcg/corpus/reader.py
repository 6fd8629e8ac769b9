"""Read a corpus: its scans and quarantine tables, and the pixels of some rows."""

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
    """Read the scans table of a corpus (``schemas.SCANS``), or some of its columns; those that it lacks are null."""
    return pa.concat_tables(scans_in(data, columns) for _, data in artefact.iter_files(SCANS))


def scans_in(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a scans table in Parquet bytes, or some columns; those that an earlier version did not write are null."""
    names = schemas.SCANS.names if columns is None else list(columns)
    present = pq.read_schema(pa.BufferReader(data)).names
    table = schemas.from_parquet(data, [name for name in names if name in present])
    for name in names:
        if name not in present:
            assert name in schemas.ADDED_SCANS, name
            field = schemas.SCANS.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(names)


def read_quarantine(artefact: Artefact) -> pa.Table:
    """Read the quarantine table of a corpus (``schemas.QUARANTINE``)."""
    return pa.concat_tables(schemas.from_parquet(data) for _, data in artefact.iter_files(QUARANTINE))


class Corpus:
    """A version of kind ``corpus``; row numbers are those of its scans table."""

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
        """All distinct labels, sorted."""
        return tuple(sorted({label for label in self.labels if label is not None}))

    def pixels(self, rows: Sequence[int], side: int) -> Grey:
        """Return the (n, side, side) grey levels of some rows, resized, in the order of ``rows``."""
        out = np.empty((len(rows), side, side), dtype=np.uint8)
        for place, grey in self.images(rows):
            out[place] = resize(grey, side)
        return out

    def images(self, rows: Sequence[int]) -> Iterator[tuple[int, Grey]]:
        """Yield (index into ``rows``, grey levels at stored size) of some rows, in the order of the pixel files."""
        selected = self.scans.select(["file", "file_row"]).take(pa.array(rows, pa.int64()))
        by_file: dict[str, list[tuple[int, int]]] = {}
        for place, (name, file_row) in enumerate(
            zip(selected["file"].to_pylist(), selected["file_row"].to_pylist(), strict=True)
        ):
            by_file.setdefault(name, []).append((file_row, place))
        for name, entries in by_file.items():
            entries.sort(key=lambda entry: entry[0])
            images = images_in(self.artefact.read_bytes(name), [file_row for file_row, _ in entries])
            for (_, place), (_, grey) in zip(entries, images, strict=True):
                yield place, grey

    @cached_property
    def _rows_of(self) -> dict[str, list[int]]:
        """The ascending rows of each pixel file that are in this corpus; a file of an earlier version may hold more."""
        rows: dict[str, list[int]] = {}
        for name, file_row in zip(self.scans["file"].to_pylist(), self.scans["file_row"].to_pylist(), strict=True):
            rows.setdefault(name, []).append(file_row)
        return rows

    def images_of(self, name: str) -> Iterator[tuple[str, Grey]]:
        """Yield (image id, grey levels at stored size) of one pixel file, in the order of the scans table."""
        return images_in(self.artefact.read_bytes(name), self._rows_of[name])

    def row_of(self, image_id: str) -> int:
        """Return the row of an image.

        Raises:
            NotFoundError: the corpus has no such image.
        """
        if self._row_of is None:
            self._row_of = {ident: row for row, ident in enumerate(self.scans["image_id"].to_pylist())}
        if image_id not in self._row_of:
            raise self.unknown_image(image_id)
        return self._row_of[image_id]

    def unknown_image(self, image_id: str) -> NotFoundError:
        """Return the error for an image that is not in this corpus."""
        return NotFoundError(f"no image {image_id} in corpus {self.artefact.manifest.version}")

    def image(self, image_id: str) -> Grey:
        """Return the grey levels of one image at stored size; reads only its row group.

        Raises:
            NotFoundError: the corpus has no such image, or its pixel file is no longer in the store.
            IntegrityError: the pixels differ from those that were ingested.
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
                grey = grey_of(_group_in(parquet, group), file_row)
        except FileNotFoundError as error:
            # A release opened before an erasure keeps serving, but the erasure has rewritten its pixel files.
            raise NotFoundError(
                f"the pixels of {image_id} were deleted with an old release; serve the current release"
            ) from error
        if pixel_hash(grey) != self.scans["pixel_hash"][row].as_py():
            raise IntegrityError(f"{name}: the pixels of {image_id} were changed after ingestion")
        return grey


def companion_file(images: str, folder: str) -> str:
    """Return the name of the Arrow file in another folder that belongs to a pixel file: it has the same scans."""
    return images.replace(IMAGES, folder).replace(".parquet", ".arrow")


def images_in(data: bytes, rows: Sequence[int]) -> Iterator[tuple[str, Grey]]:
    """Yield (image id, grey levels at stored size) of some rows of a pixel file, one decoded row group at a time.

    Args:
        data: a Parquet file of ``schemas.IMAGES``.
        rows: ascending; repeats are allowed.
    """
    parquet = pq.ParquetFile(pa.BufferReader(data))
    group, start, table = -1, 0, None
    for row in rows:
        while table is None or row >= start + table.num_rows:
            start += 0 if table is None else table.num_rows
            group += 1
            # Row groups without a requested row are skipped, not decoded.
            rows_in_group = parquet.metadata.row_group(group).num_rows
            if row >= start + rows_in_group:
                start, table = start + rows_in_group, None
                continue
            table = _group_in(parquet, group)
        yield table["image_id"][row - start].as_py(), grey_of(table, row - start)


def _group_in(parquet: pq.ParquetFile, group: int) -> pa.Table:
    """Read a row group of a file in Python's memory, without threads: see ``schemas.from_parquet``."""
    return parquet.read_row_group(group, use_threads=False)


def grey_of(images: pa.Table, row: int) -> Grey:
    """Return the (height, width) grey levels of one row of a table of ``schemas.IMAGES``."""
    height, width = images["height"][row].as_py(), images["width"][row].as_py()
    return np.frombuffer(images["pixels"][row].as_buffer(), dtype=np.uint8).reshape(height, width)


def rows_in(artefact: Artefact, name: str) -> int:
    """Return the number of images in a pixel file, including those that are no longer in the corpus."""
    store = artefact.store
    with store.fs.open(store.path(artefact.relative(name)), "rb") as file:
        return int(pq.ParquetFile(file).metadata.num_rows)


def keep_rows(data: bytes, rows: Sequence[int]) -> bytes:
    """Return a copy of a pixel file with only the given rows; row groups lose rows and are never merged."""
    parquet, sink = pq.ParquetFile(pa.BufferReader(data)), io.BytesIO()
    kept, start = np.asarray(rows, dtype=np.int64), 0
    with pixels_writer(sink) as writer:
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            in_group = kept[(kept >= start) & (kept < start + count)] - start
            if len(in_group):
                table = _group_in(parquet, group).take(pa.array(in_group))
                writer.write_table(table, row_group_size=len(in_group))
            start += count
    return sink.getvalue()


def pixels_writer(sink: Any) -> pq.ParquetWriter:
    """Return a writer of pixel files, without a dictionary or pixel statistics, which would only cost space."""
    return pq.ParquetWriter(
        sink, schemas.IMAGES, compression="zstd", use_dictionary=False, write_statistics=["image_id"]
    )
