"""The six systems that the paper compares: their settings and figures (docs/method.md#baselines)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mrcg.config.settings import Config
from mrcg.frozen import Frozen

#: Number of last epochs that each figure of the tables is averaged over (docs/method.md#the-paper).
LAST_EPOCHS = 10
#: Margins on squared L2 tried for the Siamese network on the validation part; the paper does not state one.
MARGINS = (2.0, 10.0, 50.0)

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
    """Turn off what goes beyond the paper, as in all rows of its tables.

    That is: reranker settings, mirrored views, whitening, the appearance part, the fused order, known items.
    """
    update = {"graphs": "train", "features": ("difference",), "scale": False, "loss": "focal"}
    appearance = config.embed.appearance.model_copy(update={"components": 0})
    return config.model_copy(
        update={
            "encoder": config.encoder.model_copy(update={"mirror": False, "whiten": 0}),
            "reranker": config.reranker.model_copy(update=update),
            "embed": config.embed.model_copy(update={"appearance": appearance}),
            "evaluate": config.evaluate.model_copy(update={"order": "score", "known_items": 0}),
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


class TrialFigures(Frozen):
    """Figures of some queries (definitions: ``mrcg.metrics.ranking``).

    ``same_class`` is the share of the nodes of their graphs that have the query's class; earlier versions did not
    measure it.
    """

    map: float
    map_full: float
    precision_at_1: float
    precision_at_5: float
    precision_at_10: float
    same_class: float | None = None


class TrialEpoch(TrialFigures):
    """Figures of the test part with the weights of one epoch, and by class; earlier versions did not measure these."""

    epoch: int
    per_class: Mapping[str, TrialFigures] = {}


class Trial(Frozen):
    """Content of ``trial.json``: the figures of one system over its last epochs."""

    protocol: str
    queries: int
    gallery: int
    epochs: tuple[TrialEpoch, ...]


class Row(Frozen):
    """One row of the tables.

    ``report`` is the version of the report with the figures of the paper (its Figs. 6 to 9); only MRCG has one.
    """

    system: str
    margin: float | None
    encoder_epochs: int
    reranker_epochs: int | None
    trial: Trial
    report: str | None = None


class Reproduction(Frozen):
    """Results of ``mrcg reproduce`` with a ``recipe`` and overrides (``settings``)."""

    recipe: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
