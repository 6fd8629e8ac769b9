"""Write the tables of figures from what was measured, so that none is typed.

python docs/figures.py          rewrites the blocks between the markers
python docs/figures.py --check  fails where a block is not what was measured

A block stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``; its table comes from

- reports, summary: docs/reports and docs/bench/gains.json, taken from a store by docs/gather.py;
- tried: docs/reports/tried, the same of runs with another reranker, named by what is other;
- reproduction: docs/bench/reproduction.json, as ``mrcg reproduce --json`` prints it;
- learning, ingest: docs/bench, as ``python -m tests.bench.learning`` and ``… .ingest`` write them with ``--out``;
- serving, engines: docs/bench/serve.json, as ``python -m tests.bench.serve`` writes it (docs/serve_figures.py);
- index, steps, growth: the same of ``… .index`` and ``… .growth`` (docs/index_figures.py).
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import index_figures
import serve_figures

from mrcg.evaluation.paper_systems import Reproduction, reproduction_markdown
from mrcg.metrics.bootstrap import Gain, Interval
from mrcg.metrics.report import Report

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "corpus.md", DOCS / "results.md")
BLOCK = re.compile(r"<!-- figures: (\w+) -->\n.*?<!-- /figures -->", re.DOTALL)


def read_reports() -> list[tuple[int, Report]]:
    """Seed and report of each run, protocol by protocol, ``paper`` first."""
    found = []
    for path in (DOCS / "reports").glob("*.json"):
        found.append((int(path.stem.rsplit("-", 1)[1]), Report.model_validate_json(path.read_bytes())))
    return sorted(found, key=lambda one: (one[1].protocol != "paper", one[1].protocol, one[0]))


def reports_table() -> str:
    """One line for each run, 95 % intervals in brackets."""
    lines = [
        "| protocol | seed | queries | leaking | MAP, ANN order | MAP, reranked | gain, points | MAP (full), reranked "
        "| P@10, reranked |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for seed, report in read_reports():
        after = report.reranked
        cells = [
            f"`{report.protocol}`", str(seed), str(report.queries), str(report.leaking_queries),
            _with(report.ann.map, report.ann.intervals.map), _with(after.map, after.intervals.map),
            _gain(report.gain.map), _with(after.map_full, after.intervals.map_full),
            _with(after.precision_at_10, after.intervals.precision_at_10),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary_table() -> str:
    """One line for each protocol: means over its runs."""
    runs = read_reports()
    lines = [
        "| protocol | runs | queries | leaking | MAP, ANN order | MAP, reranked | gain, points | MAP (full), reranked "
        "| P@10, reranked |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    gains = json.loads((DOCS / "bench" / "gains.json").read_text())
    for protocol in dict.fromkeys(report.protocol for _, report in runs):
        mine = [report for _, report in runs if report.protocol == protocol]
        percent: Sequence[Callable[[Report], float]] = (
            lambda r: r.ann.map,
            lambda r: r.reranked.map,
            lambda r: r.reranked.map_full,
            lambda r: r.reranked.precision_at_10,
        )
        counts = (statistics.fmean(r.queries for r in mine), statistics.fmean(r.leaking_queries for r in mine))
        cells = [f"`{protocol}`", str(len(mine)), *(f"{count:.0f}" for count in counts)]
        cells += [f"{100 * statistics.fmean(figure(r) for r in mine):.2f}" for figure in percent]
        cells.insert(6, _gain(Gain(**{bound: gains[protocol][bound] for bound in Gain.model_fields})))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tried_table() -> str:
    """One line for each other way of reranking that was tried, with the validation MAP that the choice rests on."""
    first = {report.protocol: report for seed, report in read_reports() if seed == 1}
    tried = {
        path.stem: Report.model_validate_json(path.read_bytes()) for path in (DOCS / "reports" / "tried").glob("*")
    }
    lines = [
        "| reranker | validation MAP | MAP, ANN order | MAP, reranked | gain, points |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, report in [("as in the recipe", first["paper"]), *sorted(tried.items())]:
        chosen = report.reranker_training.epochs[report.reranker_training.best_epoch].validation_map
        cells = [name, f"{100 * (chosen or 0):.2f}", f"{100 * report.ann.map:.2f}", f"{100 * report.reranked.map:.2f}"]
        lines.append(f"| {' | '.join([*cells, _gain(report.gain.map)])} |")
    return "\n".join(lines)


def reproduction_table() -> str:
    """The paper's tables with ours beside them."""
    return reproduction_markdown(
        Reproduction.model_validate_json((DOCS / "bench" / "reproduction.json").read_bytes())
    ).rstrip()


def learning_table() -> str:
    """One line for each ratio of the benchmark of learning."""
    lines = ["| what | measured | against | ratio | at least |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in json.loads((DOCS / "bench" / "learning.json").read_text()):
        cells = [
            row["what"], f"{row['measured']:.1f} {row['unit']}", f"{row['against']:.1f}",
            f"{row['ratio']:.2f}", f"{row['bar']:g}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ingest_table() -> str:
    """One line for each source of the ingestion benchmark."""
    lines = [
        "| source | images | reading, images/s | pool, images/s | ratio | whole command, s | pool, s "
        "| peak memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in json.loads((DOCS / "bench" / "ingest.json").read_text()):
        ours, theirs = row["images"] / row["reading"], row["images"] / row["pool_reading"]
        cells = [
            row["source"], f"{row['images']:,}", f"{ours:,.0f}", f"{theirs:,.0f}", f"{ours / theirs:.2f}",
            f"{row['command']:.0f}", f"{row['pool']:.0f}", f"{row['peak_mb']:,.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "reports": reports_table,
    "summary": summary_table,
    "tried": tried_table,
    "reproduction": reproduction_table,
    "learning": learning_table,
    "ingest": ingest_table,
    "index": index_figures.index_table,
    "steps": index_figures.steps_table,
    "growth": index_figures.growth_table,
    "serving": serve_figures.serving_table,
    "engines": serve_figures.engines_table,
}


def _with(mean: float, bounds: Interval) -> str:
    return f"{100 * mean:.1f} [{100 * bounds.low:.1f}, {100 * bounds.high:.1f}]"


def _gain(gain: Gain) -> str:
    return f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def main() -> None:
    """Rewrite or check the blocks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        wanted = BLOCK.sub(lambda found: f"<!-- figures: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- /figures -->", text)
        if wanted == text:
            continue
        if "--check" in sys.argv[1:]:
            sys.exit(f"{page.name}: the figures are not those that were measured; run python docs/figures.py")
        page.write_text(wanted, encoding="utf-8")
    if "--check" in sys.argv[1:] and index_figures.stamp() not in (DOCS / "bench" / "index.svg").read_text():
        sys.exit("docs/bench/index.svg is not of docs/bench/index.json; run python docs/index_figures.py")


if __name__ == "__main__":
    main()
