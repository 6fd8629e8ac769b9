"""The figures of a report as SVG, each for a light and a dark page (DESIGN §3).

Equal inputs give equal bytes: fixed salt for ids, no dates, letters drawn as paths. Colours are those of
Okabe and Ito, which the colour-blind tell apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mrcg.errors import require
from mrcg.evaluation.projection import Plane
from mrcg.metrics.calibration import Calibration, Reliability
from mrcg.metrics.report import Confusion, OutOfDistribution, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800",
)  # fmt: skip
CLASS_COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW)
MARKERS = "osD^vPX"
#: With more classes a matrix has no room for its numbers, nor a legend for its names.
MOST_NAMED = 14
LONGEST_NAME = 22


@dataclass(frozen=True)
class Theme:
    """Colours of a page that a figure stands on."""

    ink: str
    faint: str
    grid: str
    paper: str
    blue: str


LIGHT = Theme("#1b2733", "#5b6b78", "#dde4ea", "#ffffff", BLUE)
DARK = Theme("#e6edf3", "#9fb0bf", "#34414d", "#182129", "#4ba3dd")


@dataclass(frozen=True)
class Drawing:
    """One figure for both pages, and what it shows in words."""

    light: bytes
    dark: bytes
    says: str


@dataclass(frozen=True)
class MapPoints:
    """Scans on the embedding map: (n, 2) coordinates, class of each, True (n,) where it is of the test part."""

    points: Plane
    labels: Sequence[str]
    test: npt.NDArray[np.bool_]


Draw = Callable[["Figure", Theme], None]


def confusion_figure(confusion: Confusion) -> Drawing:
    """Class of the query against class of its first hit, ANN order and reranked, rows as shares."""
    tables = {"ANN order": confusion.ann, "reranked": confusion.reranked}
    found = [_short(one or "nothing found") for one in confusion.found]
    classes = [_short(one) for one in confusion.classes]
    named = max(len(found), len(classes)) <= MOST_NAMED

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (title, counts) in zip(axes, tables.items(), strict=True):
            table = np.array(counts)
            share = table / np.maximum(1, table.sum(axis=1, keepdims=True))
            ax.imshow(share, cmap=_ramp(theme), vmin=0.0, vmax=1.0, aspect="auto")
            ax.set_title(f"First hit, {title}")
            ax.set_xlabel("class of the first hit")
            ax.grid(visible=False)
            if named:
                ax.set_xticks(range(len(found)), found, rotation=35, ha="right", rotation_mode="anchor")
                ax.set_yticks(range(len(classes)), classes)
                _numbers(ax, table, share, theme)
        axes[0].set_ylabel("class of the query")

    side = 1.4 + 0.5 * min(len(classes), MOST_NAMED)
    return drawing(draw, (10.0, min(8.0, max(3.4, side))), "Class of each query against class of its first hit")


def _numbers(ax: Axes, table: npt.NDArray[np.int64], share: npt.NDArray[np.float64], theme: Theme) -> None:
    for i, j in np.argwhere(table > 0).tolist():
        ink = theme.ink if share[i, j] < 0.55 else "#ffffff"
        ax.text(j, i, f"{table[i, j]}", ha="center", va="center", color=ink, fontsize=9)


def reliability_figure(calibration: Calibration) -> Drawing:
    """Share of relevant hits against the score, raw and calibrated; below it how many hits have such scores."""

    def draw(figure: Figure, theme: Theme) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot((0, 1), (0, 1), color=theme.faint, linestyle=":", label="perfect")
        lines = [("scores as they are", calibration.raw, theme.blue, "o")]
        if calibration.calibrated is not None:
            lines.append(("calibrated on validation", calibration.calibrated, ORANGE, "s"))
        for place, (name, one, colour, marker) in enumerate(lines):
            label = f"{name}, error {100 * one.expected_error:.1f} %"
            x, y = [b.mean_score for b in one.bins], [b.relevant for b in one.bins]
            top.plot(x, y, color=colour, marker=marker, label=label)
            _counts(below, one, place, colour)
        top.set_title("How often a hit with such a score is relevant")
        top.set_ylabel("share of relevant hits")
        top.set_ylim(-0.02, 1.02)
        top.legend(loc="upper left")
        below.set_ylim(0.7, 2 * max([b.count for _, one, _, _ in lines for b in one.bins], default=1))
        _log(below, "{x:,.0f}")
        below.set_ylabel("hits")
        below.set_xlabel("score")
        below.set_xlim(-0.02, 1.02)

    return drawing(draw, (6.4, 5.4), "Reliability curve: share of relevant hits against their score")


def _counts(ax: Axes, one: Reliability, place: int, colour: str) -> None:
    width = 0.042
    ax.bar(
        [b.low + 0.008 + place * width for b in one.bins],
        [b.count for b in one.bins],
        width,
        align="edge",
        color=colour,
    )


def _log(ax: Axes, labels: str) -> None:
    """A logarithmic y axis with plain numbers."""
    ticker = require("matplotlib.ticker")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter(labels))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def nodes_figure(parts: dict[str, npt.NDArray[np.int64]], neighbours: int) -> Drawing:
    """How many of a graph's nodes have the query's class, for the graphs of each part (the paper's Fig. 8 and 9)."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = np.atleast_1d(figure.subplots(1, len(parts), sharey=True))
        edges = np.linspace(-0.5, neighbours + 0.5, min(neighbours + 1, 51) + 1).tolist()
        for ax, (name, counts), colour in zip(axes, parts.items(), (GREEN, theme.blue, PINK), strict=False):
            if len(counts):
                ax.hist(counts, bins=edges, weights=np.full(len(counts), 100 / len(counts)), color=colour)
            mean = float(counts.mean()) if len(counts) else 0.0
            ax.set_title(f"{name}: {len(counts)} graphs, {100 * mean / neighbours:.1f} % of nodes relevant")
            ax.set_xlabel(f"relevant nodes among {neighbours}")
        axes[0].set_ylim(50 / max(1, *map(len, parts.values())), 150)  # one graph is seen
        _log(axes[0], "{x:g}")  # few graphs are hard, and those are the ones to see
        axes[0].set_ylabel("% of the graphs (log)")

    return drawing(draw, (10.0, 3.6), "How many nodes of each query graph have the query's class")


def curves_figure(trainings: dict[str, Training]) -> Drawing:
    """Loss and validation MAP by epoch, one panel a model; the kept epoch is marked."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = np.atleast_1d(figure.subplots(1, len(trainings)))
        for ax, (name, training) in zip(axes, trainings.items(), strict=True):
            epochs = [one.epoch + 1 for one in training.epochs]
            marker = "o" if len(epochs) < 30 else None
            ax.plot(epochs, [one.loss for one in training.epochs], color=theme.blue, marker=marker, markersize=4)
            ax.set_title(f"Training of the {name}")
            ax.set_xlabel("epoch")
            ax.set_ylabel("loss", color=theme.blue)
            ax.xaxis.get_major_locator().set_params(integer=True)
            _validation(ax, training, marker, theme)

    return drawing(draw, (10.0 if len(trainings) > 1 else 5.6, 3.6), "Loss and validation MAP by epoch")


def _validation(ax: Axes, training: Training, marker: str | None, theme: Theme) -> None:
    known = [one for one in training.epochs if one.validation_map is not None]
    if not any(one.validation_map for one in known):  # no validation part measures 0 throughout
        return
    right = ax.twinx()
    values = [100 * (one.validation_map or 0.0) for one in known]
    right.plot([one.epoch + 1 for one in known], values, color=ORANGE, marker=marker, markersize=4, linestyle="--")
    right.set_ylabel("validation MAP, % (dashed)", color=ORANGE)
    right.grid(visible=False)
    if 0 <= training.best_epoch < len(training.epochs):
        ax.axvline(training.best_epoch + 1, color=theme.faint, linestyle=":")
        ax.annotate(
            "kept", (training.best_epoch + 1, 0.5), (-3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=theme.faint, fontsize=9, ha="right", va="center", rotation=90,
        )  # fmt: skip


def map_figure(points: MapPoints) -> Drawing:
    """The embedding map: colour is the class, dots the gallery, crosses the test queries."""
    classes = sorted(set(points.labels))
    labels = np.array(points.labels, dtype=object)

    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        for place, label in enumerate(classes):
            colour = (theme.blue, *CLASS_COLOURS[1:])[place % len(CLASS_COLOURS)]
            mine = labels == label
            seen, new = points.points[mine & ~points.test], points.points[mine & points.test]
            marker = MARKERS[(place // len(CLASS_COLOURS)) % len(MARKERS)]
            ax.scatter(
                seen[:, 0], seen[:, 1], 9, color=colour, marker=marker, linewidths=0, alpha=0.55, label=_short(label),
                rasterized=True,
            )  # fmt: skip
            ax.scatter(new[:, 0], new[:, 1], 22, color=colour, marker="x", linewidths=1.2, rasterized=True)
        ax.scatter([], [], 22, color=theme.ink, marker="x", linewidths=1.2, label="test query")
        ax.set_title(f"Map of {len(labels)} scans: near each other where the encoder finds them alike")
        ax.set_xticks([])
        ax.set_yticks([])
        if len(classes) <= MOST_NAMED:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8)

    return drawing(draw, (9.0, 6.0), "Embedding map (t-SNE): scans of the gallery and test queries, coloured by class")


def distance_figure(
    validation: npt.NDArray[np.float32], test: npt.NDArray[np.float32], facts: OutOfDistribution
) -> Drawing:
    """How far queries lie from their nearest hit, validation and test part, with the threshold."""

    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        both = np.concatenate([validation, test])
        edges = np.linspace(0.0, float(both.max()) if both.size and both.max() > 0 else 1.0, 51).tolist()
        for name, values, colour, style in (("validation", validation, ORANGE, "--"), ("test", test, theme.blue, "-")):
            if len(values):
                weights = np.full(len(values), 100 / len(values))
                ax.hist(
                    values, bins=edges, weights=weights, histtype="step", color=colour, linewidth=1.8, linestyle=style,
                    label=f"{name} queries",
                )  # fmt: skip
        if facts.threshold is not None:
            ax.axvline(facts.threshold, color=theme.faint, linestyle=":", label="flagged right of here")
        ax.set_title("How far a query lies from the gallery")
        ax.set_xlabel("squared distance to the nearest hit")
        ax.set_ylabel("% of the queries")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right")

    return drawing(draw, (6.4, 3.6), "Distance of queries to their nearest hit, with the out-of-distribution threshold")


def drawing(draw: Draw, inches: tuple[float, float], says: str) -> Drawing:
    """Draw a figure for both pages; ``says`` is what it shows in words."""
    return Drawing(_svg(draw, inches, LIGHT), _svg(draw, inches, DARK), says)


def _svg(draw: Draw, inches: tuple[float, float], theme: Theme) -> bytes:
    """Draw on a canvas of its own: pyplot's figures are global and never closed."""
    matplotlib, figures = require("matplotlib"), require("matplotlib.figure")
    canvases = require("matplotlib.backends.backend_svg")
    style = {
        "svg.hashsalt": "mrcg",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.ink,
        "figure.facecolor": theme.paper,
        "grid.color": theme.grid,
        "text.color": theme.ink,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "legend.frameon": False,
        "text.parse_math": False,  # a class may be named $x$
    }
    out = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=inches, layout="constrained")
        draw(figure, theme)
        canvases.FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _ramp(theme: Theme) -> object:
    return require("matplotlib.colors").LinearSegmentedColormap.from_list("share", [theme.paper, BLUE])


def _short(name: str) -> str:
    """A class name that fits beside an axis; glyphs that the font lacks would warn."""
    shown = "".join(
        letter if letter.isprintable() and (ord(letter) < 0x250 or 0x370 <= ord(letter) < 0x530) else "?"
        for letter in name
    )
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"
