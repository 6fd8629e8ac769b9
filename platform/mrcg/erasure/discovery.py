"""Find the scans to erase in a store, the versions made from them, and what is left of them after an erasure."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.arrays import Fp16Vectors
from mrcg.corpus.embeddings import FOLDER as EMBEDDINGS
from mrcg.corpus.embeddings import read_table, vectors_in
from mrcg.corpus.reader import IMAGES, read_scans, rows_in
from mrcg.corpus.splits import SPLITS
from mrcg.errors import IntegrityError
from mrcg.index.layout import VECTORS
from mrcg.index.sharded_index import read_facts
from mrcg.privacy.tombstones import entry_of
from mrcg.stages.registry import stage_of
from mrcg.storage import schemas
from mrcg.storage.catalog import Key, all_manifests, name_of
from mrcg.storage.manifest import Manifest, kind_of
from mrcg.storage.store import Artefact, Store

#: Number of vectors per step of hashing.
BLOCK = 4096
#: Image ids and pseudonyms in texts: 32 hex digits, or a DICOM UID made from a UUID.
_WORD = re.compile(r"[0-9a-f]{32}|2\.25\.[0-9]+")


@dataclass(frozen=True)
class MatchedScans:
    """The scans of one corpus, split into those that match and all others.

    Attributes:
        corpus: version of the corpus.
        matching: the scans that match, a table of ``schemas.SCANS``.
        others: all other scans.
    """

    corpus: str
    matching: pa.Table
    others: pa.Table


def locate(store: Store, wanted: Mapping[str, Sequence[str]]) -> list[MatchedScans]:
    """Return the corpora that have scans with one of the values in one of the columns, used by a release or not."""
    return [match for match in each_corpus(store, wanted) if match.matching.num_rows]


def each_corpus(store: Store, wanted: Mapping[str, Sequence[str]]) -> Iterator[MatchedScans]:
    """Yield every corpus, also those without matching scans; one at a time is in memory.

    Args:
        store: with the corpora.
        wanted: values by column; a scan matches if it has one of them in one column.
    """
    for version in store.versions("corpus"):
        scans = read_scans(store.artefact("corpus", version))
        found = [pc.is_in(scans[column], pa.array(values, pa.string())) for column, values in wanted.items()]
        matches = functools.reduce(pc.or_, found)
        yield MatchedScans(version, scans.filter(matches), scans.filter(pc.invert(matches)))


def affected_versions(manifests: Mapping[Key, Manifest | None], roots: Iterable[Key]) -> set[Key]:
    """Return the roots and every version that may hold data from them: all made from them, except models.

    An incremental corpus or embeddings version has only rows of its own, so one that extends a root is only affected if
    it is a root itself. An index that extends an affected one keeps its parts, so it is affected unless it was purged.
    """
    affected = set(roots)
    while True:
        new = {
            key
            for key, manifest in manifests.items()
            if manifest is not None
            and key not in affected
            and not stage_of(key[0]).learned
            and _takes_data_from(manifest, affected)
        }
        if not new:
            return affected
        affected |= new


def _takes_data_from(manifest: Manifest, affected: set[Key]) -> bool:
    """Return whether a version holds data from one of its affected inputs."""
    keeps_parts = manifest.kind == "indexes" and not manifest.settings.get("purge")
    inputs = ((kind_of(name), version) for name, version in manifest.inputs.items())
    return any(
        key in affected and not stage_of(key[0]).learned and (key[0] != manifest.kind or keeps_parts) for key in inputs
    )


def with_unlisted_rows(store: Store, manifests: Mapping[Key, Manifest | None]) -> list[Key]:
    """Return the corpora and indexes whose files have rows that no table lists any more.

    If a scan leaves its source without an erasure, its pixels and vectors stay in their files until these are
    rewritten, but its id does not. So nobody can tell whose rows they are.
    """
    keys = []
    for key, manifest in manifests.items():
        if manifest is None:
            continue
        artefact = store.artefact(*key)
        if key[0] == "corpus":
            listed = Counter(read_scans(artefact, ["file"])["file"].to_pylist())
            all_listed = all(rows_in(artefact, name) == listed[name] for name in artefact.names(IMAGES))
        elif key[0] == "indexes":
            all_listed = all(part.live == part.rows for part in read_facts(artefact).parts)
        else:
            continue
        if not all_listed:
            keys.append(key)
    return keys


def models_trained_on(
    store: Store, manifests: Mapping[Key, Manifest | None], matches: Sequence[MatchedScans]
) -> list[Key]:
    """Return the models that were trained on matching scans, and those for which this cannot be determined."""
    image_ids = pa.array(
        [image_id for match in matches for image_id in match.matching["image_id"].to_pylist()], pa.string()
    )
    models = {
        key: manifest
        for key, manifest in manifests.items()
        if manifest is not None and stage_of(key[0]).learned and not stage_of(key[0]).measures
    }
    return [key for key, model in models.items() if _may_be_trained_on(store, manifests, model, image_ids)]


def _may_be_trained_on(
    store: Store, manifests: Mapping[Key, Manifest | None], model: Manifest, image_ids: pa.Array
) -> bool:
    graphs = manifests.get(("graphs", model.inputs.get("graphs", "")))
    splits = model.inputs.get("splits") or (graphs.inputs["splits"] if graphs else "")
    if manifests.get(("splits", splits)) is not None:
        return _in_train(store, splits, image_ids)
    # An earlier erasure removed the splits that the model was trained by. The splits made in their place have the same
    # draws, so they show which scans were in the training split.
    replacements = _splits_of_reports(manifests, model.version)
    if not replacements or not len(image_ids):
        return True
    return any(_in_train(store, version, image_ids) for version in replacements)


def _splits_of_reports(manifests: Mapping[Key, Manifest | None], model: str) -> set[str]:
    """Return the versions of the splits that reports on a model used and that still exist."""
    versions = set()
    for key, report in manifests.items():
        if key[0] == "reports" and report is not None:
            embeddings = manifests.get(("embeddings", report.inputs["embeddings"]))
            models = (report.inputs["rerankers"], None if embeddings is None else embeddings.inputs["encoders"])
            if model in models and manifests.get(("splits", report.inputs["splits"])) is not None:
                versions.add(report.inputs["splits"])
    return versions


def _in_train(store: Store, splits: str, image_ids: pa.Array) -> bool:
    """Return whether one of the images is in the training split."""
    table = schemas.from_parquet(store.artefact("splits", splits).read_bytes(SPLITS))
    matches = pc.and_(pc.equal(table["split"], "train"), pc.is_in(table["image_id"], image_ids))
    return bool(pc.any(matches).as_py())


def vector_hashes(store: Store, manifests: Mapping[Key, Manifest | None], images: set[str]) -> set[str]:
    """Return the hashes of all stored embeddings of the images, without those that other images have as well."""
    hashes: set[str] = set()
    for vectors, matches in _embeddings(store, manifests, images):
        hashes.update(_hashes(vectors[matches]))
    shared: set[str] = set()
    for vectors, matches in _embeddings(store, manifests, images if hashes else set()):
        shared.update(hashes.intersection(_hashes(vectors[~matches])))
    return hashes - shared


def _embeddings(
    store: Store, manifests: Mapping[Key, Manifest | None], images: set[str]
) -> Iterator[tuple[Fp16Vectors, npt.NDArray[np.bool_]]]:
    """Yield the (n, d) vectors of each embedding file, and a mask of those that belong to the images."""
    image_ids = pa.array(sorted(images), pa.string())
    for kind, version in manifests:
        if kind == "embeddings" and images:
            artefact = store.artefact(kind, version)
            for name in artefact.names(EMBEDDINGS):
                table = read_table(artefact, name)
                yield vectors_in(table), pc.is_in(table["image_id"], image_ids).to_numpy()


def _hashes(vectors_nd: Fp16Vectors) -> Iterator[str]:
    """Yield the 128-bit BLAKE2b hash of each vector."""
    for start in range(0, len(vectors_nd), BLOCK):
        for row in np.ascontiguousarray(vectors_nd[start : start + BLOCK]):
            yield hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest()


def find_traces(store: Store, names: Sequence[str], vectors: Sequence[str]) -> list[str]:
    """Return the files of complete versions that still hold an erased id, pseudonym or vector.

    Every column of every table is decoded, and texts are searched for ids. FAISS files are not searched: they have no
    ids, and their vectors are those of the vector files beside them.

    Args:
        store: to search.
        names: hashes of ids and pseudonyms (`mrcg.privacy.tombstones.entry_of`).
        vectors: hashes of vectors (`vector_hashes`).

    Raises:
        IntegrityError: a version is damaged, so it cannot be searched.
    """
    erased_names, erased_vectors = frozenset(names), frozenset(vectors)
    paths: list[str] = []
    for key, manifest in all_manifests(store).items():
        if manifest is None:
            raise IntegrityError(f"{store.url}/{name_of(key)} is damaged: `mrcg verify` shows the problem")
        artefact = store.artefact(*key)
        dim = read_facts(artefact).shape.dim if key[0] == "indexes" else 0
        for name in artefact.names():
            if name.endswith(VECTORS):
                rows = np.memmap(artefact.on_disk(name), dtype=np.float16, mode="r").reshape(-1, dim)
                has_trace = not erased_vectors.isdisjoint(_hashes(rows))
            else:
                has_trace = any(entry_of(word) in erased_names for word in _words(artefact, name))
                if name.startswith(EMBEDDINGS):
                    stored = _hashes(vectors_in(read_table(artefact, name)))
                    has_trace = has_trace or not erased_vectors.isdisjoint(stored)
            if has_trace:
                paths.append(artefact.relative(name))
    return paths


def _words(artefact: Artefact, name: str) -> Iterator[str]:
    """Yield the strings in a file that may be ids or pseudonyms; files of other types have none and are not read."""
    if name.endswith((".parquet", ".arrow")):
        arrow = name.endswith(".arrow")
        table = read_table(artefact, name) if arrow else schemas.from_parquet(artefact.read_bytes(name))
        for column in table.columns:
            # Others, as the vectors, may be large and are not copied.
            if pa.types.is_string(column.type) or pa.types.is_list(column.type):
                values = column.combine_chunks()
                if pa.types.is_list(values.type):
                    values = values.flatten()
                if pa.types.is_string(values.type):
                    yield from (value for value in pc.unique(values).to_pylist() if value)
    elif name.endswith((".json", ".html", ".md", ".txt")):
        yield from set(_WORD.findall(artefact.read_bytes(name).decode("utf-8", "replace")))
