"""Where somebody is in a store, what was made from them, and whether anything of them is left (DESIGN §5)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mrcg.corpus.embeddings import FOLDER as EMBEDDINGS
from mrcg.corpus.embeddings import Vectors, read_table, vectors_in
from mrcg.corpus.reader import IMAGES, read_scans, rows_in
from mrcg.corpus.splits import SPLITS
from mrcg.errors import IntegrityError
from mrcg.index.layout import VECTORS
from mrcg.index.sharded_index import read_facts
from mrcg.privacy.tombstones import entry_of
from mrcg.storage import schemas
from mrcg.storage.catalog import Key, all_manifests, name_of
from mrcg.storage.manifest import Manifest, kind_of
from mrcg.storage.store import Artefact, Store

#: Models are not unlearned: they stay, and the receipt names them. Trials are figures alone.
MODELS = ("encoders", "rerankers", "trials")
#: Vectors that are hashed at once.
BLOCK = 4096
_WORD = re.compile(r"[0-9a-f]{32}|2\.25\.[0-9]+")


@dataclass(frozen=True)
class Located:
    """Scans of somebody in one corpus, and those of everybody else."""

    corpus: str
    mine: pa.Table
    others: pa.Table


def locate(store: Store, column: str, values: Sequence[str]) -> list[Located]:
    """The corpora with scans whose column has one of some values, whatever release they belong to."""
    return [where for where in each_corpus(store, column, values) if where.mine.num_rows]


def each_corpus(store: Store, column: str, values: Sequence[str]) -> Iterator[Located]:
    """Every corpus, those too that have nothing of somebody; one in memory."""
    for version in store.versions("corpus"):
        scans = read_scans(store.artefact("corpus", version))
        mine = pc.is_in(scans[column], pa.array(values, pa.string()))
        yield Located(version, scans.filter(mine), scans.filter(pc.invert(mine)))


def tainted(manifests: Mapping[Key, Manifest | None], roots: Iterable[Key]) -> set[Key]:
    """Roots and every version that may hold something of them: all that was made from them but models.

    A corpus or embeddings that grew from a root have their own rows alone: they are tainted only as roots. An index
    that grew from one keeps its parts, unless it was purged.
    """
    found = set(roots)
    while True:
        more = {
            key
            for key, one in manifests.items()
            if one is not None and key not in found and key[0] not in MODELS and _takes_from(one, found)
        }
        if not more:
            return found
        found |= more


def _takes_from(manifest: Manifest, found: set[Key]) -> bool:
    grown = manifest.kind == "indexes" and not manifest.settings.get("purge")
    inputs = ((kind_of(name), version) for name, version in manifest.inputs.items())
    return any(key in found and key[0] not in MODELS and (key[0] != manifest.kind or grown) for key in inputs)


def with_residue(store: Store, manifests: Mapping[Key, Manifest | None]) -> list[Key]:
    """Corpora and indexes whose files hold more than is listed: scans that went without an erasure, nobody knows whose.

    Pixels and vectors of a scan that left its source stay until the file is written anew, but its name does not.
    """
    found = []
    for key, manifest in manifests.items():
        if manifest is None:
            continue
        artefact = store.artefact(*key)
        if key[0] == "corpus":
            listed = Counter(read_scans(artefact, ["file"])["file"].to_pylist())
            full = all(rows_in(artefact, name) == listed[name] for name in artefact.names(IMAGES))
        elif key[0] == "indexes":
            full = all(part.live == part.rows for part in read_facts(artefact).parts)
        else:
            continue
        if not full:
            found.append(key)
    return found


def learned_from(store: Store, manifests: Mapping[Key, Manifest | None], located: Sequence[Located]) -> list[Key]:
    """Models whose training part had scans of somebody, and those of which nobody can tell any more."""
    mine = pa.array([one for where in located for one in where.mine["image_id"].to_pylist()], pa.string())
    models = [(key, one) for key, one in manifests.items() if key[0] in ("encoders", "rerankers") and one is not None]
    return [key for key, model in models if _learned(store, manifests, model, mine)]


def _learned(store: Store, manifests: Mapping[Key, Manifest | None], model: Manifest, mine: pa.Array) -> bool:
    graphs = manifests.get(("graphs", model.inputs.get("graphs", "")))
    splits = model.inputs.get("splits") or (graphs.inputs["splits"] if graphs else "")
    if manifests.get(("splits", splits)) is not None:
        return _in_train(store, splits, mine)
    # An earlier erasure took the splits that it learned by: those that were made in their place have the same draws.
    later = _measured_by(manifests, model.version)
    return not (later and len(mine)) or any(_in_train(store, one, mine) for one in later)


def _measured_by(manifests: Mapping[Key, Manifest | None], model: str) -> set[str]:
    """Versions of the splits that reports on a model went by."""
    found = set()
    for key, report in manifests.items():
        if key[0] == "reports" and report is not None:
            embeddings = manifests.get(("embeddings", report.inputs["embeddings"]))
            used = (report.inputs["rerankers"], None if embeddings is None else embeddings.inputs["encoders"])
            if model in used and manifests.get(("splits", report.inputs["splits"])) is not None:
                found.add(report.inputs["splits"])
    return found


def _in_train(store: Store, splits: str, mine: pa.Array) -> bool:
    table = schemas.from_parquet(store.artefact("splits", splits).read_bytes(SPLITS))
    there = pc.and_(pc.equal(table["split"], "train"), pc.is_in(table["image_id"], mine))
    return bool(pc.any(there).as_py())


def vectors_of(store: Store, manifests: Mapping[Key, Manifest | None], images: set[str]) -> set[str]:
    """Hashes of all stored embeddings of some images, but of those that other images share."""
    mine: set[str] = set()
    for vectors, there in _embedded(store, manifests, images):
        mine.update(_hashes(vectors[there]))
    shared: set[str] = set()
    for vectors, there in _embedded(store, manifests, images if mine else set()):
        shared.update(mine.intersection(_hashes(vectors[~there])))
    return mine - shared


def _embedded(
    store: Store, manifests: Mapping[Key, Manifest | None], images: set[str]
) -> Iterator[tuple[Vectors, npt.NDArray[np.bool_]]]:
    """Vectors of each file of embeddings, and which of them are of some images."""
    wanted = pa.array(sorted(images), pa.string())
    for kind, version in manifests:
        if kind == "embeddings" and images:
            artefact = store.artefact(kind, version)
            for name in artefact.names(EMBEDDINGS):
                table = read_table(artefact, name)
                yield vectors_in(table), pc.is_in(table["image_id"], wanted).to_numpy()


def _hashes(vectors_nd: Vectors) -> Iterator[str]:
    for start in range(0, len(vectors_nd), BLOCK):
        for row in np.ascontiguousarray(vectors_nd[start : start + BLOCK]):
            yield hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest()


def traces(store: Store, names: Sequence[str], vectors: Sequence[str]) -> list[str]:
    """Files of complete versions that still hold an id, a pseudonym or a vector of somebody.

    Every column of every table is decoded; texts are searched for ids. FAISS's own files hold no ids: they are filled
    with the vectors that lie beside them.
    """
    wanted, gone = frozenset(names), frozenset(vectors)
    found: list[str] = []
    for key, manifest in all_manifests(store).items():
        if manifest is None:
            raise IntegrityError(f"{store.url}/{name_of(key)} is damaged: `mrcg verify` says how")
        artefact = store.artefact(*key)
        dim = read_facts(artefact).shape.dim if key[0] == "indexes" else 0
        for name in artefact.names():
            if name.endswith(VECTORS):
                rows = np.memmap(artefact.on_disk(name), dtype=np.float16, mode="r").reshape(-1, dim)
                hit = not gone.isdisjoint(_hashes(rows))
            else:
                hit = any(entry_of(word) in wanted for word in _words(artefact, name))
                if name.startswith(EMBEDDINGS):
                    hit = hit or not gone.isdisjoint(_hashes(vectors_in(read_table(artefact, name))))
            if hit:
                found.append(artefact.relative(name))
    return found


def _words(artefact: Artefact, name: str) -> Iterator[str]:
    """What may be an id; files that hold none, large ones among them, are not read."""
    if name.endswith((".parquet", ".arrow")):
        data = artefact.read_bytes(name)
        table = schemas.from_parquet(data) if name.endswith(".parquet") else schemas.from_ipc(data)
        for column in table.columns:
            values = column.combine_chunks()
            if pa.types.is_list(values.type):
                values = values.flatten()
            if pa.types.is_string(values.type):
                yield from (one for one in pc.unique(values).to_pylist() if one)
    elif name.endswith((".json", ".html", ".md", ".txt")):
        yield from set(_WORD.findall(artefact.read_bytes(name).decode("utf-8", "replace")))
