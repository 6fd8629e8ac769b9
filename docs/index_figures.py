"""Tables and the plot of the index benchmarks, from docs/bench/index.json and docs/bench/updates.json.

python docs/index_figures.py    redraws docs/bench/index.svg

docs/figures.py writes the tables into docs/results.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrcg.index_build.sizing import IndexPlan, plan_index

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BENCH = Path(__file__).parent / "bench"
#: Limits: build time (at most) and search rate (at least) as ratios to plain FAISS; relative error of planned memory.
MAX_BUILD, MIN_SEARCH, MEMORY_ERROR = 1.15, 0.85, 0.2
#: Arguments of the planner: more memory than any of these indexes needs, and the recall of the comparison.
NODE_BYTES, RECALL = 2**40, 0.95
KINDS = ["flat", "ivf_flat", "ivf_sq", "opq_ivf_pq", "hnsw"]
#: Smallest share of missed neighbours on the axis of the plot: smaller shares, and 0, are shown here.
MIN_MISSED = 5e-4


def index_rows() -> list[dict[str, Any]]:
    """Return the rows of all contenders, ordered by gallery and kind."""
    rows: list[dict[str, Any]] = json.loads((BENCH / "index.json").read_text())
    return sorted(rows, key=lambda row: (*reversed(_size(row)), KINDS.index(row["kind"])))


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """Return the number of vectors in a row's gallery, and their dimensions."""
    count, dim = (int(number.replace(",", "")) for number in row["gallery"].split(" x "))
    return count, dim


def index_table() -> str:
    """Return a table with one row per contender; a ratio that misses its limit is bold."""
    lines = [
        "| gallery | kind | contender | build, s | ratio | queries/s, batches of 64 | ratio | queries/s, single "
        "| recall@50 | nprobe or ef_search | build, MB | ÷ plan | serving, MB | ÷ plan |",
        "| --- | --- | --- " + "| ---: " * 11 + "|",
    ]
    for row in index_rows():
        build, search, plan = row["build_ratio"], row["search_ratio"], _plan(row)
        cells = [
            row["gallery"], f"`{row['kind']}`", _label(row["contender"]),
            f"{row['build_seconds']:.2f}", _ratio(build, build is not None and build > MAX_BUILD),
            f"{row['qps_64']:,.0f}", _ratio(search, search is not None and search < MIN_SEARCH),
            f"{row['qps_1']:,.0f}", f"{row['recall']:.3f}", str(row["effort"] or ""),
            # autofaiss builds in a process of another environment, whose memory is not measured.
            "" if row["contender"] == "autofaiss" else f"{row['build_bytes'] / 1e6:,.0f}",
            "" if plan is None else _of_plan(row["build_bytes"], plan.build_bytes),
            f"{row['serve_bytes'] / 1e6:,.0f}", "" if plan is None else _of_plan(row["serve_bytes"], plan.node_bytes),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_table() -> str:
    """Return a table with the time of each step of MRCG's builds."""
    lines = [
        "| gallery | kind | shards | plan, s | train, s | build parts, s | measure recall, s | plain FAISS, total, s |",
        "| --- | --- " + "| ---: " * 6 + "|",
    ]
    plain = {(row["gallery"], row["kind"]): row for row in index_rows() if row["contender"] == "plain FAISS"}
    for row in index_rows():
        if steps := row["steps"]:
            shards = row["contender"].split()[1]
            seconds = [f"{steps[name]:.2f}" for name in ("plan", "train", "fill", "recall")]
            total = plain[row["gallery"], row["kind"]]["build_seconds"]
            lines.append(f"| {row['gallery']} | `{row['kind']}` | {shards} | {' | '.join(seconds)} | {total:.2f} |")
    return "\n".join(lines)


def updates_table() -> str:
    """Return a table with one row per size of gallery."""
    lines = [
        "| scans | index | build, s | its index, s | add 1 %, s | share of build | its index, s | share of index build "
        "| search, queries/s | promote, ms | erase a patient, s |",
        "| " + "---: | --- | " + "---: | " * 9,
    ]
    for row in json.loads((BENCH / "updates.json").read_text()):
        cells = [
            f"{row['count']:,}", f"`{row['kind']}`", f"{row['build']:.2f}", f"{row['build_index']:.2f}",
            f"{row['reindex']:.2f}", f"{100 * row['reindex'] / row['build']:.1f} %",
            f"{row['reindex_index']:.2f}", f"{100 * row['reindex_index'] / row['build_index']:.1f} %",
            f"{row['search_qps']:,.0f}", f"{1000 * row['promote']:.1f}", f"{row['erase']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.rstrip() for line in lines)


def _label(contender: str) -> str:
    """Return the name of a contender in the table."""
    return contender.replace("ours", "MRCG")


def _ratio(value: float | None, missed: bool) -> str:
    if value is None:
        return ""
    return f"**{value:.2f}**" if missed else f"{value:.2f}"


def _of_plan(used: int, planned: int) -> str:
    return _ratio(used / planned, not 1 - MEMORY_ERROR <= used / planned <= 1 + MEMORY_ERROR)


def _plan(row: dict[str, Any]) -> IndexPlan | None:
    """Return the plan for an index of MRCG on a node with enough memory; None for other contenders."""
    if not row["contender"].startswith("ours"):
        return None
    return plan_index(*_size(row), NODE_BYTES, RECALL, row["kind"], int(row["contender"].split()[1]))


def stamp() -> str:
    """Return the hash of index.json, which its drawing contains."""
    return hashlib.sha256((BENCH / "index.json").read_bytes()).hexdigest()


def draw() -> bytes:
    """Draw recall against throughput, one panel per gallery."""
    from mrcg.evaluation.figures import drawing

    rows = index_rows()
    galleries = list(dict.fromkeys(row["gallery"] for row in rows))

    def panels(figure: Figure, theme: object) -> None:
        all_axes = figure.subplots(1, len(galleries), squeeze=False)[0]
        for axes, gallery in zip(all_axes, galleries, strict=True):
            _panel(axes, gallery, [row for row in rows if row["gallery"] == gallery])
        all_axes[0].set_ylabel("queries/s, in batches of 64, two cores")
        legend: dict[str, Any] = {}
        for axes in all_axes:
            legend = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)) | legend
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=5, fontsize=8)

    svg = drawing(panels, (11.0, 5.0), "").light
    return svg.replace(b"</svg>", f"<!-- of index.json {stamp()} -->\n</svg>".encode())


def _panel(axes: Axes, gallery: str, rows: Sequence[dict[str, Any]]) -> None:
    from mrcg.evaluation.figures import CLASS_COLOURS, MARKERS

    others = ["hnswlib", "USearch", "LanceDB", "autofaiss"]
    for row in rows:
        if row["contender"].startswith("ours") and row["contender"] != "ours, 1 shard":
            continue
        if row["contender"].endswith("SuperKMeans"):
            continue  # it differs only in how it is built
        is_mrcg, is_plain = row["contender"].startswith("ours"), row["contender"].startswith("plain FAISS")
        exact = row["contender"].endswith("exact")
        axes.plot(
            [max(1 - point[1], MIN_MISSED) for point in row["curve"]],
            [point[2] for point in row["curve"]],
            color=CLASS_COLOURS[KINDS.index(row["kind"])] if is_mrcg or is_plain else "#808a93",
            linestyle="-" if is_mrcg else "-." if exact else "--" if is_plain else ":",
            marker="o"
            if is_mrcg
            else "+"
            if exact
            else "x"
            if is_plain
            else MARKERS[1 + others.index(row["contender"])],
            markersize=4,
            label=f"{row['kind']}, {'MRCG' if is_mrcg else row['contender']}"
            if is_mrcg or is_plain
            else row["contender"],
        )
    axes.set_title(gallery)
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.set_xlim(0.3, MIN_MISSED / 1.5)
    missed = [0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001]
    axes.set_xticks([*missed, MIN_MISSED], [*(f"{1 - share:g}" for share in missed), "1"], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("recall@50")


if __name__ == "__main__":
    (BENCH / "index.svg").write_bytes(draw())
