"""A corpus without those who are on the suppression list, made from an earlier one alone (DESIGN §5)."""

from __future__ import annotations

from mrcg.config.settings import IngestSettings
from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.listing import known_files
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import suppressed
from mrcg.storage.attempts import Attempt
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact


def purge_corpus(base: Artefact, attempt: Attempt, pseudonyms: Pseudonyms | None) -> AssembledCorpus:
    """A corpus without them: no row, no pixel, no word in the quarantine. The source is not needed."""
    settings = IngestSettings.model_validate(base.manifest.settings["ingest"])
    generation = int(base.manifest.counts["generation"]) + 1
    rules = Rules(settings, pseudonyms, suppressed(attempt.store), generation)

    def write(name: str, data: bytes) -> FileEntry:
        return attempt.write(name, data)

    joined = assemble_corpus([], base, known_files(base), rules, write, purge=True)
    # What says where it came from stays: the next ingestion of that source grows from this.
    counts = {**base.manifest.counts, **joined.counts}
    return AssembledCorpus(joined.files, counts, joined.bad_files, joined.first_bad)
