"""`mrcg reproduce`: train the six systems of the paper and measure them in the same way.

Every system is a pipeline with its own settings. Stages that systems share run once: the Siamese network is trained,
embedded and indexed once for its five rows. Finished stages are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mrcg.config.settings import Config
from mrcg.corpus.sources import Source
from mrcg.errors import SettingsError
from mrcg.evaluation.paper_systems import MARGINS, TRIAL, Row, System, Trial, as_published, siamese
from mrcg.execution.executor import Progress
from mrcg.pipeline.plan import Step, measuring_step
from mrcg.stages.counts import EncoderCounts
from mrcg.stages.registry import MEASURE_ENCODER, MEASURE_RERANKER
from mrcg.storage.store import Store
from mrcg_jobs.runner import plan_steps, run_stages

#: The last stage of a run by the reranker of a system: MRCG has a report, for the figures of the paper.
LAST_STAGE = {None: "train-encoder", "mrcg": "evaluate"}
#: Fraction of the epochs for the trainings that choose the margin.
MARGIN_EPOCHS = 0.2


@dataclass(frozen=True)
class Reproducer:
    """Trains and measures systems on one source and store.

    Attributes:
        store: where artefacts go.
        location: of the source.
        config: settings of the recipe.
        ray_address: of a cluster; None starts one on this machine.
        progress_of: returns the progress callback of a stage, given its title.
        on_stage: called with the title of each stage that is done.
    """

    store: Store
    location: str
    config: Config
    ray_address: str | None
    progress_of: Callable[[str], Progress]
    on_stage: Callable[[str], None]

    def rows(self, systems: Sequence[System]) -> Iterator[Row]:
        """Yield one table row per system, as soon as it is measured.

        Raises:
            SettingsError: encoder.epochs or reranker.epochs is 0, so there is nothing to measure.
        """
        if not (self.config.encoder.epochs and self.config.reranker.epochs):
            raise SettingsError("reproduce measures the last epochs: set encoder.epochs and reranker.epochs above 0")
        margin = self._best_margin() if any(system.siamese for system in systems) else 0.0
        for system in systems:
            yield self._row(system, margin)

    def _row(self, system: System, margin: float) -> Row:
        config = system.configure(self.config, margin)
        measure = MEASURE_ENCODER if system.reranker is None else MEASURE_RERANKER
        source, steps = self._plan(config, LAST_STAGE.get(system.reranker, "train-reranker"))
        last = measuring_step(measure, config, steps)
        self._run(config, source, (*steps, last), system.title)
        trial = Trial.model_validate_json(self.store.artefact("trials", last.version).read_bytes(TRIAL))
        reports = [step.version for step in steps if step.stage.kind == "reports"]
        return Row(
            system=system.name,
            margin=margin if system.siamese else None,
            encoder_epochs=config.encoder.epochs,
            reranker_epochs=None if system.reranker is None else config.reranker.epochs,
            trial=trial,
            report=reports[0] if reports else None,
        )

    def _best_margin(self) -> float:
        """Return the margin with which a short training of the Siamese network has the best validation MAP."""
        epochs = max(1, round(self.config.encoder.epochs * MARGIN_EPOCHS))
        validation_map = {}
        for margin in MARGINS:
            config = siamese(as_published(self.config), margin, epochs)
            source, steps = self._plan(config, "train-encoder")
            self._run(config, source, steps, f"margin {margin:g}")
            manifest = self.store.manifest("encoders", steps[-1].version)
            validation_map[margin] = manifest.counts_as(EncoderCounts).validation_map or 0.0
        return max(MARGINS, key=lambda margin: validation_map[margin])

    def _plan(self, config: Config, last: str) -> tuple[Source, tuple[Step, ...]]:
        return plan_steps(self.store, config, self.location, last)

    def _run(self, config: Config, source: Source, steps: Sequence[Step], title: str) -> None:
        def progress_of(stage: str) -> Progress:
            return self.progress_of(f"{title}: {stage}")

        for result in run_stages(self.store, config, source, steps, self.ray_address, progress_of):
            self.on_stage(f"{title}: {result.stage}")
