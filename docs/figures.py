"""Write the tables of figures from the files with the measurements, so that no figure is typed by hand.

python docs/figures.py          rewrites the blocks between the markers
python docs/figures.py --check  fails if a block differs from the measurements

A block lies between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. Its table comes from:

- reports, summary (real scans), phantoms, phantoms_summary, likeness: docs/reports and docs/bench/gains.json, which
  docs/gather.py copies from a store;
- weights: docs/reports/weights, reports of runs on real scans with another weight of the appearance part than the
  recipe has, named ``<weight>-seed-<n>``, beside those of docs/reports;
- labels: docs/bench/labels.json, which docs/count_labels.py writes;
- tried: docs/reports/tried, reports of runs with another reranker, named by the settings that differ;
- reproduction, reproduction_paper: docs/bench/reproduction.json and reproduction-paper.json, the output of
  ``mrcg reproduce --json``;
- learning, ingest, appearance: docs/bench, the output of ``python -m tests.bench.learning``, ``… .ingest`` and
  ``… .appearance`` with ``--out``;
- edges, encoders, vectors, combined, grades, trunk: the output of ``… .edges``, ``… .encoders``, ``… .combined``,
  ``… .grades`` and ``… .trunk`` (docs/trial_figures.py);
- stages: stages-before.json and stages-after.json, the output of ``… .stages`` on two commits (docs/trial_figures.py);
- serving, engines: docs/bench/serve.json, the output of ``python -m tests.bench.serve`` (docs/serve_figures.py);
- gpu, gpu_run, gpu_orders, gpu_reproduction: measurements on a card (docs/gpu_figures.py);
- index, steps, updates: the output of ``… .index`` and ``… .updates`` (docs/index_figures.py).
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu_figures
import index_figures
import serve_figures
import trial_figures
from trial_figures import gain_text

from mrcg.config.loading import load_config
from mrcg.evaluation.paper_systems import Reproduction
from mrcg.evaluation.paper_tables import reproduction_markdown
from mrcg.metrics.bootstrap import Gain, Interval
from mrcg.metrics.report import Report

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "corpus.md", DOCS / "labels.md", DOCS / "results.md")
#: Sets of scans, as ``docs/gather.py`` names them.
REAL, PHANTOMS = "brain-tumor-mri", "phantoms"
BLOCK = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- /figures -->", re.DOTALL)


def read_reports(scans: str) -> list[tuple[int, Report]]:
    """Return seed and report of each run on a set of scans, ordered by protocol (``paper`` first), then by seed."""
    runs = []
    for path in (DOCS / "reports").glob(f"{scans}-*.json"):
        runs.append((int(path.stem.rsplit("-", 1)[1]), Report.model_validate_json(path.read_bytes())))
    return sorted(runs, key=lambda run: (run[1].protocol != "paper", run[1].protocol, run[0]))


def reports_table(scans: str) -> str:
    """Return a table with one row per run and 95 % intervals in brackets."""
    lines = [
        "| protocol | seed | queries | leaking | MAP, by distance | MAP, by score | MAP, served "
        "| gain of the served order | P@1, by distance | P@1, served | P@10, served | known items, by distance "
        "| by score | served | λ |",
        f"| --- |{' ---: |' * 14}",
    ]
    for seed, report in read_reports(scans):
        served, gain, known = report.served_figures, report.served_gain or report.gain, report.known_items
        cells = [
            f"`{report.protocol}`", str(seed), str(report.queries), str(report.leaking_queries),
            _with_interval(report.ann.map, report.ann.intervals.map),
            _with_interval(report.reranked.map, report.reranked.intervals.map),
            _with_interval(served.map, served.intervals.map), gain_text(gain.map),
            f"{100 * report.ann.precision_at_1:.1f}", f"{100 * served.precision_at_1:.1f}",
            _with_interval(served.precision_at_10, served.intervals.precision_at_10),
        ]  # fmt: skip
        changed = None if known is None else known.changed
        orders = (None, None, None) if changed is None else (changed.ann, changed.score, changed.served)
        cells += ["–" if order is None else f"{100 * order.first:.1f}" for order in orders]
        order = report.order.order
        cells.append(
            f"{order.distance_weight:g}" if order.name == "fused" else {"ann": "∞", "score": "by score"}[order.name]
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary_table(scans: str) -> str:
    """Return a table with one row per protocol: means over its runs."""
    runs = read_reports(scans)
    lines = [
        "| protocol | runs | queries | leaking | MAP, by distance | MAP, by score | MAP, served "
        "| gain of the order by score | gain of the served order | MAP (full), served | P@10, served |",
        f"| --- |{' ---: |' * 10}",
    ]
    gains = json.loads((DOCS / "bench" / "gains.json").read_text())
    for protocol in dict.fromkeys(report.protocol for _, report in runs):
        reports = [report for _, report in runs if report.protocol == protocol]
        percentages: Sequence[Callable[[Report], float]] = (
            lambda r: r.ann.map,
            lambda r: r.reranked.map,
            lambda r: r.served_figures.map,
            lambda r: r.served_figures.map_full,
            lambda r: r.served_figures.precision_at_10,
        )
        counts = (statistics.fmean(r.queries for r in reports), statistics.fmean(r.leaking_queries for r in reports))
        cells = [f"`{protocol}`", str(len(reports)), *(f"{count:.0f}" for count in counts)]
        cells += [f"{100 * statistics.fmean(figure(r) for r in reports):.2f}" for figure in percentages]
        cells[7:7] = [
            gain_text(Gain.model_validate(gains[f"{scans}-{protocol}"][order])) for order in ("reranked", "served")
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def likeness_table() -> str:
    """Return a table with the nDCG@10 of each order, one row per run on phantoms."""
    lines = [
        "| seed | queries with a lesion | by distance | by score | served | in random order | served, change |",
        f"| ---: |{' ---: |' * 6}",
    ]
    for seed, report in read_reports(PHANTOMS):
        likeness = report.graded_likeness
        assert likeness is not None, "phantoms of a manifest have lesions"
        orders = (likeness.ann, likeness.score, likeness.served, likeness.chance)
        cells = [str(seed), str(likeness.queries), *(_with_interval(order.mean, order.interval) for order in orders)]
        lines.append(f"| {' | '.join([*cells, gain_text(likeness.served_gain)])} |")
    return "\n".join(lines)


def weights_table() -> str:
    """Return a table of runs with the recipe's weight of the appearance part and with another, two rows per seed."""
    lines = [
        "| seed | weight | MAP, by distance | MAP, by score | MAP, served | P@1, by distance | P@1, served "
        "| known items, by distance | served |",
        f"| ---: |{' ---: |' * 8}",
    ]
    usual = load_config("mobilenet").embed.appearance.weight
    runs = {(seed, usual): report for seed, report in read_reports(REAL) if report.protocol == "paper"}
    for path in (DOCS / "reports" / "weights").glob("*.json"):
        weight, seed = path.stem.split("-seed-")
        runs[int(seed), float(weight)] = Report.model_validate_json(path.read_bytes())
    for (seed, weight), report in sorted(runs.items(), key=lambda run: run[0]):
        known, served = report.known_items, report.served_figures
        assert known is not None, "runs with an appearance part measured known items"
        figures = (
            report.ann.map, report.reranked.map, served.map, report.ann.precision_at_1, served.precision_at_1,
            known.changed.ann.first, known.changed.served.first,
        )  # fmt: skip
        cells = [str(seed), f"{weight:g}", *(f"{100 * figure:.2f}" for figure in figures[:3])]
        lines.append(f"| {' | '.join([*cells, *(f'{100 * figure:.1f}' for figure in figures[3:])])} |")
    return "\n".join(lines)


def labels_table() -> str:
    """Return the flagged scans of a label audit by folder of the source, and by label and suggested class."""
    counts = json.loads((DOCS / "bench" / "labels.json").read_text())
    lines = ["| folder | scans | flagged |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {total} | {counts['flagged'].get(name, 0)} |" for name, total in counts["scans"].items()]
    lines += ["", "| label → suggested | flagged |", "| --- | ---: |"]
    pairs = sorted(counts["pairs"].items(), key=lambda pair: (-pair[1], pair[0]))
    return "\n".join([*lines, *(f"| {pair} | {count} |" for pair, count in pairs)])


def tried_table() -> str:
    """Return a table with one row per reranker that was tried, with the validation MAP that decided the choice."""
    tried = {
        path.stem: Report.model_validate_json(path.read_bytes()) for path in (DOCS / "reports" / "tried").glob("*")
    }
    lines = [
        "| reranker | validation MAP | MAP, ANN order | MAP, reranked | gain, points |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, report in sorted(tried.items()):
        validation_map = report.reranker_training.epochs[report.reranker_training.best_epoch].validation_map
        cells = [
            name,
            f"{100 * (validation_map or 0):.2f}",
            f"{100 * report.ann.map:.2f}",
            f"{100 * report.reranked.map:.2f}",
        ]
        lines.append(f"| {' | '.join([*cells, gain_text(report.gain.map)])} |")
    return "\n".join(lines)


def reproduction_table(name: str) -> str:
    """Return the systems of the paper with the measured figures and the published ones."""
    return reproduction_markdown(Reproduction.model_validate_json((DOCS / "bench" / name).read_bytes())).rstrip()


def learning_table() -> str:
    """Return a table with one row per ratio of the training benchmark."""
    lines = ["| measurement | measured | reference | ratio | minimum |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in json.loads((DOCS / "bench" / "learning.json").read_text()):
        cells = [
            row["what"], f"{row['measured']:.1f} {row['unit']}", f"{row['against']:.1f}",
            f"{row['ratio']:.2f}", f"{row['bar']:g}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def appearance_table() -> str:
    """Return a table with one row per candidate of the appearance part."""
    lines = [
        "| beside the trained part | weight | MAP | P@1 | unchanged scans first | changed scans first "
        "| time per image |",
        f"| --- |{' ---: |' * 6}",
    ]
    for row in json.loads((DOCS / "bench" / "appearance.json").read_text()):
        shares = [f"{100 * row[name]:.1f}" for name in ("map", "precision_at_1", "unchanged", "changed")]
        cells = [row["what"], f"{row['weight']:g}", *shares, f"{row['cost']:.2f} x"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ingest_table() -> str:
    """Return a table with one row per source of the ingestion benchmark."""
    lines = [
        "| source | images | MRCG, images/s | pool, images/s | ratio | MRCG, whole command, s | pool, s "
        "| peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in json.loads((DOCS / "bench" / "ingest.json").read_text()):
        rate, pool_rate = row["images"] / row["reading"], row["images"] / row["pool_reading"]
        cells = [
            row["source"], f"{row['images']:,}", f"{rate:,.0f}", f"{pool_rate:,.0f}", f"{rate / pool_rate:.2f}",
            f"{row['command']:.0f}", f"{row['pool']:.0f}", f"{row['peak_mb']:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "reports": lambda: reports_table(REAL),
    "summary": lambda: summary_table(REAL),
    "phantoms": lambda: reports_table(PHANTOMS),
    "phantoms_summary": lambda: summary_table(PHANTOMS),
    "likeness": likeness_table,
    "weights": weights_table,
    "labels": labels_table,
    "tried": tried_table,
    "reproduction": lambda: reproduction_table("reproduction.json"),
    "reproduction_paper": lambda: reproduction_table("reproduction-paper.json"),
    "learning": learning_table,
    "ingest": ingest_table,
    "appearance": appearance_table,
    "edges": trial_figures.edges_table,
    "encoders": trial_figures.encoders_table,
    "vectors": trial_figures.vectors_table,
    "combined": trial_figures.combined_table,
    "grades": trial_figures.grades_table,
    "trunk": trial_figures.trunk_table,
    "stages": trial_figures.stages_table,
    "index": index_figures.index_table,
    "steps": index_figures.steps_table,
    "updates": index_figures.updates_table,
    "serving": serve_figures.serving_table,
    "engines": serve_figures.engines_table,
    "gpu": gpu_figures.rates_table,
    "gpu_run": gpu_figures.run_table,
    "gpu_orders": gpu_figures.orders_table,
    "gpu_reproduction": lambda: reproduction_table("gpu-reproduction.json"),
}


def _with_interval(mean: float, bounds: Interval) -> str:
    return f"{100 * mean:.1f} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"


def main() -> None:
    """Rewrite the blocks or, with ``--check``, check them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        updated = BLOCK.sub(lambda m: f"<!-- figures: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- /figures -->", text)
        if updated == text:
            continue
        if "--check" in sys.argv[1:]:
            sys.exit(f"{page.name}: the tables differ from the measurements: run python docs/figures.py")
        page.write_text(updated, encoding="utf-8")
    if "--check" in sys.argv[1:] and index_figures.stamp() not in (DOCS / "bench" / "index.svg").read_text():
        sys.exit("docs/bench/index.svg is older than docs/bench/index.json: run python docs/index_figures.py")


if __name__ == "__main__":
    main()
