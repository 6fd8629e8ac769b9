"""Reading a corpus: its table of scans, and pixels of chosen rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mrcg import schemas
from mrcg.errors import IntegrityError, NotFoundError
from mrcg.imaging.decode import Grey, pixel_hash, resize
from mrcg.store import Artefact

SCANS, SPLITS, QUARANTINE = "scans.parquet", "splits.parquet", "quarantine/00000.parquet"


class Corpus:
    """A version of kind ``corpus``. Rows are those of scans.parquet."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self.scans: pa.Table = schemas.from_parquet(artefact.read_bytes(SCANS))
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
        files = self.scans["file"].to_pylist()
        first: dict[str, int] = {}
        for row, name in enumerate(files):
            first.setdefault(name, row)
        wanted: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            wanted.setdefault(files[row], []).append(place)
        for name, places in wanted.items():
            table = schemas.from_parquet(self.artefact.read_bytes(name))
            for place in places:
                yield place, grey_of(table, rows[place] - first[name])

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
            NotFoundError: the corpus has no such image.
            IntegrityError: its pixels are not those that were ingested.
        """
        row = self.row_of(image_id)
        name = self.scans["file"][row].as_py()
        store = self.artefact.store
        with store.fs.open(store.path(self.artefact.relative(name)), "rb") as file:
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                ids = parquet.read_row_group(group, columns=["image_id"])["image_id"].to_pylist()
                if image_id in ids:
                    grey = grey_of(parquet.read_row_group(group), ids.index(image_id))
                    break
            else:
                raise IntegrityError(f"{name} lacks image {image_id}: run `mrcg ingest` into a new store")
        if pixel_hash(grey) != self.scans["pixel_hash"][row].as_py():
            raise IntegrityError(f"{name}: the pixels of {image_id} were changed after they were ingested")
        return grey


def grey_of(images: pa.Table, row: int) -> Grey:
    """(height, width) grey levels of one row of ``schemas.IMAGES``."""
    height, width = images["height"][row].as_py(), images["width"][row].as_py()
    return np.frombuffer(images["pixels"][row].as_buffer(), dtype=np.uint8).reshape(height, width)


class Split:
    """A version of kind ``splits``, row for row as the corpus."""

    def __init__(self, artefact: Artefact) -> None:
        table = schemas.from_parquet(artefact.read_bytes(SPLITS))
        names = np.array(table["split"].to_pylist())
        self.train: npt.NDArray[np.bool_] = names == "train"
        self.test: npt.NDArray[np.bool_] = names == "test"
        self.validation: npt.NDArray[np.bool_] = np.array(table["validation"].to_pylist(), dtype=bool)

    @property
    def fit(self) -> npt.NDArray[np.bool_]:
        """The training part without its validation part."""
        return self.train & ~self.validation


def embeddings_of(artefact: Artefact) -> npt.NDArray[np.float16]:
    """(rows, d) stored embeddings of the whole corpus."""
    tables = [schemas.from_ipc(data) for _, data in artefact.each("embeddings/")]
    vectors = [t["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False) for t in tables]
    dim = tables[0].schema.field("embedding").type.list_size
    return np.concatenate(vectors).astype(np.float16, copy=False).reshape(-1, dim)
