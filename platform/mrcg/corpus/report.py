"""Report on a corpus: counts of its scans and quarantined files, a picture, and an HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from mrcg.config.settings import IngestSettings
from mrcg.corpus.assembly import bad_rows
from mrcg.corpus.grouping import conflicts
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.patients import undecided
from mrcg.corpus.reader import Corpus, read_quarantine
from mrcg.corpus.sources import open_source
from mrcg.corpus.splits import SPLITS
from mrcg.errors import ImageError, NotFoundError
from mrcg.hashing import draw
from mrcg.imaging.contact_sheet import Panel, PanelRow, retrieval_picture
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.imaging.slices import Grey
from mrcg.pages.rendering import render
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.stages.counts import CorpusCounts, SplitCounts
from mrcg.storage import schemas
from mrcg.storage.manifest import Manifest
from mrcg.storage.store import Store

#: Maximum images in a row of the picture.
PER_ROW = 8
#: Columns of the scans table that are counted by value.
COLUMNS = ("label", "site", "plane", "sequence", "year")


class Inventory(BaseModel):
    """Counts of one corpus (``CorpusCounts``); missing values are counted as ``unknown``."""

    model_config = ConfigDict(frozen=True)

    version: str
    files: int
    images: int
    patients: int
    without_patient: int
    undecided: int
    groups: int
    exact_copies: int
    near_duplicates: int
    conflicting_copies: int
    bad_files: int
    bad_fraction: float
    deidentified: bool
    by: Mapping[str, Mapping[str, int]]
    reasons: Mapping[str, int]
    splits: Mapping[str, Mapping[str, int]]


def newest_corpus(store: Store) -> Manifest:
    """Return the manifest of the corpus whose run started last.

    Raises:
        NotFoundError: the store has no corpus.
    """
    versions = store.versions("corpus")
    if not versions:
        raise NotFoundError(f"{store.url} has no corpus; create one with `mrcg ingest`")
    started = {version: float(store.read_json(f"corpus/{version}/run.json")["started"]) for version in versions}
    return store.manifest("corpus", max(versions, key=lambda version: (started[version], version)))


def take_inventory(store: Store, manifest: Manifest) -> Inventory:
    """Count the scans, copies, groups, bad files and splits of a corpus."""
    corpus = Corpus(store.artefact("corpus", manifest.version))
    quarantine = read_quarantine(corpus.artefact)
    files, bad = manifest.counts_as(CorpusCounts).files, bad_rows(quarantine).num_rows
    scans, counts = corpus.scans, manifest.counts_as(CorpusCounts)
    return Inventory(
        version=manifest.version,
        files=files,
        images=scans.num_rows,
        patients=counts.patients,
        without_patient=scans["patient"].null_count,
        undecided=undecided(scans),
        groups=counts.groups,
        exact_copies=scans.num_rows - counts.distinct,
        near_duplicates=scans.num_rows - counts.clusters,
        conflicting_copies=len(conflicts(scans)),
        bad_files=bad,
        bad_fraction=bad / files,
        deidentified=manifest.settings["policy"] is not None,
        by={name: _counted(scans[name].to_pylist()) for name in COLUMNS},
        reasons=_counted(quarantine["reason"].to_pylist()),
        splits=_splits(store, manifest.version),
    )


def inventory_picture(store: Store, manifest: Manifest, refused: Mapping[str, Sequence[Panel]]) -> bytes:
    """Draw the inventory picture.

    Args:
        store: that holds the corpus.
        manifest: of the corpus.
        refused: panels of quarantined files by reason.

    Returns:
        PNG with a row of scans for each class, for up to three sets of copies whose labels differ, for the two largest
        clusters of near-duplicates and for each quarantine reason; at most ``PER_ROW`` images in a row.
    """
    corpus = Corpus(store.artefact("corpus", manifest.version))
    rows: list[tuple[str, str, list[int]]] = []
    by_class: dict[str, list[int]] = {}
    for row, label in enumerate(corpus.labels):
        by_class.setdefault(label or "unlabelled", []).append(row)
    ids = corpus.scans["image_id"].to_pylist()
    for label, members in sorted(by_class.items()):
        sample = sorted(members, key=lambda row: draw(0, "inventory", ids[row]))[:PER_ROW]
        rows.append((label, f"{len(members)} scans", sample))
    hashes = corpus.scans["pixel_hash"].to_pylist()
    for pixels, labels in sorted(conflicts(corpus.scans).items())[:3]:
        members = [row for row, value in enumerate(hashes) if value == pixels]
        rows.append(("labels differ", f"{len(labels)} labels", members[:PER_ROW]))
    clusters = corpus.scans["cluster_id"].to_pylist()
    for cluster, size in Counter(clusters).most_common(2):
        if size > 1:
            members = [row for row, value in enumerate(clusters) if value == cluster]
            rows.append(("near-duplicates", f"{size} scans", members[:PER_ROW]))
    shown = sorted({row for _, _, members in rows for row in members})
    pixels_of: dict[int, Grey] = {shown[place]: grey for place, grey in corpus.images(shown)}
    panels = [
        PanelRow(
            Panel(None, title, note),
            [Panel(pixels_of[row], corpus.labels[row] or "unlabelled", ids[row][:12]) for row in members],
        )
        for title, note, members in rows
    ]
    panels += [
        PanelRow(Panel(None, reason, "quarantine"), list(examples)[:PER_ROW])
        for reason, examples in sorted(refused.items())
    ]
    return retrieval_picture(panels, f"Corpus {manifest.version}: {len(corpus)} scans")


def refused_files(
    store: Store, manifest: Manifest, location: str, pseudonyms: Pseudonyms | None
) -> dict[str, list[tuple[str, str, Grey | None]]]:
    """Read example files of each quarantine reason from the source.

    The quarantine stores no pixels and, with a key, no paths, so this needs the source and the same key.

    Args:
        store: that holds the corpus.
        manifest: of the corpus.
        location: of the source.
        pseudonyms: of the key that the corpus was ingested with; None without a key.

    Returns:
        Path, detail and pixels of at most ``PER_ROW`` files for each reason; pixels are None if the file cannot be
        decoded even with relaxed checks.
    """
    settings = IngestSettings.model_validate(manifest.settings["ingest"])
    rules = Rules(settings, pseudonyms, frozenset(), 0)
    quarantine = bad_rows(read_quarantine(store.artefact("corpus", manifest.version)))
    bad_by_key = {row["source_key"]: row for row in quarantine.to_pylist()}
    examples: dict[str, list[tuple[str, str, Grey | None]]] = {}
    lenient = settings.model_copy(update={"min_side": 1, "allow_burned_in": True, "allow_secondary_capture": True})
    source = open_source(location)
    with IsolatedReader(lenient, 10.0, settings.reader_bytes) as reader:
        for file in source.walk():
            row = bad_by_key.get(rules.stored_key(file.key))
            if row is None or len(examples.setdefault(row["reason"], [])) >= PER_ROW:
                continue
            pixels = None
            if 0 <= file.size <= settings.max_file_bytes:
                try:
                    pixels = reader.read(source.read(file)).slices[0].pixels
                except (ImageError, OSError):
                    pixels = None  # shown without a picture; the detail says why
            examples[row["reason"]].append((file.key, row["detail"], pixels))
    return examples


@dataclass(frozen=True)
class _View:
    """What the template ``inventory.html.j2`` reads."""

    inventory: Inventory
    picture: bytes


def inventory_page(inventory: Inventory, picture: bytes) -> bytes:
    """Return the report as one self-contained HTML page, UTF-8."""
    return render("inventory.html.j2", _View(inventory, picture))


def _counted(values: Sequence[Any]) -> dict[str, int]:
    counts = Counter("unknown" if value is None else str(value) for value in values)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _splits(store: Store, corpus: str) -> dict[str, dict[str, int]]:
    counts = {}
    for version in store.versions("splits"):
        manifest = store.manifest("splits", version)
        if manifest.inputs["corpus"] == corpus:
            table = schemas.from_parquet(store.artefact("splits", version).read_bytes(SPLITS))
            counts[f"{manifest.counts_as(SplitCounts).protocol} ({version})"] = _counted(table["split"].to_pylist())
    return counts
