"""Galleries for tests of the index: a corpus and embeddings of vectors that nobody had to encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.execution.executor import LocalExecutor, silent
from mrcg.hashing import digest
from mrcg.index.sharded_index import ShardedIndex
from mrcg.index_build.build import BuiltIndex, build_index
from mrcg.index_build.build_plan import IndexWork
from mrcg.storage import schemas
from mrcg.storage.attempts import begin
from mrcg.storage.manifest import derive_version
from mrcg.storage.store import Store
from tests.manifests import make_manifest

#: Scans in one file of pixels, and so of embeddings.
PER_FILE = 1000


@dataclass(frozen=True)
class Scan:
    """One scan of a made-up corpus; its vector follows from its number."""

    number: int
    label: str | None = "a"
    group: str | None = None
    site: str | None = None
    patient: str | None = None

    @property
    def image_id(self) -> str:
        return digest(["scan", self.number], 32)


def scans_table(scans: Sequence[Scan]) -> pa.Table:
    """Table of ``schemas.SCANS``."""
    rows = [
        {
            "image_id": one.image_id,
            "file": f"images/g000-{place // PER_FILE:05d}-00.parquet",
            "file_row": place % PER_FILE,
            "label": one.label,
            "group_id": one.group or one.image_id,
            "joins": [],
            "cluster_id": one.image_id,
            "generation": 0,
            "source_key": f"{one.number}.png",
            "stamp": "",
            "frame": 0,
            "site": one.site,
            "patient": one.patient,
            "year": 2000 + one.number % 20,
            "pixel_hash": one.image_id,
            "difference_hash": bytes(32),
        }
        for place, one in enumerate(scans)
    ]
    return pa.Table.from_pylist(rows, schemas.SCANS)


def published(
    store: Store, kind: str, settings: dict[str, Any], inputs: dict[str, str], files: dict[str, bytes], **counts: Any
) -> str:
    """A version with these files."""
    version = derive_version(kind, settings, inputs)
    if not store.has(kind, version):
        with begin(store, kind, version) as attempt:
            entries = [attempt.write(name, data) for name, data in files.items()]
            attempt.publish(make_manifest(kind, version, settings, inputs, counts, entries))
    return version


@dataclass(frozen=True)
class Line:
    """Versions of one state of a gallery."""

    store: Store
    corpus: str
    embeddings: str

    @classmethod
    def of(cls, store: Store, scans: Sequence[Scan], vectors_nd: npt.NDArray[np.float16]) -> Line:
        """A corpus of scans and the embeddings of them."""
        table = scans_table(scans)
        listing = digest([[one.image_id, one.label, one.site] for one in scans])
        corpus = published(
            store,
            "corpus",
            {"listing": listing},
            {},
            {"scans/00000.parquet": schemas.to_parquet(table)},
            images=len(scans),
        )
        files = {}
        for start in range(0, len(scans), PER_FILE):
            some = np.ascontiguousarray(vectors_nd[start : start + PER_FILE])
            column = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), some.shape[1])
            part = pa.table(
                {"image_id": [one.image_id for one in scans[start : start + PER_FILE]], "embedding": column},
                schema=schemas.embeddings(some.shape[1]),
            )
            files[f"embeddings/g000-{start // PER_FILE:05d}-00.arrow"] = schemas.to_ipc(part)
        embeddings = published(
            store, "embeddings", {"vectors": digest(listing)}, {"corpus": corpus}, files, dim=vectors_nd.shape[1]
        )
        return cls(store, corpus, embeddings)

    def index(self, config: Config, base: str | None = None, purge: bool = False) -> tuple[str, BuiltIndex]:
        """An index of it, built here; its version and what was made."""
        inputs = {"corpus": self.corpus, "embeddings": self.embeddings} | ({"indexes": base} if base else {})
        settings = {"index": config.index.model_dump(mode="json"), "seed": config.seed, "purge": purge}
        version = derive_version("indexes", settings, inputs)
        with begin(self.store, "indexes", version) as attempt:
            work = IndexWork(
                self.store.url, self.corpus, self.embeddings, base, attempt.folder, config.index, config.seed, 1, purge
            )
            made = build_index(work, LocalExecutor(), silent)
            attempt.publish(
                make_manifest("indexes", version, settings, inputs, {"recall_at_50": made.facts.recall}, made.files)
            )
        return version, made

    def open(self, version: str) -> ShardedIndex:
        """An index, ready to be searched."""
        return ShardedIndex.open(self.store.artefact("indexes", version))


def vectors_of(scans: Sequence[Scan], dim: int) -> npt.NDArray[np.float16]:
    """(n, d) vectors in a few clusters; a scan's depends on its number alone."""
    out = np.empty((len(scans), dim), dtype=np.float16)
    for place, one in enumerate(scans):
        rng = np.random.default_rng(one.number)
        centre = np.random.default_rng(one.number % 7 + 1_000_000).normal(size=dim) * 2
        out[place] = centre + rng.normal(size=dim)
    return out


def index_config(*settings: str) -> Config:
    """Settings with overrides."""
    return load_config(None, settings)
