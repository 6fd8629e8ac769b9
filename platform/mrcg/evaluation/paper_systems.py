"""The six systems that the paper compares: their settings and result tables (docs/method.md#baselines)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mrcg.config.settings import Config
from mrcg.frozen import Frozen

#: Number of last epochs that each figure of the tables is averaged over (docs/method.md#the-paper).
LAST_EPOCHS = 10
#: Margins on squared L2 tried for the Siamese network on the validation part; the paper does not state one.
MARGINS = (2.0, 10.0, 50.0)

#: MAP in percent from the abstract of the paper. Its figures for the other systems are not available to us.
PUBLISHED: Mapping[str, Mapping[str, float]] = {"mrcg": {"CE-MRI": 88.64, "Kaggle": 86.59}}
DATASETS = ("CE-MRI", "Kaggle")
#: File name in a version of kind ``trials``.
TRIAL = "trial.json"


@dataclass(frozen=True)
class System:
    """One row of the paper's tables.

    ``reranker`` is a value of ``reranker.model``; None measures the ANN order.
    """

    name: str
    title: str
    siamese: bool
    reranker: str | None = None
    learning_rate: float = 5e-4
    weight_decay_first: float = 0.0
    hidden: int | None = None

    def configure(self, config: Config, margin: float) -> Config:
        """Apply the settings of this system to a recipe.

        Args:
            config: settings of the recipe; backbone, epochs, batches and sampling are the same for all systems.
            margin: margin of the Siamese network; a triplet network uses the margin of the recipe.
        """
        config = as_published(config)
        encoder, reranker = config.encoder, config.reranker
        if self.siamese:
            encoder = siamese(config, margin).encoder
            # Snapshots: the row of the Siamese network alone embeds the gallery again with each of the last epochs.
            # All rows with a Siamese network set them, so that they share one training.
            encoder = encoder.model_copy(update={"snapshots": min(LAST_EPOCHS, encoder.epochs), "patience": 0})
        if self.reranker is not None:
            update = {
                "model": self.reranker,
                "learning_rate": self.learning_rate,
                "weight_decay_first": self.weight_decay_first,
                "hidden": self.hidden or reranker.hidden,
                "snapshots": min(LAST_EPOCHS, reranker.epochs),
            }
            reranker = reranker.model_copy(update=update)
        return config.model_copy(update={"encoder": encoder, "reranker": reranker})


def as_published(config: Config) -> Config:
    """Turn off what goes beyond the paper, as in all rows of its tables: reranker settings, appearance, fused order."""
    update = {"graphs": "train", "features": ("difference",), "scale": False, "loss": "focal"}
    appearance = config.embed.appearance.model_copy(update={"components": 0})
    return config.model_copy(
        update={
            "reranker": config.reranker.model_copy(update=update),
            "embed": config.embed.model_copy(update={"appearance": appearance}),
            "evaluate": config.evaluate.model_copy(update={"order": "score"}),
        }
    )


def siamese(config: Config, margin: float, epochs: int | None = None) -> Config:
    """Use the Siamese network as the encoder: contrastive loss, λ = 0, learning rate 5e-4 (paper §IV).

    Args:
        config: settings of the recipe.
        margin: margin of the contrastive loss, on squared L2.
        epochs: training epochs; None uses those of the recipe.
    """
    update = {
        "loss": "contrastive",
        "classification_weight": 0.0,
        "margin": margin,
        "learning_rate": 5e-4,
        "epochs": config.encoder.epochs if epochs is None else epochs,
    }
    return config.model_copy(update={"encoder": config.encoder.model_copy(update=update)})


#: In the order of the tables. GAT heads are 64 wide: 256 would give it ten times the weights of the other systems.
SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("siamese", "Siamese CNN", True),
        System("siamese+chebnet", "Siamese + ChebNet", True, "chebnet", 1e-4, 5e-4),
        System("siamese+gcn", "Siamese + GCN", True, "gcn", 1e-4, 5e-4),
        System("siamese+graphsage", "Siamese + GraphSAGE", True, "graphsage", 1e-3),
        System("siamese+gat", "Siamese + GAT", True, "gat", 1e-4, hidden=64),
        System("mrcg", "MRCG", False, "mrcg"),
    )
}


class TrialEpoch(Frozen):
    """Figures of the test part with the weights of one epoch (definitions: ``mrcg.metrics.ranking``)."""

    epoch: int
    map: float
    map_full: float
    precision_at_1: float
    precision_at_5: float
    precision_at_10: float


class Trial(Frozen):
    """Content of ``trial.json``: the figures of one system over its last epochs."""

    protocol: str
    queries: int
    gallery: int
    epochs: tuple[TrialEpoch, ...]


class Row(Frozen):
    """One row of the tables."""

    system: str
    margin: float | None
    encoder_epochs: int
    reranker_epochs: int | None
    trial: Trial


class Reproduction(Frozen):
    """Results of ``mrcg reproduce`` with a ``recipe`` and overrides (``settings``)."""

    recipe: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]


_COLUMNS: Mapping[str, str] = {
    "map": "MAP",
    "map_full": "MAP (full)",
    "precision_at_1": "P@1",
    "precision_at_5": "P@5",
    "precision_at_10": "P@10",
}


def reproduction_markdown(reproduction: Reproduction) -> str:
    """Return the tables: percentages with one decimal, mean ± standard deviation over the last epochs."""
    first = reproduction.rows[0].trial
    lines = [
        f"Protocol `{first.protocol}`, recipe `{reproduction.recipe}`: {first.queries} queries, "
        f"gallery of {first.gallery}. Mean ± standard deviation over the last epochs of one training; "
        "the paper's figures are for its own split.",
        "",
        f"| system | epochs, CNN | epochs, GNN | {' | '.join(_COLUMNS.values())} "
        f"| {' | '.join(f'paper, {name}: MAP' for name in DATASETS)} |",
        f"| --- | ---: | ---: | {' | '.join('---:' for _ in (*_COLUMNS, *DATASETS))} |",
    ]
    for row in reproduction.rows:
        gnn = "–" if row.reranker_epochs is None else str(row.reranker_epochs)
        figures = [_mean([getattr(epoch, name) for epoch in row.trial.epochs]) for name in _COLUMNS]
        published = [_published(row.system, name) for name in DATASETS]
        title = SYSTEMS[row.system].title
        lines.append(f"| {title} | {row.encoder_epochs} | {gnn} | {' | '.join([*figures, *published])} |")
    margins = {row.margin for row in reproduction.rows if row.margin is not None}
    if margins:
        tried = ", ".join(f"{margin:g}" for margin in MARGINS)
        chosen = ", ".join(f"{margin:g}" for margin in sorted(margins))
        lines += ["", f"Margin of the Siamese network: {chosen}, chosen on the validation part among {tried}."]
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}"


def _published(system: str, dataset: str) -> str:
    figure = PUBLISHED.get(system, {}).get(dataset)
    return "not at hand" if figure is None else f"{figure:.2f}"
