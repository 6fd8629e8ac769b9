"""Draw the figures of a report as SVG, each for a light and a dark page.

Equal inputs give equal bytes: ids use a fixed salt, there are no dates, and text is drawn as paths. The colours are
the colour-blind-safe palette of Okabe and Ito.
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
#: Maximum number of classes that get tick labels, cell numbers and legend entries: more do not fit.
MAX_LABELLED_CLASSES = 14
MAX_NAME_LENGTH = 22


@dataclass(frozen=True)
class Theme:
    """Colours of the page that shows a figure."""

    ink: str
    muted: str
    grid: str
    paper: str
    blue: str


LIGHT = Theme("#1b2733", "#5b6b78", "#dde4ea", "#ffffff", BLUE)
DARK = Theme("#e6edf3", "#9fb0bf", "#34414d", "#182129", "#4ba3dd")


@dataclass(frozen=True)
class Drawing:
    """One figure for both pages, and its description in words."""

    light: bytes
    dark: bytes
    description: str


@dataclass(frozen=True)
class MapPoints:
    """Scans on the embedding map: (n, 2) coordinates, class of each, and (n,) whether it is a test query."""

    points: Plane
    labels: Sequence[str]
    test: npt.NDArray[np.bool_]


Draw = Callable[["Figure", Theme], None]


def confusion_figure(confusion: Confusion) -> Drawing:
    """Draw the confusion matrices of both orders; the colour is the share of the row, the number counts queries."""
    tables = {"by distance": confusion.ann, "as served": confusion.reranked}
    hit_classes = [_short(name or "no hit or label") for name in confusion.found]
    classes = [_short(name) for name in confusion.classes]
    labelled = max(len(hit_classes), len(classes)) <= MAX_LABELLED_CLASSES

    def draw(figure: Figure, theme: Theme) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, (title, counts) in zip(axes, tables.items(), strict=True):
            table = np.array(counts)
            share = table / np.maximum(1, table.sum(axis=1, keepdims=True))
            ax.imshow(share, cmap=_ramp(theme), vmin=0.0, vmax=1.0, aspect="auto")
            ax.set_title(f"First hit, {title}")
            ax.set_xlabel("class of the first hit")
            ax.grid(visible=False)
            if labelled:
                ax.set_xticks(range(len(hit_classes)), hit_classes, rotation=35, ha="right", rotation_mode="anchor")
                ax.set_yticks(range(len(classes)), classes)
                _write_counts(ax, table, share, theme)
        axes[0].set_ylabel("class of the query")

    side = 1.4 + 0.5 * min(len(classes), MAX_LABELLED_CLASSES)
    return drawing(
        draw, (10.0, min(8.0, max(3.4, side))), "Confusion matrix: class of each query against class of its first hit"
    )


def _write_counts(ax: Axes, table: npt.NDArray[np.int64], share: npt.NDArray[np.float64], theme: Theme) -> None:
    for i, j in np.argwhere(table > 0).tolist():
        ink = theme.ink if share[i, j] < 0.55 else "#ffffff"
        ax.text(j, i, f"{table[i, j]}", ha="center", va="center", color=ink, fontsize=9)


def reliability_figure(calibration: Calibration) -> Drawing:
    """Draw the share of relevant hits against the score, raw and calibrated, and the number of hits per score bin."""

    def draw(figure: Figure, theme: Theme) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot((0, 1), (0, 1), color=theme.muted, linestyle=":", label="perfect")
        lines = [("raw scores", calibration.raw, theme.blue, "o")]
        if calibration.calibrated is not None:
            lines.append(("calibrated on validation", calibration.calibrated, ORANGE, "s"))
        for position, (name, curve, colour, marker) in enumerate(lines):
            label = f"{name}, error {100 * curve.expected_error:.1f} %"
            x, y = [b.mean_score for b in curve.bins], [b.relevant for b in curve.bins]
            top.plot(x, y, color=colour, marker=marker, label=label)
            _draw_bin_counts(below, curve, position, colour)
        top.set_title("Share of relevant hits by score")
        top.set_ylabel("share of relevant hits")
        top.set_ylim(-0.02, 1.02)
        top.legend(loc="upper left")
        below.set_ylim(0.7, 2 * max([b.count for _, curve, _, _ in lines for b in curve.bins], default=1))
        _use_log_scale(below, "{x:,.0f}")
        below.set_ylabel("hits")
        below.set_xlabel("score")
        below.set_xlim(-0.02, 1.02)

    return drawing(draw, (6.4, 5.4), "Reliability curve: share of relevant hits against their score")


def _draw_bin_counts(ax: Axes, curve: Reliability, position: int, colour: str) -> None:
    width = 0.042
    ax.bar(
        [b.low + 0.008 + position * width for b in curve.bins],
        [b.count for b in curve.bins],
        width,
        align="edge",
        color=colour,
    )


def _use_log_scale(ax: Axes, labels: str) -> None:
    """Set a logarithmic y axis with tick labels in plain numbers."""
    ticker = require("matplotlib.ticker")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(ticker.StrMethodFormatter(labels))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def nodes_figure(parts: dict[str, npt.NDArray[np.int64]], neighbours: int) -> Drawing:
    """Draw how many nodes of each graph have the query's class, one panel per part (paper Fig. 8 and 9)."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = np.atleast_1d(figure.subplots(1, len(parts), sharey=True))
        edges = np.linspace(-0.5, neighbours + 0.5, min(neighbours + 1, 51) + 1).tolist()
        for ax, (name, counts), colour in zip(axes, parts.items(), (GREEN, theme.blue, PINK), strict=False):
            if len(counts):
                ax.hist(counts, bins=edges, weights=np.full(len(counts), 100 / len(counts)), color=colour)
            mean = float(counts.mean()) if len(counts) else 0.0
            ax.set_title(f"{name}: {len(counts)} graphs, {100 * mean / neighbours:.1f} % of nodes relevant")
            ax.set_xlabel(f"relevant nodes among {neighbours}")
        axes[0].set_ylim(50 / max(1, *map(len, parts.values())), 150)  # low enough to show a single graph
        _use_log_scale(axes[0], "{x:g}")  # hard graphs are few; a linear scale would hide them
        axes[0].set_ylabel("% of the graphs (log)")

    return drawing(draw, (10.0, 3.6), "Number of nodes of each query graph that have the query's class")


def curves_figure(trainings: dict[str, Training]) -> Drawing:
    """Draw loss and validation MAP by epoch, one panel per model, and mark the kept epoch."""

    def draw(figure: Figure, theme: Theme) -> None:
        axes = np.atleast_1d(figure.subplots(1, len(trainings)))
        for ax, (name, training) in zip(axes, trainings.items(), strict=True):
            epochs = [row.epoch + 1 for row in training.epochs]
            marker = "o" if len(epochs) < 30 else None
            ax.plot(epochs, [row.loss for row in training.epochs], color=theme.blue, marker=marker, markersize=4)
            ax.set_title(f"Training of the {name}")
            ax.set_xlabel("epoch")
            ax.set_ylabel("loss", color=theme.blue)
            ax.xaxis.get_major_locator().set_params(integer=True)
            _draw_validation(ax, training, marker, theme)

    return drawing(draw, (10.0 if len(trainings) > 1 else 5.6, 3.6), "Loss and validation MAP by epoch")


def _draw_validation(ax: Axes, training: Training, marker: str | None, theme: Theme) -> None:
    measured = [row for row in training.epochs if row.validation_map is not None]
    if not any(row.validation_map for row in measured):  # without a validation part, the MAP is 0 in every epoch
        return
    right = ax.twinx()
    values = [100 * (row.validation_map or 0.0) for row in measured]
    right.plot([row.epoch + 1 for row in measured], values, color=ORANGE, marker=marker, markersize=4, linestyle="--")
    right.set_ylabel("validation MAP, % (dashed)", color=ORANGE)
    right.grid(visible=False)
    if 0 <= training.best_epoch < len(training.epochs):
        ax.axvline(training.best_epoch + 1, color=theme.muted, linestyle=":")
        ax.annotate(
            "kept", (training.best_epoch + 1, 0.5), (-3, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=theme.muted, fontsize=9, ha="right", va="center", rotation=90,
        )  # fmt: skip


def map_figure(points: MapPoints) -> Drawing:
    """Draw the embedding map: the colour is the class, dots are gallery scans, crosses are test queries."""
    classes = sorted(set(points.labels))
    labels = np.array(points.labels, dtype=object)

    def draw(figure: Figure, theme: Theme) -> None:
        ax = figure.subplots()
        for number, label in enumerate(classes):
            colour = (theme.blue, *CLASS_COLOURS[1:])[number % len(CLASS_COLOURS)]
            of_class = labels == label
            gallery, queries = points.points[of_class & ~points.test], points.points[of_class & points.test]
            marker = MARKERS[(number // len(CLASS_COLOURS)) % len(MARKERS)]
            ax.scatter(
                gallery[:, 0], gallery[:, 1], 9, color=colour, marker=marker, linewidths=0, alpha=0.55,
                label=_short(label), rasterized=True,
            )  # fmt: skip
            ax.scatter(queries[:, 0], queries[:, 1], 22, color=colour, marker="x", linewidths=1.2, rasterized=True)
        ax.scatter([], [], 22, color=theme.ink, marker="x", linewidths=1.2, label="test query")
        ax.set_title(f"Map of {len(labels)} scans: scans that the encoder finds similar are close together")
        ax.set_xticks([])
        ax.set_yticks([])
        if len(classes) <= MAX_LABELLED_CLASSES:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.8)

    return drawing(draw, (9.0, 6.0), "Embedding map (t-SNE): scans of the gallery and test queries, coloured by class")


def distance_figure(
    validation: npt.NDArray[np.float32], test: npt.NDArray[np.float32], facts: OutOfDistribution
) -> Drawing:
    """Draw the distances of validation and test queries to their nearest hit, with the threshold."""

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
            ax.axvline(facts.threshold, color=theme.muted, linestyle=":", label="threshold: flagged to the right")
        ax.set_title("Distance of queries to the gallery")
        ax.set_xlabel("squared distance to the nearest hit")
        ax.set_ylabel("% of the queries")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper right")

    return drawing(draw, (6.4, 3.6), "Distance of queries to their nearest hit, with the out-of-distribution threshold")


def drawing(draw: Draw, inches: tuple[float, float], description: str) -> Drawing:
    """Draw a figure for both pages; ``description`` becomes its alternative text."""
    return Drawing(_svg(draw, inches, LIGHT), _svg(draw, inches, DARK), description)


def _svg(draw: Draw, inches: tuple[float, float], theme: Theme) -> bytes:
    """Draw one figure as SVG, without pyplot, whose figures are global and stay open."""
    matplotlib, figures = require("matplotlib"), require("matplotlib.figure")
    canvases = require("matplotlib.backends.backend_svg")
    style = {
        "svg.hashsalt": "mrcg",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",  # ships with matplotlib, so text looks the same on every machine
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
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "legend.frameon": False,
        "text.parse_math": False,  # a class name may contain $
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
    """Shorten a class name to fit an axis; replace characters missing from the font, which would cause warnings."""
    shown = "".join(
        letter if letter.isprintable() and (ord(letter) < 0x250 or 0x370 <= ord(letter) < 0x530) else "?"
        for letter in name
    )
    return shown if len(shown) <= MAX_NAME_LENGTH else shown[: MAX_NAME_LENGTH - 1] + "…"
