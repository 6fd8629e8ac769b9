"""Evaluate in one task of the executor, so that the driver loads neither the model nor the vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrcg.config.settings import EvaluateSettings
from mrcg.metrics.report import REPORT, Report
from mrcg.stages.counts import EncoderCounts, IndexCounts, ReportCounts
from mrcg.storage.manifest import FileEntry
from mrcg.storage.store import Store
from mrcg_jobs.job import Job, Outcome


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates and writes the files of the report."""

    store: str
    inputs: Mapping[str, str]
    encoder: str
    output: str
    facts: Mapping[str, float]
    gpu: bool

    def __call__(self, settings: EvaluateSettings) -> list[FileEntry]:
        from mrcg.evaluation.evaluate import evaluate
        from mrcg.evaluation.known_items import search_known_items

        store, entries = Store(self.store), []
        artefacts = {kind: store.artefact(kind, version) for kind, version in self.inputs.items()}
        known = search_known_items(artefacts, settings.known_items, "cuda" if self.gpu else "cpu")
        encoder = store.artefact("encoders", self.encoder)
        for name, data in evaluate(artefacts, settings, self.facts, encoder, known).items():
            store.write_bytes(f"{self.output}/{name}", data)
            entries.append(FileEntry.of(name, data))
        return entries


def run(job: Job) -> Outcome:
    """Evaluate the reranker on the test queries and write the report."""
    embeddings, graphs = job.inputs["embeddings"].manifest, job.inputs["graphs"].manifest
    encoder = embeddings.inputs["encoders"]
    facts = {
        "recall": job.store.manifest("indexes", graphs.inputs["indexes"]).counts_as(IndexCounts).recall_at_50,
        "epochs": float(job.store.manifest("encoders", encoder).counts_as(EncoderCounts).epochs),
    }
    known = job.config.evaluate.known_items
    job.progress(0, 1, f"searching for {known:,} known items and scoring the test queries")
    gpu = job.config.compute.use_gpu
    work = _Evaluation(job.store.url, dict(job.step.inputs), encoder, job.attempt.output, facts, gpu)
    files = next(job.executor.map(work, [job.config.evaluate], gpus_each=1 if gpu and known else 0))
    job.progress(1, 1)
    report = Report.model_validate_json(job.store.read_bytes(f"{job.attempt.output}/{REPORT}"))
    counts = ReportCounts(
        protocol=report.protocol,
        queries=report.queries,
        ann_map=report.ann.map,
        reranked_map=report.reranked.map,
        gain_low=report.gain.map.low,
        gain_high=report.gain.map.high,
        served_map=report.served_figures.map,
        known_first=None if report.known_items is None else report.known_items.changed.served.first,
    )
    return Outcome(counts, files)
