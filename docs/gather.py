"""Take what was measured from a store, for docs/figures.py.

    python docs/gather.py STORE SET REPORT...

REPORT are versions of kind reports (``mrcg run`` prints them). Each gives docs/reports/SET-PROTOCOL-seed-N.json; the
runs of a protocol together give what reranking is worth over all of them, in docs/bench/gains.json. There a group of
scans is resampled with all its queries in all runs: the runs have other splits, but the same scans.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mrcg.metrics.bootstrap import paired
from mrcg.metrics.report import QUERIES, REPORT, SEED, Report
from mrcg.storage import schemas
from mrcg.storage.store import Store

DOCS = Path(__file__).parent


def main(url: str, name: str, *versions: str) -> None:
    """Write the files."""
    store, tables, reports = Store(url), {}, {}
    for version in versions:
        artefact = store.artefact("reports", version)
        report = Report.model_validate_json(artefact.read_bytes(REPORT))
        seed = store.manifest("splits", artefact.manifest.inputs["splits"]).settings["seed"]
        (DOCS / "reports" / f"{name}-{report.protocol}-seed-{seed}.json").write_bytes(artefact.read_bytes(REPORT))
        tables.setdefault(report.protocol, []).append(schemas.from_parquet(artefact.read_bytes(QUERIES)))
        reports[report.protocol] = report
    gains = {}
    for protocol, runs in tables.items():
        before, after = (
            np.concatenate([run[f"{order}_map"].to_numpy() for run in runs]) for order in ("ann", "reranked")
        )
        groups = [group for run in runs for group in run["group_id"].to_pylist()]
        gain = paired(before.astype(float), after.astype(float), groups, reports[protocol].bootstrap, SEED)
        gains[protocol] = {"runs": len(runs), "queries": len(groups), **gain.model_dump()}
    (DOCS / "bench" / "gains.json").write_text(json.dumps(gains, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
