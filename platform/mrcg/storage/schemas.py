"""Arrow schemas of all tables on disk.

Whoever changes one must raise the kind's number in ``mrcg.stages.registry``, so that nothing made earlier is used
again; or, for new columns that may be null, add them to ``ADDED_SCANS``, the columns that earlier versions lack.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

#: corpus/images/*.parquet: pixels, height x width grey bytes in row-major order.
IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("pixels", pa.binary(), nullable=False),
    ]
)

#: Columns of ``SCANS`` on the lesion: centre, share of the pixels, contrast (``mrcg.imaging.lesion``). Null where they
#: are not known. Corpora of earlier versions of MRCG lack them; ``reader.read_scans`` adds them.
LESION = ("lesion_y", "lesion_x", "lesion_area", "lesion_contrast")

#: corpus/scans/*.parquet: one row per image, in the order of images/*.parquet.
SCANS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("file_row", pa.int32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("joins", pa.list_(pa.string()), nullable=False),  # other groups that this scan links to its own
        pa.field("cluster_id", pa.string(), nullable=False),  # near-duplicates, across patients
        pa.field("generation", pa.int32(), nullable=False),  # of the first corpus with this scan
        pa.field("source_key", pa.string(), nullable=False),  # path; its keyed hash with a pseudonym key
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("frame", pa.int32(), nullable=False),
        pa.field("source_split", pa.string()),
        pa.field("fold", pa.int32()),
        pa.field("tenant", pa.string()),
        pa.field("site", pa.string()),
        pa.field("patient", pa.string()),  # this and the next four are pseudonyms
        pa.field("study", pa.string()),
        pa.field("series", pa.string()),
        pa.field("instance", pa.string()),
        pa.field("accession", pa.string()),
        pa.field("plane", pa.string()),
        pa.field("sequence", pa.string()),
        pa.field("acquired", pa.date32()),  # shifted by an offset per patient
        pa.field("year", pa.int16()),  # of the acquisition, not shifted
        pa.field("spacing_mm", pa.float32()),
        pa.field("position_mm", pa.float32()),
        pa.field("slice_number", pa.int32()),  # within its series or volume, by position
        pa.field("pixel_hash", pa.string(), nullable=False),
        pa.field("difference_hash", pa.binary(32), nullable=False),
        *(pa.field(name, pa.float32()) for name in LESION),
        pa.field("masked", pa.float32()),  # share of its pixels without a finite value: black; null if none
        pa.field("bare_id", pa.string()),  # pseudonym of the patient's id alone, whoever assigned it
        pa.field("issuer", pa.string()),  # encrypted; "" where none is stated and several assigned this id
    ]
)
#: Columns of scans that earlier versions did not write; they are null there.
ADDED_SCANS = (*LESION, "masked", "bare_id", "issuer")

#: corpus/quarantine/*.parquet: files and frames that could not be used, and why.
QUARANTINE = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("frame", pa.int32()),  # None: the whole file
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

#: The files of a source that one task reads; exists only in an attempt, never in a version.
LISTING = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("stamp", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        *(
            pa.field(name, pa.string())
            for name in ("label", "split", "patient", "issuer", "study", "site", "plane", "sequence")
        ),
        pa.field("acquired", pa.string()),
        pa.field("fold", pa.int32()),
        pa.field("labelled", pa.bool_(), nullable=False),
        *(pa.field(name, pa.float32()) for name in LESION),
    ]
)

#: A listing as stored in an attempt: pages of ``LISTING``, encrypted if there is a pseudonym key.
PAGES = pa.schema([pa.field("page", pa.binary(), nullable=False)])


def features(width: int) -> pa.Schema:
    """Schema of features/*.arrow: trunk features, float32, in the order of the pixel file of the same name."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("features", pa.list_(pa.float32(), width), nullable=False),
        ]
    )


#: splits/splits.parquet: the split of each scan under one protocol, in the order of scans/*.parquet.
SPLITS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, test or none
        pa.field("validation", pa.bool_(), nullable=False),  # part of train
        pa.field("held_out", pa.bool_(), nullable=False),  # part of train that the encoder is not trained on
    ]
)

#: indexes/rows/*.arrow: the scan of each row of a part and its filterable fields; all null if the scan was removed.
ROWS = pa.schema(
    [
        pa.field("image_id", pa.string()),
        pa.field("row", pa.int64()),  # in the corpus' scans and in the embeddings
        *(
            pa.field(name, pa.string())
            for name in ("label", "group_id", "tenant", "site", "sequence", "plane", "patient", "study")
        ),
        pa.field("year", pa.int16()),
    ]
)

#: reports/queries.parquet: metrics of each test query, in the orders by distance and by score and in the served order.
QUERIES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        *(
            pa.field(f"{order}_{name}", pa.float32(), nullable=False)
            for order in ("ann", "reranked", "served")
            for name in ("map", "map_full", "precision_at_10")
        ),
    ]
)

#: reports/known_items.parquet: at which rank a gallery scan finds itself, by the form in which it is searched for.
KNOWN_ITEMS = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("fitted", pa.bool_(), nullable=False),  # whether the encoder was fitted on it
        pa.field("form", pa.string(), nullable=False),  # unchanged, or the change
        # From 1; null where it is not among the hits.
        *(pa.field(f"{order}_rank", pa.int32()) for order in ("ann", "score", "served")),
    ]
)


def embeddings(dim: int) -> pa.Schema:
    """Return the schema of embeddings/*.arrow: image ids and fp16 vectors, one file per pixel file of the corpus."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), dim), nullable=False),
        ]
    )


def graphs(neighbours: int) -> pa.Schema:
    """Return the schema of graphs/*.parquet: neighbour rows (padded with -1), squared L2 distances, relevance."""
    return pa.schema(
        [
            pa.field("query", pa.int64(), nullable=False),
            pa.field("part", pa.string(), nullable=False),  # train, validation or test
            pa.field("neighbours", pa.list_(pa.int32(), neighbours), nullable=False),
            pa.field("distances", pa.list_(pa.float32(), neighbours), nullable=False),
            pa.field("relevant", pa.list_(pa.bool_(), neighbours), nullable=False),
        ]
    )


def to_parquet(table: pa.Table, row_group_size: int = 65_536) -> bytes:
    """Encode a table as Parquet with zstd compression; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in Parquet bytes, or only some of its columns."""
    # Arrow reads a copy in its own memory. A thread of its pool may let go of its input a little later than `read`
    # returns; if the input is a Python object and the process ends just then, it ends with
    # "terminate called without an active exception".
    copy = pa.BufferOutputStream()
    copy.write(data)
    file = pq.ParquetFile(pa.BufferReader(copy.getvalue()))
    return file.read() if columns is None else file.read(list(columns)).select(list(columns))


def to_ipc(table: pa.Table) -> bytes:
    """Encode a table as an Arrow IPC file, uncompressed so that the file can be memory-mapped."""
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_ipc(data: bytes) -> pa.Table:
    """Return the table in Arrow IPC file bytes."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()
