"""Commands that run pipeline stages. Ray is imported only when a stage has to run."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, RecipeOption, SetOption, StoreOption
from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.errors import UsageError
from mrcg.evaluation.paper_systems import SYSTEMS, Reproduction, System
from mrcg.evaluation.paper_tables import reproduction_markdown
from mrcg.stages.registry import Stage, stage_of

# `mrcg --help` reads this module: what is heavy is imported by the functions that need it.
if TYPE_CHECKING:
    from mrcg.releases.release import Gate, Promotion
    from mrcg_jobs.runner import StageResult

SourceOption = Annotated[
    str,
    typer.Option(
        "--source", help="Folder of scans (SRC/<class>/… or SRC/<split>/<class>/…) or a manifest (.csv, .parquet)."
    ),
]
RayOption = Annotated[
    str | None, typer.Option("--ray", help="Address of a Ray cluster; by default, a local cluster is started.")
]


BadOption = Annotated[
    float | None,
    typer.Option("--max-bad-fraction", min=0.0, max=1.0, help="Maximum fraction of bad files; 0.05 by default."),
]


class PromoteWhen(enum.StrEnum):
    """When the result of a run is promoted: if it passes the quality gate, always, or never."""

    gate = "gate"
    always = "always"
    never = "never"


def run(
    source: SourceOption,
    store: StoreOption,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    ray: RayOption = None,
    promote_when: Annotated[
        PromoteWhen, typer.Option("--promote", help="When to promote the result to the current release.")
    ] = PromoteWhen.gate,
    max_bad_fraction: BadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages from a folder of scans to a release; finished stages are skipped."""
    settings = _with_limit(settings, max_bad_fraction)
    results, report = _run(source, store, recipe, settings, ray, None, as_json)
    from mrcg.releases.release import promote
    from mrcg.storage.store import Store

    opened, config = Store(store), load_config(recipe, settings)
    outcome = None
    if promote_when != PromoteWhen.never:
        outcome = promote(opened, results[-1].version, gate_of(config) if promote_when == PromoteWhen.gate else None)
    show_stages(results, report, outcome, as_json)


def gate_of(config: Config) -> Gate:
    """Return the promotion gate that the recipe sets."""
    from mrcg.releases.release import Gate

    limits = config.release
    return Gate(map_drop=limits.max_map_drop, recall_drop=limits.max_recall_drop, known_drop=limits.max_known_drop)


def stage_command(stage: Stage) -> Callable[..., None]:
    """Return the command of a stage, made from its entry in the registry."""
    if stage.kind == "corpus":
        return ingest  # has an option more

    def command(
        source: SourceOption,
        store: StoreOption,
        recipe: RecipeOption = None,
        settings: SetOption = None,
        ray: RayOption = None,
        as_json: JsonOption = False,
    ) -> None:
        results, report = _run(source, store, recipe, settings, ray, stage.name, as_json)
        show_stages(results, report, None, as_json)

    command.__doc__ = f"{stage.help} Runs this stage only; its inputs must exist."
    return command


def ingest(
    source: SourceOption,
    store: StoreOption,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    ray: RayOption = None,
    max_bad_fraction: BadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ingest; the registry of stages has the text of the help."""
    results, report = _run(source, store, recipe, _with_limit(settings, max_bad_fraction), ray, "ingest", as_json)
    show_stages(results, report, None, as_json)


ingest.__doc__ = stage_of("corpus").help


def _with_limit(settings: list[str] | None, max_bad_fraction: float | None) -> list[str]:
    limit = [] if max_bad_fraction is None else [f"checks.max_bad_fraction={max_bad_fraction}"]
    return [*(settings or ()), *limit]


def _run(
    location: str,
    store: str,
    recipe: str | None,
    settings: list[str] | None,
    ray: str | None,
    only: str | None,
    as_json: bool,
) -> tuple[list[StageResult], Path | str]:
    from mrcg.storage.store import Store
    from mrcg_jobs.runner import plan_steps, run_stages, steps_of

    config, opened = load_config(recipe, settings or ()), Store(store)
    source, steps = plan_steps(opened, config, location, only)
    selected = steps if only is None else steps_of(steps, only)
    results: list[StageResult] = []
    try:
        with console.StageBars(quiet=as_json) as bars:
            for result in run_stages(opened, config, source, selected, ray, bars.stage):
                bars.finish(result.stage)
                results.append(result)
    finally:
        stop_ray()
    # A single stage may have steps for cross-fitting, too; they follow the main step.
    last = results[-1] if only is None else results[0]
    return results, f"{opened.url}/{opened.manifest(last.kind, last.version).folder}"


def reproduce(
    source: SourceOption,
    store: StoreOption,
    recipe: RecipeOption = None,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="Split protocol: paper, dedup, given or folds; the recipe's by default."),
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option("--systems", help=f"Comma-separated systems from {', '.join(SYSTEMS)}; all by default."),
    ] = None,
    settings: SetOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the paper's six systems, measure all in the same way and print its tables; run again to resume."""
    from mrcg.metrics.report import PAGE
    from mrcg.storage.store import Store
    from mrcg_jobs.reproduction import Reproducer

    selected = _systems(systems)
    overrides = [] if protocol is None else [f"split.protocol={protocol}"]
    config = load_config(recipe, [*(settings or ()), *overrides])
    try:
        with console.StageBars(quiet=as_json) as bars:
            rows = list(Reproducer(Store(store), source, config, ray, bars.stage, bars.finish).rows(selected))
    finally:
        stop_ray()
    reproduction = Reproduction(recipe=recipe or "paper", settings=tuple(settings or ()), rows=tuple(rows))
    if as_json:
        console.emit_json(reproduction.model_dump(mode="json"))
    else:
        console.say(reproduction_markdown(reproduction))
        for report in filter(None, (row.report for row in rows)):
            folder = Store(store).manifest("reports", report).folder
            console.say(f"retrieval panels and node distributions of MRCG: {Store(store).url}/{folder}/{PAGE}")


def _systems(option: str | None) -> list[System]:
    names = list(SYSTEMS) if option is None else [name.strip() for name in option.split(",")]
    for name in names:
        if name not in SYSTEMS:
            raise UsageError(f"--systems: unknown system {name!r}; choose from {', '.join(SYSTEMS)}")
    return [SYSTEMS[name] for name in names]


def stop_ray() -> None:
    """Stop the Ray cluster that a stage started, or disconnect from the one that ``--ray`` named."""
    import sys

    # Only if a stage imported Ray: stopping must not import it.
    runtime = sys.modules.get("mrcg_jobs.ray_runtime.cluster")
    if runtime is not None:
        runtime.stop()


def show_stages(results: list[StageResult], folder: Path | str, outcome: Promotion | None, as_json: bool) -> None:
    """Print the stages, the folder of the last one and the result of the promotion, as text or JSON."""
    if as_json:
        stages = [
            {
                "stage": r.stage,
                "version": r.version,
                "ran": r.ran,
                "seconds": round(r.seconds, 3),
                "counts": r.counts.stated(),
            }
            for r in results
        ]
        value: dict[str, Any] = {"stages": stages, "folder": str(folder)}
        if outcome is not None:
            value["promotion"] = outcome.model_dump(mode="json")
        console.emit_json(value)
        return
    rows = [
        [
            r.stage,
            "ran" if r.ran else "skipped",
            f"{r.seconds:.1f}",
            f"{r.kind}/{r.version}",
            console.short_counts(r.counts),
        ]
        for r in results
    ]
    console.show_table("Stages", ["stage", "", "seconds", "artefact", "counts"], rows, ["seconds"])
    console.say(f"files of {results[-1].stage}: {folder}")
    if outcome is not None:
        console.say(outcome.why)
