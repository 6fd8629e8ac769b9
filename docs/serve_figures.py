"""The tables of serving, from docs/bench/serve.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent / "bench"


def read_figures() -> dict[str, Any]:
    """What ``python -m tests.bench.serve`` wrote."""
    figures: dict[str, Any] = json.loads((BENCH / "serve.json").read_text())
    return figures


def serving_table() -> str:
    """The chain on an idle service, and all services with all numbers of clients."""
    figures = read_figures()
    chain, rows = figures["chain"], figures["services"]
    of = {(row["service"], row["clients"]): row for row in rows}
    over = chain["end_to_end_ms"] - chain["compute_ms"]
    lines = [
        f"Idle, one client: {chain['end_to_end_ms']:.1f} ms from end to end at the median, {chain['p99_ms']:.1f} ms at "
        f"the 99th percentile; the same stages in one process {chain['compute_ms']:.1f} ms; the chain costs "
        f"{over:.1f} ms.",
        "",
        "| clients | service | queries/s | of one by one | of batched | p50, ms | p99, ms | of one by one | failed |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: row["clients"]):
        one, batched = of["one by one", row["clients"]], of["batched", row["clients"]]
        cells = [
            str(row["clients"]), row["service"], f"{row['rate']:.1f}", f"{row['rate'] / one['rate']:.2f}",
            f"{row['rate'] / batched['rate']:.2f}", f"{row['p50_ms']:.0f}", f"{row['p99_ms']:.0f}",
            f"{row['p99_ms'] / one['p99_ms']:.2f}", str(row["failed"]),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def engines_table() -> str:
    """Engines of the encoder: how fast, and what their queries find."""
    figures = read_figures()["engines"]
    first = figures[0]
    lines = [
        "| engine of the queries | images/s | of torch | MAP, ANN order | points | MAP, reranked | points "
        "| torch's top 10 among the N nearest |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in figures:
        cells = [
            f"`{row['engine']}`", f"{row['rate']:.0f}", f"{row['rate'] / first['rate']:.1f}",
            f"{row['map'] * 100:.2f}", f"{(row['map'] - first['map']) * 100:+.2f}",
            f"{row['reranked_map'] * 100:.2f}", f"{(row['reranked_map'] - first['reranked_map']) * 100:+.2f}",
            f"{row['kept']:.4f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
