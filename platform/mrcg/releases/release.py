"""Releases: which encoder, index and reranker serve together (`docs/index.md#releases-and-garbage-collection`).

``releases/history/<n>.json`` is created once and never changed; the highest n is the current release. So a promotion or
a rollback is one atomic step, and of two concurrent ones exactly one succeeds.
"""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mrcg.encoder.spec import read_spec as read_encoder
from mrcg.errors import AlreadyExistsError, IntegrityError, LostRaceError, NotFoundError, ReleaseError
from mrcg.frozen import Frozen
from mrcg.metrics.calibration import Platt
from mrcg.metrics.known_items import change_between
from mrcg.metrics.order import BY_SCORE, HitOrder
from mrcg.metrics.report import KNOWN, SEED, Report
from mrcg.reranker.spec import read_spec as read_reranker
from mrcg.stages.registry import artefact_kinds
from mrcg.storage import schemas
from mrcg.storage.catalog import dependencies_of, manifests_behind
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

log = logging.getLogger(__name__)

HISTORY = "releases/history"
#: Resamples with which the gate compares known items.
RESAMPLES = 2000


class Release(Frozen):
    """The versions that a release pins, the figures of its report, and the reason for the release."""

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
    recall: float | None = None  # None in releases made by earlier versions of MRCG, as are the next four
    served_map: float | None = None
    known_first: float | None = None
    typical_distance: float | None = None
    probability_withheld: str | None = None
    order: HitOrder = BY_SCORE  # the default is the order of earlier versions
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

    @property
    def map(self) -> float:
        """The MAP of the order that this release serves; earlier versions of MRCG served the order by score."""
        return self.reranked_map if self.served_map is None else self.served_map


class Promotion(BaseModel):
    """Outcome of a promotion: whether it succeeded, the release that is current now, and an explanation."""

    model_config = ConfigDict(frozen=True)

    promoted: bool
    release: Release
    why: str


def release_numbers(store: Store) -> list[int]:
    """Return the numbers of all releases in ascending order."""
    return sorted(int(name[:-5]) for name in store.listdir(HISTORY) if name.endswith(".json") and name[:-5].isdigit())


def read_release(store: Store, number: int | None = None) -> Release:
    """Return a release, by default the current one.

    Raises:
        NotFoundError: the store has no release, or none with this number.
        IntegrityError: the file of the release is damaged.
    """
    numbers = release_numbers(store)
    if not numbers:
        raise NotFoundError(f"{store.url} has no release: `mrcg run` makes and promotes one")
    number = numbers[-1] if number is None else number
    if number not in numbers:
        raise NotFoundError(f"{store.url} has no release {number}: `mrcg releases list` shows all releases")
    try:
        return Release.model_validate_json(store.read_bytes(f"{HISTORY}/{number}.json"))
    except ValidationError as error:
        raise IntegrityError(f"{store.url}/{HISTORY}/{number}.json is not a release: restore the file") from error


def candidate(store: Store, report_version: str, number: int, reason: str) -> Release:
    """Return the release that a report would make, after checking the manifests behind it.

    This reads manifests, the report and the models' specs, so the cost does not depend on the size of the gallery.

    Raises:
        NotFoundError, IntegrityError: one of the manifests is missing or was changed.
        ReleaseError: two of the versions were made from different inputs.
        WeightsError: the reranker was trained on another encoder's embeddings.
    """
    manifests = _release_manifests(store, report_version)
    pins = {kind: manifests[kind].version for kind in ("corpus", "encoders", "indexes", "rerankers")}
    graphs = manifests["graphs"]
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
        calibration=report.calibration.served,
        protocol=report.protocol,
        reranked_map=report.reranked.map,
        recall=report.index_recall_at_50,
        served_map=report.served_figures.map,
        known_first=None if report.known_items is None else report.known_items.changed.served.first,
        typical_distance=report.typical_distance,
        probability_withheld=report.calibration.withheld,
        order=report.order.order,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
    )


def _release_manifests(store: Store, report_version: str) -> dict[str, Manifest]:
    """Return the manifests behind a report, by kind, after checking that they belong together."""
    manifests = manifests_behind(store, "reports", report_version)
    for user in (kind for kind in artefact_kinds() if kind in manifests):
        for kind, version in dependencies_of(manifests[user]):
            if manifests[kind].version != version:
                raise ReleaseError(
                    f"{user}/{manifests[user].version} was made from {kind}/{version}, the report from "
                    f"{kind}/{manifests[kind].version}: run `mrcg evaluate` with the options of the run"
                )
    fingerprint = read_encoder(store.artefact("encoders", manifests["encoders"].version))[1]
    read_reranker(store.artefact("rerankers", manifests["rerankers"].version), fingerprint)
    return manifests


class Gate(BaseModel):
    """Largest allowed drops of a new release below the current one.

    Attributes:
        map_drop: in MAP of the served order.
        recall_drop: in recall@50 of the index.
        known_drop: in the share of changed gallery scans that find themselves first.
    """

    model_config = ConfigDict(frozen=True)

    map_drop: float
    recall_drop: float
    known_drop: float


def promote(store: Store, report_version: str, gate: Gate | None) -> Promotion:
    """Make the versions that a report measured the current release.

    Args:
        store: with the report.
        report_version: version of the report.
        gate: largest allowed drops below the current release; None promotes without this check.

    Returns:
        The outcome. It is not an error if the gate refuses, or if another process has just made the same release.

    Raises:
        NotFoundError, IntegrityError, ReleaseError, WeightsError: see `candidate`.
        LostRaceError: another process has just made a different release, so the gate's check no longer holds.
    """
    numbers = release_numbers(store)
    current = read_release(store, numbers[-1]) if numbers else None
    new = candidate(store, report_version, (numbers[-1] if numbers else 0) + 1, "promoted")
    if current is not None and (why := _refusal(store, current, new, gate)):
        return Promotion(promoted=False, release=current, why=why)
    try:
        _publish(store, new)
    except LostRaceError:
        winner = read_release(store)
        if winner.pins != new.pins:
            raise
        return Promotion(promoted=False, release=winner, why=_already_current(winner))
    return Promotion(promoted=True, release=new, why=f"release {new.number} is current")


def _already_current(current: Release) -> str:
    return f"release {current.number} already serves exactly these versions"


def _refusal(store: Store, current: Release, new: Release, gate: Gate | None) -> str | None:
    """Return why a candidate must not become current, None if it may."""
    if current.pins == new.pins:
        return _already_current(current)
    if gate is None:
        return None
    if current.protocol != new.protocol:
        return (
            f"gate: protocol {new.protocol} cannot be compared with protocol {current.protocol} of release "
            f"{current.number}; `mrcg releases promote --no-gate` overrides"
        )
    measured = [("MAP", current.map, new.map, gate.map_drop, "max_map_drop")]
    if current.recall is not None and new.recall is not None:
        measured.append(("recall@50 of the index", current.recall, new.recall, gate.recall_drop, "max_recall_drop"))
    for name, before, now, drop, setting in measured:
        if now < before - drop:
            return (
                f"gate: {name} {now:.4f} is below {before - drop:.4f} "
                f"(release {current.number} minus release.{setting}); `mrcg releases promote --no-gate` overrides"
            )
    return _known_items_refusal(store, current, new, gate)


def _known_items_refusal(store: Store, current: Release, new: Release, gate: Gate) -> str | None:
    """Return why known items forbid a promotion: of the scans in both reports, clearly fewer find themselves first."""
    reports = [store.artefact("reports", r.report) for r in (current, new) if store.has("reports", r.report)]
    tables = [schemas.from_parquet(report.read_bytes(KNOWN)) for report in reports if KNOWN in report.names()]
    if len(tables) < 2:
        return None  # a report of an earlier version has none, and one may have been erased: only MAP is compared
    change = change_between(tables[0], tables[1], RESAMPLES, SEED)
    if change is None or change.high >= 0 or change.mean >= -gate.known_drop:
        return None
    return (
        f"gate: {-100 * change.mean:.1f} points fewer of the changed gallery scans find themselves first than under "
        f"release {current.number} (95 % interval {-100 * change.high:.1f} to {-100 * change.low:.1f}; "
        f"release.max_known_drop allows {100 * gate.known_drop:g}); `mrcg releases promote --no-gate` overrides"
    )


class Change(BaseModel):
    """A difference between two releases."""

    model_config = ConfigDict(frozen=True)

    what: str
    before: str
    after: str


def diff(store: Store, before: Release, after: Release) -> list[Change]:
    """Return the differences of two releases: versions, the settings and counts in their manifests, and figures."""
    changes = []
    for kind, version in before.pins.items():
        new_version = after.pins[kind]
        if version != new_version:
            changes.append(Change(what=kind, before=version, after=new_version))
            changes += _manifest_changes(store, kind, version, new_version)
    compared = (
        "neighbours",
        "ood_threshold",
        "protocol",
        "reranked_map",
        "served_map",
        "known_first",
        "recall",
        "order",
    )
    for name in compared:
        old_value, new_value = (release.model_dump(mode="json")[name] for release in (before, after))
        if old_value != new_value:
            changes.append(Change(what=name, before=_format(old_value), after=_format(new_value)))
    return changes


def _manifest_changes(store: Store, kind: str, before: str, after: str) -> list[Change]:
    """Return the differences of two versions in settings and counts; none if one of them was removed."""
    if not (store.has(kind, before) and store.has(kind, after)):
        return []
    old_manifest, new_manifest = store.manifest(kind, before), store.manifest(kind, after)
    return [
        Change(what=f"{kind} {key}", before=_format(old.get(key)), after=_format(new.get(key)))
        for old, new in (
            (old_manifest.settings, new_manifest.settings),
            (old_manifest.counts.stated(), new_manifest.counts.stated()),
        )
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _format(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else json.dumps(value, sort_keys=True)


def rollback(store: Store, number: int | None = None) -> Release:
    """Make an earlier release current again, as a new entry of the history.

    Args:
        store: with the releases.
        number: of the release to roll back to; None takes the one before the current release.

    Returns:
        The new release, with the pins of the earlier one.

    Raises:
        NotFoundError: there is no release with this number.
        ReleaseError: there is no earlier release, or a version that it pins is missing.
        LostRaceError: another process has just promoted or rolled back.
    """
    numbers = release_numbers(store)
    if number is None:
        if len(numbers) < 2:
            raise ReleaseError(f"{store.url} has no release before the current one to roll back to")
        number = numbers[-2]
    earlier = read_release(store, number)
    if missing := missing_parts(store, earlier):
        raise ReleaseError(
            f"release {number} cannot serve again: {missing[0]} is missing (removed by `mrcg gc` or by an erasure); "
            "`mrcg releases list` shows other releases"
        )
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    new = earlier.model_copy(
        update={"number": numbers[-1] + 1, "created": created, "reason": f"rolled back to {number}"}
    )
    _publish(store, new)
    return new


def missing_parts(store: Store, release: Release) -> list[str]:
    """Return the versions that a release pins and the store does not have, as ``kind/version``."""
    return [f"{kind}/{version}" for kind, version in release.pins.items() if not store.has(kind, version)]


def _publish(store: Store, release: Release) -> None:
    try:
        store.create(f"{HISTORY}/{release.number}.json", release.model_dump_json(indent=1).encode())
    except AlreadyExistsError as error:
        raise LostRaceError(
            f"release {release.number} has just been made by another process: look at it (`mrcg releases show`) and "
            "try again"
        ) from error
    log.info("release %d is current", release.number)
