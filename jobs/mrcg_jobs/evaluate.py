"""Evaluate: one Ray task, so that the driver holds neither model nor vectors."""

from __future__ import annotations

from typing import Any

import ray

from mrcg.config import EvaluateSettings
from mrcg.evaluation.report import REPORT, Report
from mrcg.store import Store
from mrcg_jobs.job import Job, Outcome, entries, write_output
from mrcg_jobs.runtime import own_errors


@ray.remote(num_cpus=1)
def _evaluate(
    store_url: str,
    inputs: dict[str, str],
    encoder: str,
    output: str,
    settings: EvaluateSettings,
    facts: dict[str, float],
) -> list[dict[str, Any]]:
    from mrcg.evaluation.evaluate import evaluate

    store = Store(store_url)
    artefacts = {kind: store.artefact(kind, version) for kind, version in inputs.items()}
    files = evaluate(artefacts, settings, facts, store.artefact("encoders", encoder))
    return [write_output(store, output, name, data) for name, data in files.items()]


def run(job: Job) -> Outcome:
    """Make the report."""
    embeddings, graphs = job.inputs["embeddings"].manifest, job.inputs["graphs"].manifest
    encoder = embeddings.inputs["encoders"]
    facts = {
        "recall": float(job.store.manifest("indexes", graphs.inputs["indexes"]).counts["recall_at_50"]),
        "epochs": float(job.store.manifest("encoders", encoder).counts["epochs"]),
    }
    job.progress(0, 1, "scoring the test queries")
    with own_errors():
        inputs, output = dict(job.step.inputs), job.attempt.output
        rows = ray.get(_evaluate.remote(job.store.url, inputs, encoder, output, job.config.evaluate, facts))
    job.progress(1, 1)
    report = Report.model_validate_json(job.store.read_bytes(f"{job.attempt.output}/{REPORT}"))
    counts = {
        "protocol": report.protocol,
        "queries": report.queries,
        "ann_map": report.ann.map,
        "reranked_map": report.reranked.map,
        "gain_low": report.gain.map.low,
        "gain_high": report.gain.map.high,
    }
    return Outcome(counts, entries(rows))
