"""Tables of what was tried beyond the recipes, one row for each way and seed (docs/figures.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrcg.metrics.bootstrap import Gain
from mrcg.stages.registry import STAGES

BENCH = Path(__file__).parent / "bench"
Row = Mapping[str, Any]


def edges_table() -> str:
    """Return a table with one row per way of making edges and seed, first those tried on one seed alone."""
    header = [
        "edges", "seed", "validation, by score: MAP", "gain over the set model", "test, by score: MAP", "without edges",
        "of another query", "between other nodes", "gain", "test, fused: MAP", "without edges", "of another query",
        "between other nodes", "gain", "P@10",
    ]  # fmt: skip
    lines = []
    for row in _read("edges")["rows"]:
        cells = [row["what"], str(row["seed"]), _percent(row["validation_score_edges"])]
        cells.append(_gain(row, "validation_score_gain"))
        for order in ("score", "fused"):
            cells += [_percent(row[f"test_{order}_{name}"]) for name in ("edges", "without", "shuffled", "permuted")]
            cells.append(_gain(row, f"test_{order}_gain"))
        lines.append([*cells, _percent(row["test_fused_precision_at_10"])])
    return _table(header, lines)


#: Forms of the vectors of a training whose figures stand in the table of trainings.
SHORT, WHOLE = "as trained", "mirrored, whitened, appearance 0.5"


def encoders_table() -> str:
    """Return a table with one row per way of training an encoder and seed; gains are over the recipe in this form."""
    header = ["training", "seed", "minutes"]
    header += [f"{form}: {name}" for form in (SHORT, WHOLE) for name in FIGURES]
    rows, lines = _read("encoders"), []
    for row in rows:
        if row["vectors"] == SHORT:
            whole = next(r for r in rows if (r["way"], r["report"], r["vectors"]) == (row["way"], row["report"], WHOLE))
            cells = [row["what"], str(row["seed"]), f"{row['seconds'] / 60:.0f}"]
            lines.append([*cells, *_figures(row, "gain"), *_figures(whole, "gain")])
    return _table(header, lines)


def vectors_table() -> str:
    """Return a table with one row per form of the recipe's vectors and seed; gains are over the recipe's own form."""
    rows = [row for row in _read("encoders") if row["way"] == "recipe"]
    lines = [[row["vectors"], str(row["numbers"]), str(row["seed"]), *_figures(row, "gain_of_form")] for row in rows]
    return _table(["vectors", "numbers", "seed", *FIGURES], lines)


def combined_table() -> str:
    """Return a table with one row per encoder or pair of encoders and seed; gains are over the first encoder."""
    lines = [[row["what"], str(row["numbers"]), str(row["seed"]), *_figures(row, "gain")] for row in _read("combined")]
    return _table(["encoders, whitened", "numbers", "seed", *FIGURES], lines)


def grades_table() -> str:
    """Return a table with one row per way of training a reranker and seed."""
    orders = {"score": "by score", "fused": "fused"}
    header = ["reranker", "seed", "changed scans first, by distance"]
    header += [f"{name}: {what}" for name in orders.values() for what in FIGURES]
    lines = []
    for row in _read("grades"):
        cells = [row["what"], str(row["seed"]), _percent(row["known_distance"])]
        for order in orders:
            cells += [
                _gain(row, f"validation_{order}_gain"),
                _percent(row[f"test_{order}_map"]),
            ]
            cells += [
                _gain(row, f"test_{order}_gain"),
                _percent(row[f"test_{order}_precision_at_10"]),
            ]
            cells += [_percent(row[f"known_{order}"]), _gain(row, f"known_{order}_gain")]
        lines.append(cells)
    return _table(header, lines)


def trunk_table() -> str:
    """Return a table with one row per way of running VGG16's trunk on a CPU."""
    rows = _read("trunk")["rows"]
    lines = [
        [
            row["what"],
            f"{row['images_per_second']:.1f}",
            f"{row['images_per_second'] / rows[0]['images_per_second']:.2f}",
            f"{row['largest_error']:.1e}",
        ]
        for row in rows
    ]
    return _table(["trunk of VGG16", "images/s", "ratio", "largest error, of the largest feature"], lines)


def stages_table() -> str:
    """Return a table with one row per stage: its cost before and after features and checkpoints were changed."""
    before, after = (_read(f"stages-{when}")["kinds"] for when in ("before", "after"))
    header = ["stage", *(f"{what}, {when}" for what in COSTS for when in ("before", "after"))]
    lines = []
    for stage in STAGES:
        pair = [kinds.get(stage.kind) for kinds in (before, after)]
        if any(pair):
            cells = [
                "–" if one is None else f"{one[name] / unit:{form}}"
                for name, unit, form in COSTS.values()
                for one in pair
            ]
            lines.append([stage.name, *cells])
    return _table(header, lines)


#: Columns of ``stages_table``: name in the file, unit, form.
COSTS = {
    "seconds": ("seconds", 1, ".0f"),
    "peak memory, GB": ("memory", 1e9, ".1f"),
    "checkpoints, GB": ("checkpoints", 1e9, ".2f"),
}


def _read(name: str) -> Any:
    return json.loads((BENCH / f"{name}.json").read_text())


#: What the cells of ``_figures`` are.
FIGURES = ("validation: gain", "test: MAP", "gain", "P@10", "changed scans first", "gain")


def _figures(row: Row, gain: str) -> list[str]:
    return [
        _gain(row, f"validation_{gain}"),
        _percent(row["test_map"]),
        _gain(row, f"test_{gain}"),
        _percent(row["test_precision_at_10"]),
        _percent(row["changed_first"]),
        _gain(row, f"changed_{gain}"),
    ]


def _table(header: list[str], lines: list[list[str]]) -> str:
    rule = f"| --- |{' ---: |' * (len(header) - 1)}"
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def gain_text(gain: Gain) -> str:
    """Return a gain in points with its interval."""
    return f"{100 * gain.mean:+.2f} [{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"


def _gain(row: Row, name: str) -> str:
    return gain_text(Gain.model_validate(row[name]))
