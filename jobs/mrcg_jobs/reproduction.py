"""`mrcg reproduce`: train the six systems of the paper and measure them the same way.

Every system is a pipeline of its own settings, and stages that two of them share are done once: the Siamese network
is trained, embedded and indexed for all five of its rows. What is finished is never done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.errors import SettingsError
from mrcg.evaluation.paper_systems import MARGINS, TRIAL, Row, System, Trial, as_published, siamese
from mrcg.execution.executor import Progress
from mrcg.pipeline.stages import MEASURE_ENCODER, MEASURE_RERANKER, Step, measuring
from mrcg.storage.store import Store
from mrcg_jobs.runner import plan_steps, run_stages

#: The margin is chosen by trainings of this part of the epochs.
MARGIN_EPOCHS = 0.2


@dataclass(frozen=True)
class Reproducer:
    """Runs systems on one source and store.

    ``progress_of`` gives a stage that has to run the progress it reports to; ``on_stage`` is told when one is done.
    """

    store: Store
    location: str
    config: Config
    ray_address: str | None
    progress_of: Callable[[str], Progress]
    on_stage: Callable[[str], None]

    def rows(self, systems: Sequence[System]) -> Iterator[Row]:
        """A row of the tables after each system.

        Raises:
            SettingsError: there are no epochs to measure.
        """
        if not (self.config.encoder.epochs and self.config.reranker.epochs):
            raise SettingsError("reproduce measures the last epochs: set encoder.epochs and reranker.epochs above 0")
        margin = self._margin() if any(system.siamese for system in systems) else 0.0
        for system in systems:
            yield self._row(system, margin)

    def _row(self, system: System, margin: float) -> Row:
        config = system.configure(self.config, margin)
        measure = MEASURE_ENCODER if system.reranker is None else MEASURE_RERANKER
        source, steps = self._plan(config, "train-encoder" if system.reranker is None else "train-reranker")
        last = measuring(measure, config, steps)
        self._run(config, source, (*steps, last), system.title)
        trial = Trial.model_validate_json(self.store.artefact("trials", last.version).read_bytes(TRIAL))
        return Row(
            system=system.name,
            margin=margin if system.siamese else None,
            encoder_epochs=config.encoder.epochs,
            reranker_epochs=None if system.reranker is None else config.reranker.epochs,
            trial=trial,
        )

    def _margin(self) -> float:
        """The margin of the Siamese network with the best validation MAP after a short training."""
        epochs = max(1, round(self.config.encoder.epochs * MARGIN_EPOCHS))
        reached = {}
        for margin in MARGINS:
            config = siamese(as_published(self.config), margin, epochs)
            source, steps = self._plan(config, "train-encoder")
            self._run(config, source, steps, f"margin {margin:g}")
            reached[margin] = float(self.store.manifest("encoders", steps[-1].version).counts["validation_map"] or 0.0)
        return max(MARGINS, key=lambda margin: reached[margin])

    def _plan(self, config: Config, last: str) -> tuple[Source, tuple[Step, ...]]:
        return plan_steps(self.store, config, self.location, last)

    def _run(self, config: Config, source: Source, steps: Sequence[Step], title: str) -> None:
        def progress_of(stage: str) -> Progress:
            return self.progress_of(f"{title}: {stage}")

        for result in run_stages(self.store, config, source, steps, self.ray_address, progress_of):
            self.on_stage(f"{title}: {result.stage}")
