"""Releases: which encoder, index and reranker answer together (DESIGN §2).

``releases/history/<n>.json`` is created once and never changed; the highest n is current. So promoting
and rolling back are one atomic step, and of two promoters one wins.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mrcg.encoder.spec import read_spec as read_encoder
from mrcg.errors import AlreadyExistsError, IntegrityError, LostRaceError, NotFoundError, ReleaseError
from mrcg.metrics.calibration import Platt
from mrcg.metrics.report import Report
from mrcg.reranker.spec import read_spec as read_reranker
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

HISTORY = "releases/history"


class Release(BaseModel):
    """What one release pins, and why it came."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    corpus: str
    encoder: str
    index: str
    reranker: str
    report: str
    neighbours: int
    ood_threshold: float | None
    calibration: Platt | None = None
    protocol: str
    reranked_map: float
    recall: float | None = None  # releases of earlier versions of MRCG do not say
    created: str
    reason: str

    @property
    def pins(self) -> dict[str, str]:
        """The version of each kind that this release needs."""
        return {
            "corpus": self.corpus,
            "encoders": self.encoder,
            "indexes": self.index,
            "rerankers": self.reranker,
            "reports": self.report,
        }


class Promotion(BaseModel):
    """Outcome of a promotion: the release that is current now, and whether it is new."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    release: Release
    why: str


def release_numbers(store: Store) -> list[int]:
    """Numbers of all releases, rising."""
    return sorted(int(name[:-5]) for name in store.listdir(HISTORY) if name.endswith(".json") and name[:-5].isdigit())


def read_release(store: Store, number: int | None = None) -> Release:
    """A release, the current one where no number is given.

    Raises:
        NotFoundError: there is none (yet).
    """
    numbers = release_numbers(store)
    if not numbers:
        raise NotFoundError(f"{store.url} has no release: `mrcg run` makes and promotes one")
    wanted = numbers[-1] if number is None else number
    if wanted not in numbers:
        raise NotFoundError(f"{store.url} has no release {wanted}: `mrcg releases list` shows them")
    try:
        return Release.model_validate_json(store.read_bytes(f"{HISTORY}/{wanted}.json"))
    except ValidationError as error:
        raise IntegrityError(f"{store.url}/{HISTORY}/{wanted}.json is not a release: restore it") from error


def candidate(store: Store, report_version: str, number: int, reason: str) -> Release:
    """The release that a report would make, its chain of manifests checked. The cost does not depend on the gallery.

    Raises:
        NotFoundError, IntegrityError: a link of the chain is absent or was changed.
        ReleaseError: two links are not of one line.
        WeightsError: the reranker was trained on another encoder's embeddings.
    """
    chain = _chain(store, report_version)
    pins = {kind: chain[kind].version for kind in ("corpus", "encoders", "indexes", "rerankers")}
    graphs = chain["graphs"]
    report = Report.model_validate_json(store.artefact("reports", report_version).read_bytes("report.json"))
    return Release(
        number=number,
        corpus=pins["corpus"],
        encoder=pins["encoders"],
        index=pins["indexes"],
        reranker=pins["rerankers"],
        report=report_version,
        neighbours=int(graphs.settings["graph"]["neighbours"]),
        ood_threshold=report.ood_threshold,
        calibration=report.calibration.map,
        protocol=report.protocol,
        reranked_map=report.reranked.map,
        recall=report.index_recall_at_50,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
    )


def _chain(store: Store, report_version: str) -> dict[str, Manifest]:
    """The manifests that a release stands on, by kind, found to be of one line."""
    report = store.manifest("reports", report_version)
    found = {"reports": report}
    for kind in ("corpus", "splits", "embeddings", "graphs", "rerankers"):
        found[kind] = store.manifest(kind, report.inputs[kind])
    found["encoders"] = store.manifest("encoders", found["embeddings"].inputs["encoders"])
    found["indexes"] = store.manifest("indexes", found["graphs"].inputs["indexes"])
    for user in ("splits", "embeddings", "indexes", "graphs"):
        for kind, version in found[user].inputs.items():
            if kind in found and kind != user and found[kind].version != version:
                raise ReleaseError(
                    f"{user}/{found[user].version} was made from {kind}/{version}, the report from "
                    f"{kind}/{found[kind].version}: run `mrcg evaluate` with the options of the run"
                )
    fingerprint = read_encoder(store.artefact("encoders", found["encoders"].version))[1]
    read_reranker(store.artefact("rerankers", found["rerankers"].version), fingerprint)
    return found


class Gate(BaseModel):
    """How far a release may lie below the current one; None asks nothing."""

    model_config = ConfigDict(frozen=True)

    map_drop: float
    recall_drop: float


def promote(store: Store, report_version: str, gate: Gate | None) -> Promotion:
    """Make a report's pair the current release.

    Args:
        store: where everything is.
        report_version: of the report that speaks for it.
        gate: how far it may lie below the current release; None asks nothing.

    Returns:
        The outcome; a gate that refuses is not an error, nor that somebody else just made the very same release.

    Raises:
        NotFoundError, IntegrityError, ReleaseError, WeightsError: of ``candidate``.
        LostRaceError: somebody else promoted something else just now; the gate has to be asked anew.
    """
    numbers = release_numbers(store)
    current = read_release(store, numbers[-1]) if numbers else None
    new = candidate(store, report_version, (numbers[-1] if numbers else 0) + 1, "promoted")
    if current is not None and (why := _refusal(current, new, gate)):
        return Promotion(promoted=False, release=current, why=why)
    try:
        _publish(store, new)
    except LostRaceError:
        winner = read_release(store)
        if winner.pins != new.pins:
            raise
        return Promotion(promoted=False, release=winner, why=_already(winner))
    return Promotion(promoted=True, release=new, why=f"release {new.number} is current")


def _already(current: Release) -> str:
    return f"release {current.number} serves exactly this already"


def _refusal(current: Release, new: Release, gate: Gate | None) -> str | None:
    """Why a candidate does not become current, None where it does."""
    if current.pins == new.pins:
        return _already(current)
    if gate is None:
        return None
    if current.protocol != new.protocol:
        return (
            f"gate: protocol {new.protocol} cannot be compared with {current.protocol} of release {current.number}; "
            "--promote always overrides"
        )
    measured = [("reranked MAP", current.reranked_map, new.reranked_map, gate.map_drop, "max_map_drop")]
    if current.recall is not None and new.recall is not None:
        measured.append(("recall@50 of the index", current.recall, new.recall, gate.recall_drop, "max_recall_drop"))
    for name, before, now, drop, setting in measured:
        if now < before - drop:
            return (
                f"gate: {name} {now:.4f} is below {before - drop:.4f} "
                f"(release {current.number} less release.{setting}); --promote always overrides"
            )
    return None


class Change(BaseModel):
    """One thing in which two releases differ."""

    model_config = ConfigDict(frozen=True)

    what: str
    before: str
    after: str


def diff(store: Store, before: Release, after: Release) -> list[Change]:
    """What two releases differ in: versions, settings and counts behind them, figures."""
    found = []
    for kind, version in before.pins.items():
        other = after.pins[kind]
        if version != other:
            found.append(Change(what=kind, before=version, after=other))
            found += _explained(store, kind, version, other)
    for name in ("neighbours", "ood_threshold", "protocol", "reranked_map", "recall"):
        one, two = getattr(before, name), getattr(after, name)
        if one != two:
            found.append(Change(what=name, before=_said(one), after=_said(two)))
    return found


def _explained(store: Store, kind: str, before: str, after: str) -> list[Change]:
    if not (store.has(kind, before) and store.has(kind, after)):
        return []
    one, two = store.manifest(kind, before), store.manifest(kind, after)
    return [
        Change(what=f"{kind} {key}", before=_said(old.get(key)), after=_said(new.get(key)))
        for old, new in ((one.settings, two.settings), (one.counts, two.counts))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _said(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else json.dumps(value, sort_keys=True)


def rollback(store: Store, number: int | None = None) -> Release:
    """Make an earlier release current again, as a new entry of the history.

    Args:
        store: where everything is.
        number: of the release to go back to; None takes the one before the current.

    Raises:
        ReleaseError: there is none to go back to, or a part of it is gone.
        LostRaceError: another promoter was first.
    """
    numbers = release_numbers(store)
    if number is None:
        if len(numbers) < 2:
            raise ReleaseError(f"{store.url} has no release before the current one to roll back to")
        number = numbers[-2]
    earlier = read_release(store, number)
    if missing := missing_parts(store, earlier):
        raise ReleaseError(
            f"release {number} cannot serve again: {missing[0]} is gone (swept, or purged by an erasure); "
            "`mrcg releases list` shows others"
        )
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    new = earlier.model_copy(
        update={"number": numbers[-1] + 1, "created": created, "reason": f"rolled back to {number}"}
    )
    _publish(store, new)
    return new


def missing_parts(store: Store, release: Release) -> list[str]:
    """What a release pins and the store has no more."""
    return [f"{kind}/{version}" for kind, version in release.pins.items() if not store.has(kind, version)]


def _publish(store: Store, release: Release) -> None:
    try:
        store.create(f"{HISTORY}/{release.number}.json", release.model_dump_json(indent=1).encode())
    except AlreadyExistsError as error:
        raise LostRaceError(
            f"release {release.number} was made by somebody else just now: look at it (`mrcg releases show`), try again"
        ) from error
    log.info("release %d is current", release.number)
