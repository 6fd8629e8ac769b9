"""Seconds, peak memory and bytes of checkpoints of each stage of a run.

::

    python -m tests.bench.stages --store store --out stages.json -- run --source scans --recipe paper

What follows ``--`` is a command of `mrcg` without its store. Memory is the proportional set size (PSS) of all processes that
the command starts, its local Ray included: pages that several share count once. It is sampled, so short peaks may be missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrcg.errors import NotFoundError
from mrcg.stages.registry import STAGES
from mrcg.storage.store import Store

SECONDS = 1.0
#: Folders beside the output of an attempt that hold weights for a resumed training.
CHECKPOINTS = ("checkpoints", "best")


def processes_of(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        children.setdefault(int(after_name[1]), []).append(int(folder.name))
    found, pending = [], [root]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return found


def pss(pids: Iterable[int]) -> int:
    """Bytes of memory of some processes, shared pages divided among those who share them."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def bytes_in(folders: Iterable[Path]) -> int:
    """Bytes of the files of some folders."""
    total = 0
    for folder in folders:
        for file in folder.glob("*"):
            try:
                total += file.stat().st_size
            except FileNotFoundError:
                continue  # it has just been replaced
    return total


def watch(run: subprocess.Popen[bytes], root: Path) -> dict[str, dict[str, int]]:
    """Peak memory and bytes of checkpoints by kind, until the command ends; work between two stages counts for the next."""
    peaks: dict[str, dict[str, int]] = {}
    waiting = 0
    while run.poll() is None:
        memory = pss(processes_of(run.pid))
        kinds = [stage.kind for stage in STAGES if list((root / stage.kind / "_attempts").glob("*"))]
        waiting = max(waiting, memory)
        for kind in kinds:
            peak = peaks.setdefault(kind, {"memory": 0, "checkpoints": 0})
            peak["memory"], waiting = max(peak["memory"], waiting), 0
            attempts = list((root / kind / "_attempts").glob("*"))
            held = bytes_in(attempt / name for attempt in attempts for name in CHECKPOINTS)
            peak["checkpoints"] = max(peak["checkpoints"], held)
        time.sleep(SECONDS)
    return peaks


def seconds_of(store: Store, kind: str, since: float) -> float:
    """Seconds of the stages that made versions of a kind since a time."""
    total = 0.0
    for version in store.versions(kind):
        try:
            record = store.read_json(f"{kind}/{version}/run.json")
        except NotFoundError:
            continue
        if record["started"] >= since:
            total += record["seconds"]
    return total


def main() -> None:
    """Run the command, watch it and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="a folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("command", nargs="+", help="of mrcg, after --")
    chosen = parser.parse_args()
    store, started = Store(chosen.store), time.time()
    words = [str(Path(sys.executable).parent / "mrcg"), *chosen.command, "--store", chosen.store]
    run = subprocess.Popen(words)
    peaks = watch(run, Path(store.root))
    if run.returncode:
        sys.exit(f"mrcg ended with {run.returncode}")
    stages: dict[str, Any] = {
        kind: {**peak, "seconds": seconds_of(store, kind, started)} for kind, peak in peaks.items()
    }
    result = {"command": chosen.command, "seconds": time.time() - started, "kinds": stages}
    chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
