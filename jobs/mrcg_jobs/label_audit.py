"""The label audit on Ray: train and embed what is missing, then score the labels in this process.

For scans that the released encoder was trained on it uses the encoders of cross-fitting, under the versions that
``reranker.graphs=cross_fit`` gives them: what a run has made is used again, and a later run uses what the audit made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrcg.arrays import Vectors
from mrcg.config.settings import Config
from mrcg.corpus.corrections import LabelNote, labels_manifest
from mrcg.corpus.ingestion import Rules
from mrcg.corpus.reader import Corpus
from mrcg.corpus.sources import Source, open_source
from mrcg.corpus.splits import Split
from mrcg.evaluation.label_audit import (
    AuditedScan,
    LabelAudit,
    audit_labels,
    flagged_figures,
    scoring_parts,
    trained_vectors,
)
from mrcg.execution.executor import Progress
from mrcg.metrics.report import QUERIES
from mrcg.pipeline.plan import Step
from mrcg.privacy.pseudonyms import pseudonyms_from_environment
from mrcg.storage import schemas
from mrcg.storage.store import Artefact, Store
from mrcg_jobs.runner import StageResult, plan_steps, run_stages


@dataclass(frozen=True)
class LabelAuditor:
    """Audits the labels of one source.

    Attributes:
        store: where artefacts go.
        config: settings, with cross-fitting.
        source: of the scans.
        steps: that the audit needs.
        report: version of the report with the settings of the user.
    """

    store: Store
    config: Config
    source: Source
    steps: tuple[Step, ...]
    report: str

    @classmethod
    def of(cls, store: Store, config: Config, location: str, folds: int) -> LabelAuditor:
        """Plan the audit; errors are raised here, before any work starts.

        Args:
            store: where artefacts go.
            config: settings of the user.
            location: of the source.
            folds: number of cross-fitted encoders.

        Raises:
            MrcgError: as ``plan_steps`` does.
        """
        reranker = config.reranker.model_copy(update={"graphs": "cross_fit", "folds": folds})
        fitted = config.model_copy(update={"reranker": reranker})
        source, steps = plan_steps(store, fitted, location, "embed")
        _, whole = plan_steps(store, config, location)
        return cls(store, fitted, source, steps, whole[-1].version)

    def run(self, ray_address: str | None, progress_of: Callable[[str], Progress]) -> Iterator[StageResult]:
        """Run the steps that are not done, and yield the result of each."""
        yield from run_stages(self.store, self.config, self.source, self.steps, ray_address, progress_of)

    def corpus(self) -> Corpus:
        """Open the corpus; its step must be done."""
        return Corpus(self._artefacts("corpus")[0])

    def audit(self, corpus: Corpus, progress: Progress) -> LabelAudit:
        """Score the labels of a corpus; all steps must be done.

        Args:
            corpus: of ``corpus``.
            progress: counts the encoders whose scans are scored.

        Raises:
            SourceError: fewer than two classes have enough scans.
            MissingExtraError: cleanlab is not installed.
        """
        split, embeddings = Split(self._artefacts("splits")[0]), self._artefacts("embeddings")
        folds = self.config.reranker.folds

        def vectors() -> Iterator[Vectors]:
            for done, artefact in enumerate(embeddings):
                progress(done, len(embeddings), "searching the neighbours")
                yield trained_vectors(artefact)
            progress(len(embeddings), len(embeddings))

        labelled = ~corpus.scans["label"].is_null().to_numpy()
        parts = scoring_parts(split, corpus.groups, labelled, folds, self.config.seed)
        audited = audit_labels(corpus, split, parts, vectors(), folds)
        if not self.store.has("reports", self.report):
            return audited
        report = self.store.artefact("reports", self.report)
        if QUERIES not in report.names():  # a report of an earlier version of MRCG
            return audited
        queries = schemas.from_parquet(report.read_bytes(QUERIES))
        figures = flagged_figures(self.report, queries, audited.rows, self.config.evaluate.bootstrap)
        return audited.model_copy(update={"figures": figures})

    def manifest(self, location: str, target: Path, corpus: Corpus, audited: LabelAudit) -> bytes:
        """Return a manifest of all scans of the source with their labels, the flagged ones first.

        Args:
            location: of the source.
            target: file that the manifest will be written to.
            corpus: that was audited.
            audited: the audit, with all rows.
        """
        rules = Rules(self.config.ingest, pseudonyms_from_environment(), frozenset(), 0)
        return labels_manifest(open_source(location), target, corpus.scans, notes_of(audited.rows), rules)

    def _artefacts(self, kind: str) -> list[Artefact]:
        """Open the artefacts of a kind: that of the released encoder first, then those of the folds in order."""
        return [self.store.artefact(kind, step.version) for step in self.steps if step.stage.kind == kind]


def notes_of(scans: Sequence[AuditedScan]) -> dict[str, LabelNote]:
    """Return a note for each file, by its stored key, worst first; a file is flagged if one of its scans is."""
    notes: dict[str, LabelNote] = {}
    for scan in sorted(scans, key=lambda scan: not scan.flagged):
        notes.setdefault(scan.source_key, LabelNote(scan.flagged, scan.suggested, scan.probability))
    return notes
