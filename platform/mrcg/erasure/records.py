"""Erasure targets, records and receipts, and the check of a receipt (`docs/index.md#erasure`).

Records and receipts only hold hashes of ids, pseudonyms and vectors. Whoever knows an id can check that it was erased,
but nobody can read an id out of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from mrcg.corpus.reader import read_scans
from mrcg.erasure.discovery import (
    affected_versions,
    each_corpus,
    find_traces,
    locate,
    models_trained_on,
    vector_hashes,
    with_unlisted_rows,
)
from mrcg.errors import IntegrityError, NotFoundError, UsageError
from mrcg.frozen import Frozen
from mrcg.hashing import digest
from mrcg.privacy.pseudonyms import ENVIRONMENT, Pseudonyms
from mrcg.privacy.signing import Signature, is_signed
from mrcg.privacy.suppression import IMAGE, PIXELS, token
from mrcg.privacy.tombstones import entry_of
from mrcg.storage.catalog import all_manifests, name_of
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

RECORDS, RECEIPTS = "log/erasures", "log/receipts"
#: Columns of a scan that identify it or its patient. Accession numbers do not: they are unique within a hospital only.
IDENTIFYING_COLUMNS = ("image_id", "patient", "bare_id", "study", "series", "instance")
#: The same for the erasure of an image, whose patient is not erased.
IDENTIFYING_COLUMNS_OF_IMAGE = ("image_id", "instance")


class ErasureTarget(Frozen):
    """What to erase: a patient (by pseudonym) or an image (by id); ``kind`` is ``patient`` or ``image``.

    Attributes:
        kind: ``patient`` or ``image``.
        value: the pseudonym or the id.
        others: further pseudonyms that scans of the same patient have, or would have if they came now.
        images: scans of the patient in corpora of policy 1, which may have other people's scans under one pseudonym.
        marks: entries of the suppression list that no scan has, by which the same question finds its erasure again.
        earlier: entries under which an earlier erasure may have recorded a patient of whom no scans are left.
    """

    kind: str
    value: str
    others: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def values(self) -> list[str]:
        """All that names the target."""
        return [self.value, *self.others]


class ErasureRecord(Frozen):
    """What an erasure has to remove, found before it removes anything; a killed erasure resumes from its record.

    Attributes:
        ident: of the record, in the name of its file and of the receipt's.
        images: tombstone entries of the images.
        names: hashes of the ids and pseudonyms.
        vectors: hashes of the stored embeddings.
        suppressed: entries of the suppression list.
        copies: number of other scans with the same pixels, which are not erased.
        doomed: versions to remove.
        models: models that were or may have been trained on the scans.
        times: 1 for the first erasure of the target, 2 if the target came back and was erased again, and so on.
    """

    ident: str
    images: tuple[str, ...]
    names: tuple[str, ...]
    vectors: tuple[str, ...]
    suppressed: tuple[str, ...]
    copies: int
    doomed: tuple[str, ...]
    models: tuple[str, ...]
    times: int = 1


class Receipt(Frozen):
    """What an erasure did; it is signed as evidence.

    Attributes:
        ident: of the erasure's record.
        finished: when the erasure finished, ISO 8601 in UTC.
        code_version: version of MRCG.
        scans: number of erased scans.
        identical_copies_left: number of other scans with the same pixels, which were not erased.
        names: hashes of the erased ids and pseudonyms.
        vectors: hashes of the erased embeddings.
        suppressed: entries of the suppression list.
        removed_versions: versions that were removed.
        made_versions: versions that were made without the scans.
        release: number of the current release after the erasure, None if there is none.
        trained_on_them: models that were or may have been trained on the scans; they are kept.
    """

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
        """Return the bytes that are signed."""
        return self.model_dump_json().encode()


class SignedReceipt(Frozen):
    """A receipt and its signature."""

    receipt: Receipt
    signed: Signature

    @property
    def genuine(self) -> bool:
        """Whether the signature is valid for the receipt."""
        return is_signed(self.receipt.to_bytes(), self.signed)


def plan_erasure(store: Store, target: ErasureTarget, pseudonyms: Pseudonyms | None) -> ErasureRecord:
    """Collect everything that an erasure needs to know before it removes anything.

    Raises:
        NotFoundError: no corpus has such an image, or scans of such a patient.
        UsageError: a corpus with the target was made with another pseudonym key, so the target could not be kept out of
            later corpora.
    """
    wanted = {"image_id": [target.value]} if target.kind == IMAGE else _scans_of_patient(target)
    matches = locate(store, wanted)
    if not matches and target.kind == IMAGE:
        raise NotFoundError(f"no corpus in {store.url} has an image {target.value}: `mrcg query` shows ids")
    pixels = {value for match in matches for value in match.matching["pixel_hash"].to_pylist()}
    if target.kind == IMAGE:
        # A copy of the file under another name is another image with the same pixels: it is erased as well.
        wanted = {"pixel_hash": sorted(pixels)}
        matches = locate(store, wanted)
    images = {image_id for match in matches for image_id in match.matching["image_id"].to_pylist()}
    columns = IDENTIFYING_COLUMNS_OF_IMAGE if target.kind == IMAGE else IDENTIFYING_COLUMNS
    # Groups and clusters are named after an image id. If they have other members they are renamed, so no id may remain.
    names = {*target.values} | {
        name for match in matches for col in columns for name in match.matching[col].to_pylist() if name
    }
    copies: set[str] = set()
    for match in each_corpus(store, wanted):
        for col in columns:
            # A name that other scans also have is not erased.
            names -= set(pc.unique(match.others[col].combine_chunks()).to_pylist())
        is_copy = pc.is_in(match.others["pixel_hash"], pa.array(sorted(pixels), pa.string()))
        copies.update(match.others["image_id"].filter(is_copy).to_pylist())
    manifests = all_manifests(store)
    unlisted = with_unlisted_rows(store, manifests)
    if not matches and not unlisted:
        # With rows that no table lists any more, whose they are is not known: they go in any case.
        raise NotFoundError(f"no corpus in {store.url} has scans of this patient: nothing was erased")
    suppressions = [(target.kind, value) for value in target.values] + [(IMAGE, value) for value in target.images]
    if target.kind == IMAGE:
        suppressions += [(PIXELS, value) for value in sorted(pixels)]
    keys = {pseudonyms, *(_key_of(manifests["corpus", match.corpus], pseudonyms) for match in matches)}
    entries = sorted({*target.marks, *(token(key, *suppression) for key in keys for suppression in suppressions)})
    roots = [*(("corpus", match.corpus) for match in matches), *unlisted]
    doomed = affected_versions(manifests, roots)
    return ErasureRecord(
        ident=digest(["erase", entries, sorted(images)], 16),
        images=tuple(sorted(map(entry_of, images))),
        names=tuple(sorted(map(entry_of, names))),
        vectors=tuple(sorted(vector_hashes(store, manifests, images))),
        suppressed=tuple(entries),
        copies=len(copies),
        doomed=tuple(sorted(map(name_of, doomed))),
        models=tuple(sorted(map(name_of, models_trained_on(store, manifests, matches)))),
    )


def _scans_of_patient(target: ErasureTarget) -> dict[str, Sequence[str]]:
    return {"patient": target.values, "image_id": target.images}


def merge_records(record: ErasureRecord, earlier: ErasureRecord) -> ErasureRecord:
    """Return a record for a repeated erasure: with what the earlier record lists as well, and another ident."""
    merged = {
        name: tuple(sorted({*getattr(record, name), *getattr(earlier, name)}))
        for name in ("images", "names", "vectors", "suppressed", "doomed", "models")
    }
    times = max(record.times, earlier.times + 1)
    return record.model_copy(update={**merged, "times": times, "ident": digest([earlier.ident, times], 16)})


def key_fingerprint(corpus: Manifest | None) -> str | None:
    """Return the fingerprint of the pseudonym key that a corpus was made with, None if it has no key."""
    policy = None if corpus is None else corpus.settings.get("policy")
    return None if policy is None else str(policy["key"])


def _key_of(corpus: Manifest | None, pseudonyms: Pseudonyms | None) -> Pseudonyms | None:
    """Return the pseudonym key of a corpus, None if it has no key.

    Raises:
        UsageError: it is not ``pseudonyms``.
    """
    fingerprint = key_fingerprint(corpus)
    if fingerprint is None or (pseudonyms is not None and pseudonyms.fingerprint == fingerprint):
        return None if fingerprint is None else pseudonyms
    assert corpus is not None
    raise UsageError(
        f"corpus/{corpus.version} was made with {'a' if pseudonyms is None else 'another'} pseudonym key: "
        f"set {ENVIRONMENT} to that key, or the next ingestion would bring the erased scans back"
    )


def read_receipt(data: bytes) -> SignedReceipt:
    """Parse the content of a receipt file.

    Raises:
        IntegrityError: it is not a receipt.
    """
    try:
        return SignedReceipt.model_validate(json.loads(data))
    except ValueError as error:
        raise IntegrityError("this is not a receipt of `mrcg erase`: give the file that it wrote") from error


def reappeared_versions(store: Store, removed: Iterable[str]) -> list[str]:
    """Return the removed versions (``kind/version``) that have files again which no manifest lists."""
    referenced = {
        f"{entry.folder or manifest.folder}/{entry.name}"
        for manifest in all_manifests(store).values()
        if manifest is not None
        for entry in manifest.files
    }
    return [version for version in removed if not {f"{version}/{name}" for name in store.files(version)} <= referenced]


def has_erased_scans(store: Store, corpus: str, record: ErasureRecord) -> bool:
    """Return whether a corpus has a scan of the images or patients that a record names."""
    scans = read_scans(store.artefact("corpus", corpus), ["image_id", "patient"])
    hashes = {entry_of(name) for column in scans.columns for name in column.unique().to_pylist() if name}
    return not hashes.isdisjoint({*record.images, *record.names})


class Verdict(BaseModel):
    """Result of the check of a receipt.

    Attributes:
        genuine: the signature is valid for the receipt.
        known_signer: it was signed with the expected key; None if no key was given.
        left: files that still hold an erased id, pseudonym or vector.
        versions_back: removed versions that exist again.
        not_suppressed: some of the receipt's entries are missing from the suppression list.
    """

    model_config = ConfigDict(frozen=True)

    genuine: bool
    known_signer: bool | None
    left: tuple[str, ...]
    versions_back: tuple[str, ...]
    not_suppressed: bool

    @property
    def holds(self) -> bool:
        """Whether the receipt is valid and the store is still in the state that it states."""
        return (
            self.genuine
            and self.known_signer is not False
            and not (self.left or self.versions_back or self.not_suppressed)
        )


def check_receipt(store: Store, signed: SignedReceipt, own_key: str | None, listed: frozenset[str]) -> Verdict:
    """Check the signature of a receipt, and that the store has nothing left of the erased scans.

    Args:
        store: that the erasure was made in.
        signed: the receipt.
        own_key: public key that should have signed it; None skips this check.
        listed: entries of the suppression list.
    """
    receipt = signed.receipt
    return Verdict(
        genuine=signed.genuine,
        known_signer=None if own_key is None else signed.signed.public_key == own_key,
        left=tuple(find_traces(store, receipt.names, receipt.vectors)),
        versions_back=tuple(reappeared_versions(store, receipt.removed_versions)),
        not_suppressed=not set(receipt.suppressed) <= listed,
    )
