"""Copy reports from a store for docs/figures.py.

    python docs/gather.py STORE SET REPORT...

Each REPORT is a version of kind ``reports`` (``mrcg run`` prints it) and becomes
docs/reports/<set>-<protocol>-seed-<n>.json.
docs/bench/gains.json gets the gains of the order by score and of the served order over the ANN order, over all runs
of each protocol of the set; those of other protocols and sets stay. A group of scans is resampled with all its queries
in all runs, because the runs have different splits but the same scans.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mrcg.metrics.bootstrap import paired
from mrcg.metrics.report import QUERIES, REPORT, SEED, Report
from mrcg.storage import schemas
from mrcg.storage.store import Store

DOCS = Path(__file__).parent


def main(url: str, name: str, *versions: str) -> None:
    """Copy the reports and write the gains."""
    store, tables, reports = Store(url), {}, {}
    for version in versions:
        artefact = store.artefact("reports", version)
        report = Report.model_validate_json(artefact.read_bytes(REPORT))
        seed = store.manifest("splits", artefact.manifest.inputs["splits"]).settings["seed"]
        (DOCS / "reports" / f"{name}-{report.protocol}-seed-{seed}.json").write_bytes(artefact.read_bytes(REPORT))
        tables.setdefault(report.protocol, []).append(schemas.from_parquet(artefact.read_bytes(QUERIES)))
        reports[report.protocol] = report
    path = DOCS / "bench" / "gains.json"
    gains = json.loads(path.read_text())
    for protocol, runs in tables.items():
        groups = [group for run in runs for group in run["group_id"].to_pylist()]

        def of(order: str, runs: list[pa.Table] = runs) -> npt.NDArray[np.float64]:
            values: npt.NDArray[np.float64] = np.concatenate([run[f"{order}_map"].to_numpy() for run in runs]).astype(
                float
            )
            return values

        gained = {"runs": len(runs), "queries": len(groups)}
        for order in ("reranked", "served"):
            gain = paired(of("ann"), of(order), groups, reports[protocol].bootstrap, SEED)
            gained[order] = gain.model_dump()
        gains[f"{name}-{protocol}"] = gained
    path.write_text(json.dumps(gains, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
