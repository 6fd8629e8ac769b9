"""Who is erased, where they are, and whether anything of them is left (DESIGN §5).

What is written down of an erasure holds hashes alone: of ids, of pseudonyms, of vectors. Who has an id can check that
it was erased; nobody can read one out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from mrcg import schemas
from mrcg.corpus import read_scans
from mrcg.embeddings import FOLDER as EMBEDDINGS
from mrcg.embeddings import read_vectors
from mrcg.errors import IntegrityError, NotFoundError
from mrcg.hashing import digest
from mrcg.holding import Key, all_manifests
from mrcg.index.sharded import read_facts
from mrcg.manifest import Manifest
from mrcg.privacy import Pseudonyms
from mrcg.signing import Signature, is_signed
from mrcg.stages import kind_of
from mrcg.store import Store
from mrcg.suppression import IMAGE, PATIENT, PIXELS, token
from mrcg.tombstones import entry_of

RECORDS, RECEIPTS = "log/erasures", "log/receipts"
#: Columns of a scan that name it or its patient; all of them are gone with it, unless others share the value.
NAMING = ("image_id", "group_id", "cluster_id", "patient", "study", "series", "instance", "accession")
#: Models are not unlearned: they stay, and the receipt names them.
MODELS = ("encoders", "rerankers", "trials")
_WORD = re.compile(r"[0-9a-f]{32}|2\.25\.[0-9]+")


class Wanted(BaseModel):
    """Whom to erase: a pseudonym of a patient, or an image's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    value: str


class Record(BaseModel):
    """What an erasure found before it began: an erasure that was killed goes on by it.

    ``names``: hashes of ids and pseudonyms, ``vectors``: of stored embeddings, ``images``: entries of the tombstones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ident: str
    images: tuple[str, ...]
    names: tuple[str, ...]
    vectors: tuple[str, ...]
    suppressed: tuple[str, ...]
    copies: int
    doomed: tuple[str, ...]
    models: tuple[str, ...]


class Receipt(BaseModel):
    """What was done, for whoever asks: signed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ident: str
    finished: str
    code_version: str
    scans: int
    identical_copies_left: int
    names: tuple[str, ...]
    vectors: tuple[str, ...]
    suppressed: tuple[str, ...]
    removed_versions: tuple[str, ...]
    made_versions: tuple[str, ...]
    release: int | None
    trained_on_them: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """What is signed."""
        return self.model_dump_json().encode()


class SignedReceipt(BaseModel):
    """A receipt and the signature under it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    receipt: Receipt
    signed: Signature

    @property
    def genuine(self) -> bool:
        """Whether the receipt is what was signed."""
        return is_signed(self.receipt.to_bytes(), self.signed)


@dataclass(frozen=True)
class Located:
    """Scans of somebody in one corpus, and those of everybody else."""

    corpus: str
    mine: pa.Table
    others: pa.Table


def locate(store: Store, wanted: Wanted) -> list[Located]:
    """The corpora that hold scans of somebody, whatever release they belong to."""
    found = []
    for version in store.versions("corpus"):
        scans = read_scans(store.artefact("corpus", version))
        column = "patient" if wanted.kind == PATIENT else "image_id"
        mine = pc.fill_null(pc.equal(scans[column], wanted.value), False)
        if pc.any(mine).as_py():
            found.append(Located(version, scans.filter(mine), scans.filter(pc.invert(mine))))
    return found


def draw_record(store: Store, wanted: Wanted, pseudonyms: Pseudonyms | None) -> Record:
    """Everything that has to be known before anything goes.

    Raises:
        NotFoundError: there is no such image. (A patient who has none yet can be kept out all the same.)
    """
    located = locate(store, wanted)
    if not located and wanted.kind == IMAGE:
        raise NotFoundError(f"no corpus in {store.url} has an image {wanted.value}: `mrcg query` shows ids")
    images = {one for where in located for one in where.mine["image_id"].to_pylist()}
    pixels = {one for where in located for one in where.mine["pixel_hash"].to_pylist()}
    names: set[str] = {wanted.value}
    copies = 0
    for where in located:
        for column in NAMING:
            own = {one for one in where.mine[column].to_pylist() if one}
            # A name that others bear too stays; groups and clusters are renamed where it is an erased image's.
            names |= own & images if column in ("group_id", "cluster_id") else own - _values(where.others, column)
        copies = max(copies, int(pc.sum(pc.is_in(where.others["pixel_hash"], pa.array(sorted(pixels)))).as_py() or 0))
    entries = [token(pseudonyms, wanted.kind, wanted.value)]
    if wanted.kind == IMAGE:
        # A copy of the file under another path would be another image.
        entries += [token(pseudonyms, PIXELS, one) for one in sorted(pixels)]
    manifests = all_manifests(store)
    doomed = descendants(manifests, [("corpus", where.corpus) for where in located])
    return Record(
        ident=digest(["erase", entries, sorted(images)], 16),
        images=tuple(sorted(entry_of(one) for one in images)),
        names=tuple(sorted(entry_of(one) for one in names)),
        vectors=tuple(sorted(_vectors(store, manifests, images))),
        suppressed=tuple(sorted(entries)),
        copies=0 if wanted.kind == IMAGE else copies,
        doomed=tuple(sorted(f"{k}/{v}" for k, v in doomed if k not in MODELS)),
        models=tuple(sorted(f"{k}/{v}" for k, v in doomed if k in ("encoders", "rerankers"))),
    )


def descendants(manifests: Mapping[Key, Manifest | None], roots: Iterable[Key]) -> set[Key]:
    """Roots and every version that was made from one of them, however far."""
    found = set(roots)
    while True:
        more = {
            key
            for key, one in manifests.items()
            if one is not None and key not in found and any((kind_of(n), v) in found for n, v in one.inputs.items())
        }
        if not more:
            return found
        found |= more


def _values(table: pa.Table, column: str) -> set[str]:
    return set(pc.unique(table[column].combine_chunks()).to_pylist())


def _vectors(store: Store, manifests: Mapping[Key, Manifest | None], images: set[str]) -> set[str]:
    """Hashes of all stored embeddings of some images."""
    found: set[str] = set()
    wanted = pa.array(sorted(images), pa.string())
    for kind, version in manifests:
        if kind != "embeddings" or not images:
            continue
        artefact = store.artefact(kind, version)
        for name in artefact.names(EMBEDDINGS):
            table = pa.ipc.open_file(pa.memory_map(str(artefact.on_disk(name)))).read_all()
            mine = np.flatnonzero(pc.is_in(table["image_id"], wanted).to_numpy())
            if len(mine):
                found.update(_row_hashes(read_vectors(artefact, name)[mine]))
    return found


def _row_hashes(vectors_nd: np.ndarray[tuple[int, int], np.dtype[np.float16]]) -> list[str]:
    rows = np.ascontiguousarray(vectors_nd)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in rows]


def traces(store: Store, names: Sequence[str], vectors: Sequence[str]) -> list[str]:
    """Files of complete versions, and of attempts, that still hold an id, a pseudonym or a vector of somebody.

    Every column of every table is decoded; texts are searched for ids. FAISS's own files hold no ids: they belong to
    the vectors beside them.
    """
    wanted, gone = frozenset(names), frozenset(vectors)
    found: list[str] = []
    for key, manifest in all_manifests(store).items():
        if manifest is None:
            raise IntegrityError(f"{store.url}/{key[0]}/{key[1]} is damaged: `mrcg verify` says how")
        artefact = store.artefact(*key)
        dim = read_facts(artefact).shape.dim if key[0] == "indexes" else 0
        for name in artefact.names():
            if name.endswith(".vectors.f16"):
                rows = np.fromfile(artefact.on_disk(name), dtype=np.float16).reshape(-1, dim)
                hit = bool(gone.intersection(_row_hashes(rows)))
            else:
                hit = any(entry_of(word) in wanted for word in _words(name, artefact.read_bytes(name)))
                if name.startswith(EMBEDDINGS):
                    hit = hit or bool(gone.intersection(_row_hashes(read_vectors(artefact, name))))
            if hit:
                found.append(artefact.relative(name))
    return found


def _words(name: str, data: bytes) -> Iterator[str]:
    if name.endswith((".parquet", ".arrow")):
        table = schemas.from_parquet(data) if name.endswith(".parquet") else schemas.from_ipc(data)
        for column in table.columns:
            values = column.combine_chunks()
            if pa.types.is_list(values.type):
                values = values.flatten()
            if pa.types.is_string(values.type):
                yield from (one for one in pc.unique(values).to_pylist() if one)
    elif name.endswith((".json", ".html", ".md", ".txt")):
        yield from set(_WORD.findall(data.decode("utf-8", "replace")))


def read_receipt(data: bytes) -> SignedReceipt:
    """A receipt from a file.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return SignedReceipt.model_validate(json.loads(data))
    except ValueError as error:
        raise IntegrityError("this is not a receipt of `mrcg erase`: give the file that it wrote") from error


class Verdict(BaseModel):
    """What checking a receipt found."""

    model_config = ConfigDict(frozen=True)

    genuine: bool
    known_signer: bool | None
    left: tuple[str, ...]
    versions_back: tuple[str, ...]
    not_suppressed: bool

    @property
    def holds(self) -> bool:
        """Whether the receipt still tells the truth about the store."""
        return (
            self.genuine
            and self.known_signer is not False
            and not (self.left or self.versions_back or self.not_suppressed)
        )


def check_receipt(store: Store, signed: SignedReceipt, own_key: str | None, listed: frozenset[str]) -> Verdict:
    """Whether a receipt is genuine and nothing of whom it speaks of is in the store.

    Args:
        store: that the erasure was made in.
        signed: the receipt.
        own_key: public key of whoever should have signed; None does not ask.
        listed: the suppression list.
    """
    receipt = signed.receipt
    return Verdict(
        genuine=signed.genuine,
        known_signer=None if own_key is None else signed.signed.public_key == own_key,
        left=tuple(traces(store, receipt.names, receipt.vectors)),
        versions_back=tuple(one for one in receipt.removed_versions if store.has(*one.split("/"))),
        not_suppressed=not set(receipt.suppressed) <= listed,
    )
