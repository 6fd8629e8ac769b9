"""A corpus without those who are on the suppression list, made from an earlier one alone (DESIGN §5)."""

from __future__ import annotations

from mrcg.attempt import Attempt
from mrcg.config import IngestSettings
from mrcg.ingest import Rules
from mrcg.joining import Joined, join_corpus
from mrcg.listing import known_files
from mrcg.manifest import FileEntry
from mrcg.privacy import Pseudonyms
from mrcg.store import Artefact
from mrcg.suppression import suppressed


def purge_corpus(base: Artefact, attempt: Attempt, pseudonyms: Pseudonyms | None) -> Joined:
    """A corpus without them: no row, no pixel, no word in the quarantine. The source is not needed."""
    settings = IngestSettings.model_validate(base.manifest.settings["ingest"])
    generation = int(base.manifest.counts["generation"]) + 1
    rules = Rules(settings, pseudonyms, suppressed(attempt.store), generation)

    def write(name: str, data: bytes) -> FileEntry:
        return attempt.write(name, data)

    joined = join_corpus([], base, known_files(base), rules, write, purge=True)
    # What says where it came from stays: the next ingestion of that source grows from this.
    counts = {**base.manifest.counts, **joined.counts}
    return Joined(joined.files, counts, joined.bad_files, joined.first_bad)
