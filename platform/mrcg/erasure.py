"""Who is erased, where they are, and whether anything of them is left (DESIGN §5).

What is written down of an erasure holds hashes alone: of ids, of pseudonyms, of vectors. Who has an id can check that
it was erased; nobody can read one out.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from mrcg.errors import IntegrityError, NotFoundError
from mrcg.hashing import digest
from mrcg.holding import all_manifests, key_of, name_of
from mrcg.privacy import Pseudonyms
from mrcg.signing import Signature, is_signed
from mrcg.store import Store
from mrcg.suppression import IMAGE, PIXELS, token
from mrcg.tombstones import entry_of
from mrcg.traces import learned_from, locate, tainted, traces, vectors_of, with_residue

RECORDS, RECEIPTS = "log/erasures", "log/receipts"
#: Columns of a scan that name it or its patient; all of them are gone with it, unless others share the value.
NAMING = ("image_id", "group_id", "cluster_id", "patient", "study", "series", "instance", "accession")


class Wanted(BaseModel):
    """Whom to erase: a pseudonym of a patient, or an image's id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    value: str


class Record(BaseModel):
    """What an erasure found before it began: an erasure that was killed goes on by it.

    ``names``: hashes of ids and pseudonyms, ``vectors``: of stored embeddings, ``images``: entries of the tombstones,
    ``models``: those that learned from them.
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


def draw_record(store: Store, wanted: Wanted, pseudonyms: Pseudonyms | None) -> Record:
    """Everything that has to be known before anything goes.

    Raises:
        NotFoundError: there is no such image. (A patient who has none yet can be kept out all the same.)
    """
    located = locate(store, "image_id" if wanted.kind == IMAGE else "patient", [wanted.value])
    if not located and wanted.kind == IMAGE:
        raise NotFoundError(f"no corpus in {store.url} has an image {wanted.value}: `mrcg query` shows ids")
    pixels = {one for where in located for one in where.mine["pixel_hash"].to_pylist()}
    if wanted.kind == IMAGE:
        # A copy of the file under another name is another image with the same pixels: it goes, too.
        located = locate(store, "pixel_hash", sorted(pixels))
    images = {one for where in located for one in where.mine["image_id"].to_pylist()}
    names: set[str] = {wanted.value}
    copies = 0
    for where in located:
        for column in NAMING:
            own = {one for one in where.mine[column].to_pylist() if one}
            # A name that others bear too stays; groups and clusters are renamed where it is an erased image's.
            others = set(pc.unique(where.others[column].combine_chunks()).to_pylist())
            names |= own & images if column in ("group_id", "cluster_id") else own - others
        copies = max(copies, int(pc.sum(pc.is_in(where.others["pixel_hash"], pa.array(sorted(pixels)))).as_py() or 0))
    entries = [token(pseudonyms, wanted.kind, wanted.value)]
    if wanted.kind == IMAGE:
        entries += [token(pseudonyms, PIXELS, one) for one in sorted(pixels)]
    manifests = all_manifests(store)
    doomed = tainted(manifests, [*(("corpus", where.corpus) for where in located), *with_residue(store, manifests)])
    return Record(
        ident=digest(["erase", entries, sorted(images)], 16),
        images=tuple(sorted(entry_of(one) for one in images)),
        names=tuple(sorted(entry_of(one) for one in names)),
        vectors=tuple(sorted(vectors_of(store, manifests, images))),
        suppressed=tuple(sorted(entries)),
        copies=copies,
        doomed=tuple(sorted(map(name_of, doomed))),
        models=tuple(sorted(map(name_of, learned_from(store, manifests, located)))),
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
        versions_back=tuple(one for one in receipt.removed_versions if store.has(*key_of(one))),
        not_suppressed=not set(receipt.suppressed) <= listed,
    )
