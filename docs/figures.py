"""Write the README's table of figures from the reports in docs/reports, so that none is typed.

python docs/figures.py          rewrites the block between the markers
python docs/figures.py --check  fails where the block is not what the reports say

A report gets there by hand: copy ``report.json`` from the folder that `mrcg run` prints last.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mrcg.evaluation.report import Report

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
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


def main() -> None:
    """Rewrite or check the block."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = f"{head}{BEGIN}\n{table()}\n{END}{tail}"
    if "--check" in sys.argv[1:]:
        if wanted != text:
            sys.exit("README.md: the figures are not those of docs/reports; run python docs/figures.py")
        return
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
