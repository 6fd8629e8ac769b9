"""Trunk features of a corpus, computed once for all encoders with the same frozen trunk (docs/method.md#encoder).

Training, embedding and measuring an encoder then run its branches alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from mrcg.arrays import Fp32Vectors
from mrcg.corpus.reader import IMAGES, Corpus
from mrcg.storage.store import Artefact
from mrcg.training.block_cache import MappedRows

FOLDER = "features/"


def feature_file(images: str) -> str:
    """Return the name of the feature file that belongs to a pixel file."""
    return images.replace(IMAGES, FOLDER).replace(".parquet", ".arrow")


class StoredFeatures:
    """A version of kind ``features``, memory-mapped; the hash of each file is checked when it is first read.

    Args:
        artefact: the version.
    """

    def __init__(self, artefact: Artefact) -> None:
        self._artefact = artefact

    def of_file(self, images: str) -> MappedRows:
        """Return the (n, f) features of one pixel file, in the order of ``Corpus.images_of``."""
        return MappedRows(list(self._chunks(images)))

    def of_corpus(self, corpus: Corpus) -> MappedRows:
        """Return the (rows, f) features of a corpus, in the order of its scans table."""
        names = dict.fromkeys(corpus.scans["file"].to_pylist())
        return MappedRows([chunk for name in names for chunk in self._chunks(name)])

    def _chunks(self, images: str) -> Iterator[Fp32Vectors]:
        path = self._artefact.on_disk(feature_file(images))
        with pa.memory_map(str(path)) as file:
            column = pa.ipc.open_file(file).read_all()["features"]
        for chunk in column.chunks:
            values: npt.NDArray[Any] = chunk.flatten().to_numpy()
            yield values.reshape(len(chunk), -1)
