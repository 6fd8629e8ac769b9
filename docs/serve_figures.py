"""Tables of the serving benchmark, from docs/bench/serve.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent / "bench"
#: Names of the services in the table, by their names in the file.
LABELS = {"ours": "MRCG", "one by one": "one by one", "batched": "batched"}


def read_figures() -> dict[str, Any]:
    """Return the figures that ``python -m tests.bench.serve`` wrote."""
    figures: dict[str, Any] = json.loads((BENCH / "serve.json").read_text())
    return figures


def serving_table() -> str:
    """Return the figures of an idle service, and a table of all services for each number of clients."""
    figures = read_figures()
    chain, rows = figures["chain"], figures["services"]
    row_of = {(row["service"], row["clients"]): row for row in rows}
    overhead_ms = chain["end_to_end_ms"] - chain["compute_ms"]
    lines = [
        f"Idle service, one client: median {chain['end_to_end_ms']:.1f} ms end to end, 99th percentile "
        f"{chain['p99_ms']:.1f} ms. The same stages in one process: {chain['compute_ms']:.1f} ms. Overhead of the "
        f"service: {overhead_ms:.1f} ms.",
        "",
        "| clients | service | queries/s | ÷ one by one | ÷ batched | p50, ms | p99, ms | p99 ÷ one by one | failed |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: row["clients"]):
        single, batched = row_of["one by one", row["clients"]], row_of["batched", row["clients"]]
        cells = [
            str(row["clients"]), LABELS[row["service"]], f"{row['rate']:.1f}", f"{row['rate'] / single['rate']:.2f}",
            f"{row['rate'] / batched['rate']:.2f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}",
            f"{row['p99_ms'] / single['p99_ms']:.2f}", str(row["failed"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def engines_table() -> str:
    """Return a table of the encoder's engines: speed, and quality of the results for queries embedded with them."""
    figures = read_figures()["engines"]
    torch = figures[0]
    lines = [
        "| engine for queries | images/s | ÷ torch | MAP, ANN order | difference, points "
        "| MAP, reranked | difference, points | torch's top 10 among the N nearest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in figures:
        cells = [
            f"`{row['engine']}`", f"{row['rate']:.0f}", f"{row['rate'] / torch['rate']:.1f}",
            f"{row['map'] * 100:.2f}", f"{(row['map'] - torch['map']) * 100:+.2f}",
            f"{row['reranked_map'] * 100:.2f}", f"{(row['reranked_map'] - torch['reranked_map']) * 100:+.2f}",
            f"{row['kept']:.4f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
