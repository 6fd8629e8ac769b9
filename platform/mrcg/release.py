"""Releases: which encoder, index and reranker answer together (DESIGN §2).

``releases/history/<n>.json`` is created once and never changed; the highest n is current. So promoting
and rolling back are one atomic step, and of two promoters one wins.
"""

from __future__ import annotations

import datetime
import logging

from pydantic import BaseModel, ConfigDict, ValidationError

from mrcg.errors import AlreadyExistsError, IntegrityError, NotFoundError, ReleaseError
from mrcg.evaluation.calibration import Platt
from mrcg.evaluation.report import Report
from mrcg.store import Store

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
    """The release that a report would make, its chain of manifests checked.

    Raises:
        NotFoundError, IntegrityError: a link of the chain is absent or was changed.
    """
    report_manifest = store.manifest("reports", report_version)
    versions = dict(report_manifest.inputs)
    graphs = store.manifest("graphs", versions["graphs"])
    embeddings = store.manifest("embeddings", versions["embeddings"])
    pins = {
        "corpus": versions["corpus"],
        "encoders": embeddings.inputs["encoders"],
        "indexes": graphs.inputs["indexes"],
        "rerankers": versions["rerankers"],
    }
    for kind, version in pins.items():
        store.manifest(kind, version)
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
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
    )


def promote(store: Store, report_version: str, gate_drop: float | None) -> Promotion:
    """Make a report's pair the current release.

    Args:
        store: where everything is.
        report_version: of the report that speaks for it.
        gate_drop: how far the reranked MAP may lie below the current release's; None asks nothing.

    Returns:
        The outcome; a gate that refuses is not an error.

    A promoter that came second looks again: the other may have made the very same release.
    """
    while True:
        numbers = release_numbers(store)
        current = read_release(store, numbers[-1]) if numbers else None
        new = candidate(store, report_version, (numbers[-1] if numbers else 0) + 1, "promoted")
        if current is not None and (why := _refusal(current, new, gate_drop)):
            return Promotion(promoted=False, release=current, why=why)
        try:
            _publish(store, new)
        except ReleaseError:
            log.info("release %d was made by somebody else just now, looking again", new.number)
            continue
        return Promotion(promoted=True, release=new, why=f"release {new.number} is current")


def _refusal(current: Release, new: Release, gate_drop: float | None) -> str | None:
    """Why a candidate does not become current, None where it does."""
    if current.pins == new.pins:
        return f"release {current.number} serves exactly this already"
    if gate_drop is None:
        return None
    if current.protocol != new.protocol:
        return (
            f"gate: protocol {new.protocol} cannot be compared with {current.protocol} of release {current.number}; "
            "--promote always overrides"
        )
    floor = current.reranked_map - gate_drop
    if new.reranked_map < floor:
        return (
            f"gate: reranked MAP {new.reranked_map:.4f} is below {floor:.4f} "
            f"(release {current.number} less release.max_map_drop); --promote always overrides"
        )
    return None


def rollback(store: Store, number: int | None = None) -> Release:
    """Make an earlier release current again, as a new entry of the history.

    Args:
        store: where everything is.
        number: of the release to go back to; None takes the one before the current.

    Raises:
        ReleaseError: there is none to go back to, a part of it is gone, or another promoter was first.
    """
    numbers = release_numbers(store)
    if number is None:
        if len(numbers) < 2:
            raise ReleaseError(f"{store.url} has no release before the current one to roll back to")
        number = numbers[-2]
    earlier = read_release(store, number)
    for kind, version in earlier.pins.items():
        if not store.has(kind, version):
            raise ReleaseError(f"release {number} cannot serve again: {kind}/{version} is gone")
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    new = earlier.model_copy(
        update={"number": numbers[-1] + 1, "created": created, "reason": f"rolled back to {number}"}
    )
    _publish(store, new)
    return new


def _publish(store: Store, release: Release) -> None:
    try:
        store.create(f"{HISTORY}/{release.number}.json", release.model_dump_json(indent=1).encode())
    except AlreadyExistsError as error:
        raise ReleaseError(
            f"release {release.number} was made by somebody else just now: look at it and try again"
        ) from error
    log.info("release %d is current", release.number)
