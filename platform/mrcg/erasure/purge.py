"""Purging: make a corpus without suppressed scans from an existing corpus (`docs/index.md#erasure`)."""

from __future__ import annotations

from mrcg.config.settings import IngestSettings
from mrcg.corpus.assembly import AssembledCorpus, assemble_corpus
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.listing import known_files
from mrcg.privacy.pseudonyms import Pseudonyms
from mrcg.privacy.suppression import suppressed
from mrcg.stages.counts import CorpusCounts
from mrcg.storage.attempts import Attempt
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Artefact


def purge_corpus(base: Artefact, attempt: Attempt, pseudonyms: Pseudonyms | None) -> AssembledCorpus:
    """Assemble a corpus without the suppressed scans: no rows, pixels or quarantine rows of them.

    Args:
        base: corpus to purge; its source is not read.
        attempt: receives the files of the new corpus.
        pseudonyms: the key that the base was made with, None if it was made without one.
    """
    settings = IngestSettings.model_validate(base.manifest.settings["ingest"])
    generation = base.manifest.counts_as(CorpusCounts).generation + 1
    rules = Rules(settings, pseudonyms, suppressed(attempt.store), generation)

    def write(name: str, data: bytes) -> FileEntry:
        return attempt.write(name, data)

    assembled = assemble_corpus([], base, known_files(base), rules, write, purge=True)
    # The base's counts identify its source: the next ingestion of that source extends this corpus.
    counts = CorpusCounts.model_validate(base.manifest.counts.replaced_by(assembled.counts))
    return AssembledCorpus(assembled.files, counts, assembled.bad_files, assembled.first_bad)
