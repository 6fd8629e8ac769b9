"""Tables of measurements on a GPU, for docs/figures.py, and the command that gathers a run.

    python docs/gpu_figures.py STORE REPORT

REPORT is a version of kind ``reports`` that was made on the machine with the card. The command writes
docs/bench/gpu-run.json: the seconds of each stage behind the report, and its figures. docs/bench/gpu.json is the output
of ``python -m tests.bench.gpu``, docs/bench/gpu-reproduction.json that of ``mrcg reproduce --json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mrcg.metrics.report import REPORT, Report
from mrcg.stages.registry import pipeline_stages
from mrcg.storage.store import Store

BENCH = Path(__file__).parent / "bench"


def gather(url: str, report: str) -> None:
    """Write the seconds of each stage behind a report, and its figures."""
    store, versions = Store(url), {"reports": report}
    for kind in ("reports", "graphs", "embeddings"):
        versions = {**store.manifest(kind, versions[kind]).inputs, **versions}
    seconds = {
        stage.name: store.read_json(f"{stage.kind}/{versions[stage.kind]}/run.json")["seconds"]
        for stage in pipeline_stages()
        if versions.get(stage.kind) in store.versions(stage.kind)
    }
    figures = Report.model_validate_json(store.artefact("reports", report).read_bytes(REPORT))
    assert figures.known_items is not None
    run = {
        "seconds": seconds,
        "map": {"by distance": figures.ann.map, "by score": figures.reranked.map},
        "gain": figures.gain.map.model_dump(),
        "unchanged": {
            "by distance": figures.known_items.unchanged.ann.first,
            "by score": figures.known_items.unchanged.score.first,
        },
        "changed": {
            "by distance": figures.known_items.changed.ann.first,
            "by score": figures.known_items.changed.score.first,
        },
    }
    (BENCH / "gpu-run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def rates_table() -> str:
    """Return a table with the images per second of each recipe, and the share of the card's peak."""
    measured = json.loads((BENCH / "gpu.json").read_text())
    lines = [f"| {measured['card']} | batch | images/s | share of the measured peak |", "| --- | ---: | ---: | ---: |"]
    for line in measured["lines"]:
        cells = [f"{line['recipe']}, {line['what']}", str(line["batch"]), f"{line['images_s']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} | {100 * line['share']:.1f} % |")
    return "\n".join(lines)


def run_table() -> str:
    """Return the seconds of each stage of a run."""
    run = json.loads((BENCH / "gpu-run.json").read_text())
    names, seconds = list(run["seconds"]), list(run["seconds"].values())
    lines = [
        f"| {' | '.join(['stage', *names, 'sum'])} |",
        f"| --- |{' ---: |' * (len(names) + 1)}",
        f"| seconds | {' | '.join(f'{value:.1f}' for value in [*seconds, sum(seconds)])} |",
    ]
    return "\n".join(lines)


def orders_table() -> str:
    """Return MAP and known items of both orders of that run."""
    run = json.loads((BENCH / "gpu-run.json").read_text())
    lines = ["| order | MAP | unchanged scans first | changed scans first |", "| --- | ---: | ---: | ---: |"]
    for order in ("by distance", "by score"):
        figures = [run[what][order] for what in ("map", "unchanged", "changed")]
        lines.append(f"| {order} | {' | '.join(f'{100 * figure:.1f} %' for figure in figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    gather(*sys.argv[1:])
