"""Write the tables of figures from what was measured, so that none is typed.

python docs/figures.py          rewrites the blocks between the markers
python docs/figures.py --check  fails where a block is not what was measured

README.md: docs/reports; one gets there by hand, ``report.json`` from the folder that `mrcg run` prints last.
docs/corpus.md: docs/bench/ingest.json, as ``python -m tests.bench.ingest --out docs/bench/ingest.json`` writes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mrcg.evaluation.report import Report

DOCS = Path(__file__).parent
README, CORPUS = DOCS.parent / "README.md", DOCS / "corpus.md"
BEGIN, END = "<!-- figures: docs/figures.py -->", "<!-- /figures -->"


def table() -> str:
    """One line for each report: protocol by protocol, untrained first."""
    reports = [Report.model_validate_json(path.read_bytes()) for path in (DOCS / "reports").glob("*.json")]
    reports.sort(key=lambda r: (r.protocol != "paper", r.protocol, r.encoder_epochs))
    lines = [
        "| protocol | encoder | queries | leaking | MAP, ANN order | MAP, reranked | MAP (full), reranked "
        "| P@10, reranked |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for report in reports:
        encoder = f"{report.encoder_epochs} epochs" if report.encoder_epochs else "untrained"
        figures = (report.ann.map, report.reranked.map, report.reranked.map_full, report.reranked.precision_at_10)
        cells = " | ".join(f"{100 * figure:.1f}" for figure in figures)
        lines.append(f"| `{report.protocol}` | {encoder} | {report.queries} | {report.leaking_queries} | {cells} |")
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


def main() -> None:
    """Rewrite or check the blocks."""
    for page, block in ((README, table()), (CORPUS, ingest_table())):
        text = page.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        tail = rest.split(END)[1]
        wanted = f"{head}{BEGIN}\n{block}\n{END}{tail}"
        if wanted == text:
            continue
        if "--check" in sys.argv[1:]:
            sys.exit(f"{page.name}: the figures are not those that were measured; run python docs/figures.py")
        page.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
