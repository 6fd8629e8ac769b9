"""Tables and the plot of what the index costs, from docs/bench/index.json and docs/bench/growth.json.

python docs/index_figures.py    draws docs/bench/index.svg anew

The tables are written into docs/results.md by docs/figures.py.
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
#: What a build may take of plain FAISS's time, a search must reach of its rate, and memory may be off the plan.
BUILD, SEARCH, MEMORY = 1.15, 0.85, 0.2
#: What the planner was asked for: memory that never lacks, and the recall of the comparison.
ROOM, RECALL = 2**40, 0.95
KINDS = ["flat", "ivf_flat", "ivf_sq", "opq_ivf_pq", "hnsw"]
#: Where the plot shows what misses no neighbour, or fewer than this.
ALL = 5e-4


def index_rows() -> list[dict[str, Any]]:
    """One for each contender, by gallery and kind."""
    rows: list[dict[str, Any]] = json.loads((BENCH / "index.json").read_text())
    return sorted(rows, key=lambda row: (*reversed(_size(row)), KINDS.index(row["kind"])))


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """Vectors of a row's gallery, and their dimensions."""
    count, dim = (int(number.replace(",", "")) for number in row["gallery"].split(" x "))
    return count, dim


def index_table() -> str:
    """One line for each of them; a ratio that misses its bar is bold."""
    lines = [
        "| gallery | kind | who | build, s | ratio | queries/s in 64 | ratio | alone | recall@50 | effort "
        "| build, MB | of plan | serving, MB | of plan |",
        "| --- | --- | --- " + "| ---: " * 11 + "|",
    ]
    for row in index_rows():
        build, search, plan = row["build_ratio"], row["search_ratio"], _plan(row)
        cells = [
            row["gallery"], f"`{row['kind']}`", row["contender"],
            f"{row['build_seconds']:.2f}", _ratio(build, build is not None and build > BUILD),
            f"{row['qps_64']:,.0f}", _ratio(search, search is not None and search < SEARCH),
            f"{row['qps_1']:,.0f}", f"{row['recall']:.3f}", str(row["effort"] or ""),
            # autofaiss builds in another environment's process, which nobody watches.
            "" if row["contender"] == "autofaiss" else f"{row['build_bytes'] / 1e6:,.0f}",
            "" if plan is None else _of_plan(row["build_bytes"], plan.build_bytes),
            f"{row['serve_bytes'] / 1e6:,.0f}", "" if plan is None else _of_plan(row["serve_bytes"], plan.node_bytes),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def steps_table() -> str:
    """Where the time of our builds goes."""
    lines = [
        "| gallery | kind | shards | drawing up, s | training | filling | recall | plain FAISS, all |",
        "| --- | --- " + "| ---: " * 6 + "|",
    ]
    plain = {(row["gallery"], row["kind"]): row for row in index_rows() if row["contender"] == "plain FAISS"}
    for row in index_rows():
        if steps := row["steps"]:
            shards = row["contender"].split()[1]
            seconds = [f"{steps[name]:.2f}" for name in ("plan", "train", "fill", "recall")]
            against = plain[row["gallery"], row["kind"]]["build_seconds"]
            lines.append(f"| {row['gallery']} | `{row['kind']}` | {shards} | {' | '.join(seconds)} | {against:.2f} |")
    return "\n".join(lines)


def growth_table() -> str:
    """One line for each size of gallery."""
    lines = [
        "| scans | index | build, s | index alone | 1 % more, s | of a build | index alone | of its build "
        "| search, queries/s | promote, ms | erase a patient, s |",
        "| " + "---: | --- | " + "---: | " * 9,
    ]
    for row in json.loads((BENCH / "growth.json").read_text()):
        cells = [
            f"{row['count']:,}", f"`{row['kind']}`", f"{row['build']:.2f}", f"{row['build_index']:.2f}",
            f"{row['reindex']:.2f}", f"{100 * row['reindex'] / row['build']:.1f} %",
            f"{row['reindex_index']:.2f}", f"{100 * row['reindex_index'] / row['build_index']:.1f} %",
            f"{row['search_qps']:,.0f}", f"{1000 * row['promote']:.1f}", f"{row['erase']:.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(line.rstrip() for line in lines)


def _ratio(value: float | None, missed: bool) -> str:
    if value is None:
        return ""
    return f"**{value:.2f}**" if missed else f"{value:.2f}"


def _of_plan(held: int, planned: int) -> str:
    return _ratio(held / planned, not 1 - MEMORY <= held / planned <= 1 + MEMORY)


def _plan(row: dict[str, Any]) -> IndexPlan | None:
    """What the planner says of one of ours, on a machine that holds it."""
    if not row["contender"].startswith("ours"):
        return None
    return plan_index(*_size(row), ROOM, RECALL, row["kind"], int(row["contender"].split()[1]))


def stamp() -> str:
    """What a drawing of today's figures carries."""
    return hashlib.sha256((BENCH / "index.json").read_bytes()).hexdigest()


def draw() -> bytes:
    """Recall against throughput: a panel for each gallery."""
    from mrcg.evaluation.figures import drawing

    rows = index_rows()
    galleries = list(dict.fromkeys(row["gallery"] for row in rows))

    def panels(figure: Figure, theme: object) -> None:
        places = figure.subplots(1, len(galleries), squeeze=False)[0]
        for place, gallery in zip(places, galleries, strict=True):
            _panel(place, gallery, [row for row in rows if row["gallery"] == gallery])
        places[0].set_ylabel("queries/s, in batches of 64, two cores")
        named: dict[str, Any] = {}
        for place in places:
            named = dict(zip(*reversed(place.get_legend_handles_labels()), strict=True)) | named
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=5, fontsize=8)

    svg = drawing(panels, (11.0, 5.0), "").light
    return svg.replace(b"</svg>", f"<!-- of index.json {stamp()} -->\n</svg>".encode())


def _panel(place: Axes, gallery: str, rows: Sequence[dict[str, Any]]) -> None:
    from mrcg.evaluation.figures import CLASS_COLOURS, MARKERS

    others = ["hnswlib", "USearch", "LanceDB", "autofaiss"]
    for row in rows:
        if row["contender"].startswith("ours") and row["contender"] != "ours, 1 shard":
            continue
        if row["contender"].endswith("SuperKMeans"):
            continue  # it differs in how it is built alone
        own, plain = row["contender"].startswith("ours"), row["contender"].startswith("plain FAISS")
        exact = row["contender"].endswith("exact")
        place.plot(
            [max(1 - point[1], ALL) for point in row["curve"]],
            [point[2] for point in row["curve"]],
            color=CLASS_COLOURS[KINDS.index(row["kind"])] if own or plain else "#808a93",
            linestyle="-" if own else "-." if exact else "--" if plain else ":",
            marker="o" if own else "+" if exact else "x" if plain else MARKERS[1 + others.index(row["contender"])],
            markersize=4,
            label=f"{row['kind']}, {'ours' if own else row['contender']}" if own or plain else row["contender"],
        )
    place.set_title(gallery)
    place.set_yscale("log")
    place.set_xscale("log")
    place.set_xlim(0.3, ALL / 1.5)
    missed = [0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001]
    place.set_xticks([*missed, ALL], [*(f"{1 - one:g}" for one in missed), "1"], fontsize=8)
    place.set_xticks([], minor=True)
    place.set_xlabel("recall@50")


if __name__ == "__main__":
    (BENCH / "index.svg").write_bytes(draw())
