"""Trunk features of a corpus, computed once for all encoders with the same frozen trunk (docs/method.md#encoder).

Training, embedding and measuring an encoder then run its branches alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Fp32Vectors
from mrcg.corpus.reader import Corpus, companion_file
from mrcg.storage.cache import discard_temporary
from mrcg.storage.store import Artefact
from mrcg.training.block_cache import FeatureRows, MappedRows

FOLDER = "features/"


def feature_file(images: str) -> str:
    """Return the name of the feature file that belongs to a pixel file."""
    return companion_file(images, FOLDER)


class StoredFeatures:
    """A version of kind ``features``. Files are memory-mapped and their hashes checked when they are first read.

    Args:
        artefact: the version.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact
        self._open: dict[str, FeatureRows] = {}

    def of_file(self, images: str) -> FeatureRows:
        """Return the features of one pixel file, in the order of ``Corpus.images_of``."""
        if images not in self._open:
            path = self._artefact.on_disk(feature_file(images))
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            # The map outlives the name, so a worker that is killed leaves nothing behind.
            discard_temporary(path)
            blocks = [_matrix(chunk) for chunk in table["features"].chunks]
            self._open[images] = FeatureRows(table["image_id"].to_pylist(), MappedRows(blocks))
        return self._open[images]

    def of_corpus(self, corpus: Corpus) -> MappedRows:
        """Return the (rows, f) features of a corpus, in the order of its scans table; files open as rows are read."""
        lengths: dict[str, int] = {}
        for name in corpus.scans["file"].to_pylist():
            lengths[name] = lengths.get(name, 0) + 1
        return MappedRows(_Files(self, tuple(lengths)), tuple(lengths.values()))


@dataclass(frozen=True)
class _Files(Sequence[MappedRows]):
    """The features of some pixel files, each opened when it is asked for."""

    stored: StoredFeatures
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> MappedRows: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[MappedRows]: ...
    def __getitem__(self, number: int | slice) -> MappedRows | Sequence[MappedRows]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return self.stored.of_file(self.names[number]).rows_nf


def _matrix(chunk: pa.FixedSizeListArray) -> Fp32Vectors:
    values: npt.NDArray[Any] = chunk.flatten().to_numpy()
    return values.reshape(len(chunk), -1)
