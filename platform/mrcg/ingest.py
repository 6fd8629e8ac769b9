"""Ingestion as plain functions: a chunk of files to tables, and the tables' groups (DESIGN §2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mrcg import schemas
from mrcg.config import IngestSettings
from mrcg.errors import ImageError
from mrcg.imaging.decode import Grey, Limits, decode, image_id, pixel_hash
from mrcg.imaging.duplicates import difference_hash, group_ids
from mrcg.source import SourceFile


@dataclass(frozen=True)
class Chunk:
    """What became of some files: tables of ``schemas.IMAGES``, ``SCANS`` and ``QUARANTINE``."""

    images: pa.Table
    scans: pa.Table
    quarantine: pa.Table


def limits(settings: IngestSettings) -> Limits:
    """What a file of a corpus may be."""
    return Limits(settings.max_file_bytes, settings.max_pixels, settings.min_side, settings.max_side)


def ingest_chunk(
    files: Sequence[SourceFile], read: Callable[[str], bytes], settings: IngestSettings, file_name: str
) -> Chunk:
    """Read, decode, check, normalise and hash some files.

    A file that cannot be used becomes a row of the quarantine with its reason; none stops the job.

    Args:
        files: of the source, sorted.
        read: content of a file by its key; OSError where it cannot be read.
        settings: limits.
        file_name: of the Parquet file that the images will be in.
    """
    images: list[dict[str, Any]] = []
    scans: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    bounds = limits(settings)
    for file in files:
        try:
            grey = decode(read(file.key), bounds)
        except ImageError as error:
            refused.append({"source_key": file.key, "reason": error.reason, "detail": str(error)})
            continue
        except OSError as error:
            refused.append({"source_key": file.key, "reason": "unreadable", "detail": error.strerror or str(error)})
            continue
        row = _scan_row(file, grey, file_name)
        scans.append(row)
        height, width = grey.shape
        images.append({"image_id": row["image_id"], "height": height, "width": width, "pixels": grey.tobytes()})
    return Chunk(
        pa.Table.from_pylist(images, schemas.IMAGES),
        pa.Table.from_pylist(scans, schemas.SCANS),
        pa.Table.from_pylist(refused, schemas.QUARANTINE),
    )


def _scan_row(file: SourceFile, grey: Grey, file_name: str) -> dict[str, Any]:
    pixels = pixel_hash(grey)
    ident = image_id(file.key, 0, pixels)
    return {
        "image_id": ident,
        "file": file_name,
        "label": file.label,
        "group_id": ident,  # until the whole corpus is grouped
        "source_key": file.key,
        "source_split": file.split,
        "fold": file.fold,
        "pixel_hash": pixels,
        "difference_hash": difference_hash(grey),
    }


def join_chunks(scans: Sequence[pa.Table], settings: IngestSettings) -> pa.Table:
    """One table of scans with near-duplicates of the whole corpus joined into groups."""
    table = pa.concat_tables(scans)
    groups = group_ids(
        table["image_id"].to_pylist(), table["difference_hash"].to_pylist(), settings.near_duplicate_bits
    )
    column = table.schema.get_field_index("group_id")
    return table.set_column(column, schemas.SCANS.field("group_id"), pa.array(groups, pa.string()))
