"""Count the flagged scans of a label audit for docs/figures.py, without their names.

    python docs/count_labels.py MANIFEST

MANIFEST is what ``mrcg audit labels --manifest`` wrote of a source with split folders.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).parent


def main(manifest: str) -> None:
    """Write docs/bench/labels.json."""
    with Path(manifest).open(newline="") as file:
        rows = list(csv.DictReader(file))
    flagged = [row for row in rows if row["flagged"] == "yes"]
    counts = {
        "scans": Counter(row["split"] for row in rows),
        "flagged": Counter(row["split"] for row in flagged),
        "pairs": Counter(f"{row['label']} → {row['suggested']}" for row in flagged),
    }
    (DOCS / "bench" / "labels.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
