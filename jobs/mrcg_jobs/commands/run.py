"""The commands of the batch side. Ray is imported when a stage has to run, not before."""

from __future__ import annotations

import enum
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, RecipeOption, SetOption, StoreOption
from mrcg.config.loading import load_config
from mrcg.config.settings import Config
from mrcg.errors import UsageError
from mrcg.evaluation.paper_systems import SYSTEMS, Reproduction, System, reproduction_markdown
from mrcg.releases.release import Gate, Promotion, promote
from mrcg.storage.store import Store
from mrcg_jobs.runner import StageResult, plan_steps, run_stages, steps_of

SourceOption = Annotated[
    str,
    typer.Option(
        "--source", help="Folder of scans, SRC/<class>/… or SRC/<split>/<class>/…, or a manifest (.csv, .parquet)."
    ),
]
RayOption = Annotated[
    str | None, typer.Option("--ray", help="Address of a Ray cluster; without it one is started here.")
]


BadOption = Annotated[
    float | None,
    typer.Option("--max-bad-fraction", min=0.0, max=1.0, help="Part of the files that may be bad; 0.05 by default."),
]


class PromoteWhen(enum.StrEnum):
    """When a finished run becomes the current release."""

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
        PromoteWhen, typer.Option("--promote", help="When the result becomes the release.")
    ] = PromoteWhen.gate,
    max_bad_fraction: BadOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages from a folder of scans to a release; what is there already is skipped."""
    settings = _with_limit(settings, max_bad_fraction)
    results, report = _run(source, store, recipe, settings, ray, None, as_json)
    opened, config = Store(store), load_config(recipe, settings)
    outcome = None
    if promote_when != PromoteWhen.never:
        outcome = promote(opened, results[-1].version, gate_of(config) if promote_when == PromoteWhen.gate else None)
    show_stages(results, report, outcome, as_json)


def gate_of(config: Config) -> Gate:
    """How far a release may fall, by the recipe."""
    return Gate(map_drop=config.release.max_map_drop, recall_drop=config.release.max_recall_drop)


def _stage_command(name: str, summary: str) -> Callable[..., None]:
    def command(
        source: SourceOption,
        store: StoreOption,
        recipe: RecipeOption = None,
        settings: SetOption = None,
        ray: RayOption = None,
        as_json: JsonOption = False,
    ) -> None:
        results, report = _run(source, store, recipe, settings, ray, name, as_json)
        show_stages(results, report, None, as_json)

    command.__doc__ = f"{summary} One stage of `mrcg run`; the stages before it must be there."
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
    """Read, check, make nameless and group scans; of a source that grew only what is new. One stage of `mrcg run`."""
    results, report = _run(source, store, recipe, _with_limit(settings, max_bad_fraction), ray, "ingest", as_json)
    show_stages(results, report, None, as_json)


def _with_limit(settings: list[str] | None, max_bad_fraction: float | None) -> list[str]:
    limit = [] if max_bad_fraction is None else [f"checks.max_bad_fraction={max_bad_fraction}"]
    return [*(settings or ()), *limit]


split = _stage_command("split", "Say who is gallery and who is query.")
train_encoder = _stage_command("train-encoder", "Train the triplet CNN.")
embed = _stage_command("embed", "Embed every scan of the corpus.")
build_index = _stage_command("build-index", "Build the sharded FAISS index.")
build_graphs = _stage_command("build-graphs", "Find the neighbours of every query.")
train_reranker = _stage_command("train-reranker", "Train the GNN that reranks.")
evaluate = _stage_command("evaluate", "Measure ANN order and reranked on the test part.")


def _run(
    source: str,
    store: str,
    recipe: str | None,
    settings: list[str] | None,
    ray: str | None,
    only: str | None,
    as_json: bool,
) -> tuple[list[StageResult], Path | str]:
    config, opened = load_config(recipe, settings or ()), Store(store)
    found, steps = plan_steps(opened, config, source, only)
    chosen = steps if only is None else steps_of(steps, only)
    results: list[StageResult] = []
    try:
        with console.StageBars(quiet=as_json) as bars:
            for result in run_stages(opened, config, found, chosen, ray, bars.stage):
                bars.finish(result.stage)
                results.append(result)
    finally:
        stop_ray()
    # Encoders of cross-fitting come behind the one that counts.
    last = results[-1] if only is None else results[0]
    return results, f"{opened.url}/{opened.manifest(last.kind, last.version).folder}"


def reproduce(
    source: SourceOption,
    store: StoreOption,
    recipe: RecipeOption = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            "--protocol", help="Who is gallery and who is query: paper, dedup, given or folds; else the recipe's."
        ),
    ] = None,
    systems: Annotated[
        str | None, typer.Option("--systems", help=f"Some of {', '.join(SYSTEMS)}, with commas; all by default.")
    ] = None,
    settings: SetOption = None,
    ray: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the paper's six systems, measure them alike and print its tables; goes on where it was stopped."""
    from mrcg_jobs.reproduction import Reproducer

    wanted = _systems(systems)
    chosen = [] if protocol is None else [f"split.protocol={protocol}"]
    config = load_config(recipe, [*(settings or ()), *chosen])
    try:
        with console.StageBars(quiet=as_json) as bars:
            rows = list(Reproducer(Store(store), source, config, ray, bars.stage, bars.finish).rows(wanted))
    finally:
        stop_ray()
    found = Reproduction(recipe=recipe or "paper", settings=tuple(settings or ()), rows=tuple(rows))
    if as_json:
        console.emit_json(found.model_dump(mode="json"))
    else:
        console.say(reproduction_markdown(found))


def _systems(names: str | None) -> list[System]:
    wanted = list(SYSTEMS) if names is None else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in SYSTEMS:
            raise UsageError(f"--systems: no system {name!r}; there are {', '.join(SYSTEMS)}")
    return [SYSTEMS[name] for name in wanted]


def stop_ray() -> None:
    """End the cluster that a stage started, or leave the one that was given."""
    import sys

    # Only where a stage ran: stopping must not be what imports Ray.
    runtime = sys.modules.get("mrcg_jobs.ray_runtime.cluster")
    if runtime is not None:
        runtime.stop()


def show_stages(results: list[StageResult], folder: Path | str, outcome: Promotion | None, as_json: bool) -> None:
    """The table of stages, and what became of the release."""
    if as_json:
        stages = [
            {
                "stage": r.stage,
                "version": r.version,
                "ran": r.ran,
                "seconds": round(r.seconds, 3),
                "counts": dict(r.counts),
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
