"""A manifest of a source with the labels of a corpus, for a person to correct and to ingest (docs/labels.md)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from mrcg.corpus.ingestion import Rules, label_of
from mrcg.corpus.sources import COLUMNS, MANIFEST, ManifestSource, SourceFile, SourceReader, lesion_columns
from mrcg.errors import UsageError
from mrcg.imaging.slices import ScanFacts

#: Columns that an ingestion ignores: they tell the person why a row comes first.
NOTES = ("flagged", "suggested", "probability")


@dataclass(frozen=True)
class LabelNote:
    """What an audit says of a file: whether it is flagged, the most probable class, the probability of its label."""

    flagged: bool
    suggested: str
    probability: float


def check_target(source: SourceReader, target: Path) -> None:
    """Check that a manifest can be written to a new file that is no part of the source.

    Raises:
        UsageError: the file exists, would be ingested as a scan, or its name does not end as a manifest's does.
    """
    path = _absolute_path(target)
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--manifest {target}: the name of a manifest must end in .csv")
    if path.exists():
        raise UsageError(f"--manifest {target} already exists and may hold corrections: choose another file")
    if not path.parent.is_dir():
        raise UsageError(f"--manifest {target}: there is no such folder; create it")
    if isinstance(source, ManifestSource):
        return
    folder = Path(source.location)
    hidden = path.is_relative_to(folder) and any(part.startswith(".") for part in path.relative_to(folder).parts)
    if path.is_relative_to(folder) and not hidden and path != folder / MANIFEST:
        raise UsageError(
            f"--manifest {target} is inside --source {source.location} and would be ingested: "
            f"name it {MANIFEST} in the source's own folder, choose a name that begins with a dot (.{target.name}), "
            "or another folder"
        )


def labels_manifest(
    source: SourceReader, target: Path, scans: pa.Table, notes: Mapping[str, LabelNote], rules: Rules
) -> bytes:
    """Return a manifest (CSV, UTF-8) of all files of a source with their labels.

    Flagged files come first, in the order of the notes; all others follow in the order of the source. The manifest
    states all that the source states about a file, so that an ingestion makes the same scans of it.

    Args:
        source: of the corpus.
        target: file that the manifest will be written to. If it is in the folder of the source, paths stay as they
            are and scans keep their ids; otherwise relative paths become absolute.
        scans: table of ``schemas.SCANS`` of the corpus.
        notes: by stored source key, worst first.
        rules: that the corpus was ingested by.
    """
    base = source.location.rpartition("/")[0] if isinstance(source, ManifestSource) else source.location.rstrip("/")
    same_folder = str(_absolute_path(target).parent) == base
    labels = dict(zip(scans["source_key"].to_pylist(), scans["label"].to_pylist(), strict=True))
    rows: list[tuple[str, dict[str, Any]]] = []
    for file in source.walk():
        key = rules.stored_key(file.key)
        # A file without a scan in the corpus gets the label that it would be ingested with.
        label = labels[key] if key in labels else label_of(file, ScanFacts(), rules)
        columns = {**vars(file), **lesion_columns(file.lesion), "label": label}
        facts = {name: columns[name] for name in COLUMNS}
        rows.append((key, {"path": file.key if same_folder else _absolute_key(file, base), **facts}))
    places = {key: place for place, (key, note) in enumerate(notes.items()) if note.flagged}
    rows.sort(key=lambda row: places.get(row[0], len(notes)))
    stated = [name for name in COLUMNS if name == "label" or any(facts[name] is not None for _, facts in rows)]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ["path", *stated, *NOTES], extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(facts | _columns_of(notes.get(key)) for key, facts in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _absolute_path(target: Path) -> Path:
    return Path(os.path.abspath(target))


def _absolute_key(file: SourceFile, base: str) -> str:
    return file.key if "://" in file.key or file.key.startswith("/") else f"{base}/{file.key}"


def _columns_of(note: LabelNote | None) -> dict[str, str]:
    if note is None:
        return {}
    flagged = "yes" if note.flagged else "no"
    return {"flagged": flagged, "suggested": note.suggested, "probability": f"{note.probability:.3f}"}
