"""The tables of `mrcg reproduce`, with the paper's figures beside ours (docs/method.md#the-paper)."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from mrcg.evaluation.paper_systems import MARGINS, SYSTEMS, Reproduction, TrialEpoch, TrialFigures
from mrcg.frozen import Frozen

_COLUMNS: Mapping[str, str] = {
    "map": "MAP",
    "map_full": "MAP (full)",
    "precision_at_1": "P@1",
    "precision_at_5": "P@5",
    "precision_at_10": "P@10",
}
#: Figures that the paper has.
_PUBLISHED = ("map", "precision_at_5", "precision_at_10")


class PaperDataset(Frozen):
    """The paper's figures on one of its two sets of scans, in percent.

    Attributes:
        title: name of the set.
        images: number of scans by class, and in total.
        systems: mean and standard deviation of each figure (Tables III and IV).
        mrcg_per_class: figures of MRCG by class (Tables V and VI).
        nodes_of_500: of the 500 nodes of ten queries of a class, those that have it (Figs. 8 and 9).
    """

    title: str
    images: Mapping[str, int]
    systems: Mapping[str, Mapping[str, tuple[float, float]]]
    mrcg_per_class: Mapping[str, Mapping[str, float]]
    nodes_of_500: Mapping[str, int]

    def class_of(self, label: str) -> str | None:
        """Return the paper's name of a class (``glioma`` for ``glioma_tumor``), None for a class it does not have."""
        name = label.lower().replace(" ", "_")
        return next((known for known in (name, name.removesuffix("_tumor")) if known in self.mrcg_per_class), None)

    def has_classes(self, labels: Iterable[str]) -> bool:
        """Return whether some classes are those of this set."""
        return {self.class_of(label) for label in labels} == set(self.mrcg_per_class)


@functools.cache
def paper_datasets() -> Mapping[str, PaperDataset]:
    """Return the paper's figures by the name of the set."""
    text = resources.files("mrcg.evaluation").joinpath("paper_tables.json").read_text(encoding="utf-8")
    return {name: PaperDataset.model_validate(value) for name, value in json.loads(text)["datasets"].items()}


def reproduction_markdown(reproduction: Reproduction) -> str:
    """Return the tables: percentages with one decimal, mean ± standard deviation over the last epochs.

    Beside our figures stand the paper's on the set with the same classes; its MAP on both sets if neither has them.
    """
    first = reproduction.rows[0].trial
    classes = {label for row in reproduction.rows for epoch in row.trial.epochs for label in epoch.per_class}
    same = next((dataset for dataset in paper_datasets().values() if dataset.has_classes(classes)), None)
    lines = [
        f"Protocol `{first.protocol}`, recipe `{reproduction.recipe}`: {first.queries} queries, "
        f"gallery of {first.gallery}. Mean ± standard deviation over the last epochs of one training; "
        "the paper's figures are for its own split.",
        "",
        *_systems_table(reproduction, same),
    ]
    margins = {row.margin for row in reproduction.rows if row.margin is not None}
    if margins:
        tried = ", ".join(f"{margin:g}" for margin in MARGINS)
        chosen = ", ".join(f"{margin:g}" for margin in sorted(margins))
        lines += ["", f"Margin of the Siamese network: {chosen}, chosen on the validation part among {tried}."]
    for row in reproduction.rows:
        if row.system == "mrcg" and row.trial.epochs[0].per_class:
            lines += ["", "MRCG by class of the query:", "", *_classes_table(row.trial.epochs, same)]
    return "\n".join(lines) + "\n"


def _systems_table(reproduction: Reproduction, same: PaperDataset | None) -> list[str]:
    """Return Table III or IV of the paper, with our figures."""
    published = _columns_of_paper(same)
    heads = [f"paper, {dataset.title}: {_COLUMNS[name]}" for dataset, name in published]
    lines = _head(["system", "epochs, CNN", "epochs, GNN", *_COLUMNS.values(), *heads])
    for row in reproduction.rows:
        theirs = []
        for dataset, name in published:
            mean, spread = dataset.systems[row.system][name]
            theirs.append(f"{mean:.1f} ± {spread:.1f}")
        gnn = "–" if row.reranker_epochs is None else str(row.reranker_epochs)
        ours = _means(row.trial.epochs)
        lines.append(_line([SYSTEMS[row.system].title, str(row.encoder_epochs), gnn, *ours.values(), *theirs]))
    return lines


def _classes_table(epochs: Sequence[TrialEpoch], same: PaperDataset | None) -> list[str]:
    """Return Table V or VI of the paper and the numbers of Fig. 8 or 9, with our figures."""
    names = [*(_COLUMNS[name] for name in _PUBLISHED), "nodes of the class, of 500"]
    lines = _head(["class", *names, *([] if same is None else [f"paper, {same.title}: {name}" for name in names])])
    for label in epochs[0].per_class:
        ours = _means([epoch.per_class[label] for epoch in epochs])
        shares = [share for epoch in epochs if (share := epoch.per_class[label].same_class) is not None]
        nodes = f"{500 * statistics.fmean(shares):.0f}" if shares else "–"
        theirs = []
        if same is not None and (known := same.class_of(label)) is not None:
            theirs = [f"{same.mrcg_per_class[known][name]:.1f}" for name in _PUBLISHED]
            theirs.append(str(same.nodes_of_500[known]))
        lines.append(_line([label, *(ours[name] for name in _PUBLISHED), nodes, *theirs]))
    return lines


def _columns_of_paper(same: PaperDataset | None) -> list[tuple[PaperDataset, str]]:
    if same is None:
        return [(dataset, "map") for dataset in paper_datasets().values()]
    return [(same, name) for name in _PUBLISHED]


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), _line(["---", *("---:" for _ in names[1:])])]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _means(figures: Sequence[TrialFigures]) -> dict[str, str]:
    """Return the figures of some epochs by column, each as mean ± standard deviation."""
    return {name: _mean([getattr(one, name) for one in figures]) for name in _COLUMNS}


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}"
