"""Who is erased, where they are, and whether anything of them is left (DESIGN §5).

What is written down of an erasure holds hashes alone: of ids, of pseudonyms, of vectors. Who has an id can check that
it was erased; nobody can read one out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from mrcg.corpus.reader import read_scans
from mrcg.erasure.discovery import each_corpus, learned_from, locate, tainted, traces, vectors_of, with_residue
from mrcg.errors import IntegrityError, NotFoundError, UsageError
from mrcg.hashing import digest
from mrcg.privacy.pseudonyms import ENVIRONMENT, Pseudonyms
from mrcg.privacy.signing import Signature, is_signed
from mrcg.privacy.suppression import IMAGE, PIXELS, token
from mrcg.privacy.tombstones import entry_of
from mrcg.storage.catalog import all_manifests, name_of
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

RECORDS, RECEIPTS = "log/erasures", "log/receipts"
#: Columns of a scan that name it or its patient, as nobody else is named; accession numbers are one hospital's own.
NAMING = ("image_id", "patient", "study", "series", "instance")
#: The same where an image goes: its patient may stay, and may come again.
NAMING_IMAGE = ("image_id", "instance")


class ErasureTarget(BaseModel):
    """Whom to erase: a pseudonym of a patient, or an image's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    value: str


class ErasureRecord(BaseModel):
    """What an erasure found before it began: an erasure that was killed goes on by it.

    ``names``: hashes of ids and pseudonyms, ``vectors``: of stored embeddings, ``images``: entries of the tombstones,
    ``models``: those that learned from them, ``times``: 2 where they came back after a first erasure, and so on.
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
    times: int = 1


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


def plan_erasure(store: Store, target: ErasureTarget, pseudonyms: Pseudonyms | None) -> ErasureRecord:
    """Everything that has to be known before anything goes.

    Raises:
        NotFoundError: there is no such image. (A patient who has none yet can be kept out all the same.)
        UsageError: it is in a corpus that was made with another key: it could not be kept out of the next.
    """
    column, values = "image_id" if target.kind == IMAGE else "patient", [target.value]
    located = locate(store, column, values)
    if not located and target.kind == IMAGE:
        raise NotFoundError(f"no corpus in {store.url} has an image {target.value}: `mrcg query` shows ids")
    pixels = {one for where in located for one in where.mine["pixel_hash"].to_pylist()}
    if target.kind == IMAGE:
        # A copy of the file under another name is another image with the same pixels: it goes, too.
        column, values = "pixel_hash", sorted(pixels)
        located = locate(store, column, values)
    images = {one for where in located for one in where.mine["image_id"].to_pylist()}
    naming = NAMING_IMAGE if target.kind == IMAGE else NAMING
    # Groups and clusters that others are in bear ids of images: they are renamed, so those ids go, too.
    names = {target.value} | {
        one for where in located for name in naming for one in where.mine[name].to_pylist() if one
    }
    copies: set[str] = set()
    for where in each_corpus(store, column, values):
        for name in naming:
            # A name that others bear, too, stays.
            names -= set(pc.unique(where.others[name].combine_chunks()).to_pylist())
        same = pc.is_in(where.others["pixel_hash"], pa.array(sorted(pixels), pa.string()))
        copies.update(where.others["image_id"].filter(same).to_pylist())
    manifests = all_manifests(store)
    wishes = [(target.kind, target.value), *((PIXELS, one) for one in sorted(pixels) if target.kind == IMAGE)]
    keys = {pseudonyms, *(_key_of(manifests["corpus", where.corpus], pseudonyms) for where in located)}
    entries = sorted({token(key, *wish) for key in keys for wish in wishes})
    doomed = tainted(manifests, [*(("corpus", where.corpus) for where in located), *with_residue(store, manifests)])
    return ErasureRecord(
        ident=digest(["erase", entries, sorted(images)], 16),
        images=tuple(sorted(entry_of(one) for one in images)),
        names=tuple(sorted(entry_of(one) for one in names)),
        vectors=tuple(sorted(vectors_of(store, manifests, images))),
        suppressed=tuple(entries),
        copies=len(copies),
        doomed=tuple(sorted(map(name_of, doomed))),
        models=tuple(sorted(map(name_of, learned_from(store, manifests, located)))),
    )


def merge_records(record: ErasureRecord, earlier: ErasureRecord) -> ErasureRecord:
    """A record of those who came back: also what an earlier one knew, and not the same as that one."""
    united = {
        name: tuple(sorted({*getattr(record, name), *getattr(earlier, name)}))
        for name in ("images", "names", "vectors", "suppressed", "doomed", "models")
    }
    times = max(record.times, earlier.times + 1)
    return record.model_copy(update={**united, "times": times, "ident": digest([earlier.ident, times], 16)})


def made_with(corpus: Manifest | None) -> str | None:
    """Fingerprint of the pseudonym key that a corpus was made with, None without one."""
    policy = None if corpus is None else corpus.settings.get("policy")
    return None if policy is None else str(policy["key"])


def _key_of(corpus: Manifest | None, pseudonyms: Pseudonyms | None) -> Pseudonyms | None:
    fingerprint = made_with(corpus)
    if fingerprint is None or (pseudonyms is not None and pseudonyms.fingerprint == fingerprint):
        return None if fingerprint is None else pseudonyms
    assert corpus is not None
    raise UsageError(
        f"corpus/{corpus.version} was made with {'a' if pseudonyms is None else 'another'} pseudonym key: "
        f"set {ENVIRONMENT} to it, or the next ingestion would bring them back"
    )


def read_receipt(data: bytes) -> SignedReceipt:
    """A receipt from a file.

    Raises:
        IntegrityError: it is none.
    """
    try:
        return SignedReceipt.model_validate(json.loads(data))
    except ValueError as error:
        raise IntegrityError("this is not a receipt of `mrcg erase`: give the file that it wrote") from error


def versions_back(store: Store, removed: Iterable[str]) -> list[str]:
    """Versions that were removed and of which there is a file (again) that no other version refers to."""
    manifests = all_manifests(store)
    kept = {f"{entry.folder or one.folder}/{entry.name}" for one in manifests.values() if one for entry in one.files}
    return [one for one in removed if not {f"{one}/{name}" for name in store.files(one)} <= kept]


def holds(store: Store, corpus: str, record: ErasureRecord) -> bool:
    """Whether a corpus has a scan of whom an erasure is about."""
    scans = read_scans(store.artefact("corpus", corpus), ["image_id", "patient"])
    there = {entry_of(one) for column in scans.columns for one in column.unique().to_pylist() if one}
    return not there.isdisjoint({*record.images, *record.names})


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
        versions_back=tuple(versions_back(store, receipt.removed_versions)),
        not_suppressed=not set(receipt.suppressed) <= listed,
    )
