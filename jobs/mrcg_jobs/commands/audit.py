"""The command group ``mrcg audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, RecipeOption, SetOption, StoreOption
from mrcg.config.loading import load_config
from mrcg.errors import UsageError
from mrcg_jobs.commands.run import RayOption, SourceOption, stop_ray

# `mrcg --help` reads this module: what is heavy is imported by the functions that need it.
if TYPE_CHECKING:
    from mrcg.evaluation.label_audit import FlaggedFigures, LabelAudit

audit_app = typer.Typer(name="audit", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@audit_app.callback()
def audit() -> None:
    """Look for mistakes in the data."""


@audit_app.command()
def labels(
    source: SourceOption,
    store: StoreOption,
    recipe: RecipeOption = None,
    settings: SetOption = None,
    ray: RayOption = None,
    folds: Annotated[
        int, typer.Option("--folds", min=2, help="Encoders that each leave out a part of the training scans.")
    ] = 2,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of scans to list.")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write an HTML page with pictures. The pictures show scans.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Write a manifest of all scans with their labels, to correct and ingest."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List scans whose label contradicts their nearest neighbours, worst first; relabels nothing."""
    from mrcg.corpus.corrections import check_target
    from mrcg.corpus.sources import open_source
    from mrcg.storage.store import Store
    from mrcg_jobs.label_audit import LabelAuditor

    config = load_config(recipe, settings or ())
    if manifest is not None:
        check_target(open_source(source), manifest)
    auditor = LabelAuditor.of(Store(store), config, source, folds)
    try:
        with console.StageBars(quiet=as_json) as bars:
            for result in auditor.run(ray, bars.stage):
                bars.finish(result.stage)
            corpus = auditor.corpus()
            audited = auditor.audit(corpus, bars.stage("audit"))
            bars.finish("audit")
    finally:
        stop_ray()
    shown = audited.model_copy(update={"rows": audited.rows[:top]})
    if as_json:
        console.emit_json(shown.model_dump(mode="json"))
    else:
        _show(shown)
    if out is not None:
        from mrcg.evaluation.label_page import audit_page, pictures_of

        console.write_file(out, audit_page(shown, pictures_of(shown, corpus)))
        console.err.print(f"page: {out}", highlight=False, soft_wrap=True)
    if manifest is not None:
        _write_manifest(manifest, auditor.manifest(source, manifest, corpus, audited))
        console.err.print(f"manifest: {manifest}", highlight=False, soft_wrap=True)


def _show(audited: LabelAudit) -> None:
    rows = [
        [
            str(number),
            "yes" if scan.flagged else "no",
            scan.label,
            scan.suggested,
            f"{scan.probability:.2f}",
            scan.part,
            scan.source_key,
            scan.image_id,
        ]
        for number, scan in enumerate(audited.rows, 1)
    ]
    console.show_table(
        f"Label audit of corpus {audited.corpus}",
        ["", "flagged", "label", "suggested", "probability", "part", "file", "image"],
        rows,
        ["", "probability"],
    )
    console.say(f"{audited.flagged} of {audited.scans} scans flagged; nothing was relabelled")
    if audited.rare:
        rare = ", ".join(f"{label} ({count})" for label, count in audited.rare.items())
        console.say(f"not audited, their class has too few scans: {rare}")
    if audited.unlabelled:
        console.say(f"not audited, without a label: {audited.unlabelled}")
    if audited.figures is None:
        console.say("no report of these settings in the store: `mrcg run` makes one, for figures without flagged scans")
    else:
        _show_figures(audited.figures)


def _show_figures(figures: FlaggedFigures) -> None:
    named = (
        ("all test queries", figures.all_queries),
        ("without the flagged ones (upper bound)", figures.without_flagged),
        ("without as many matched by class and margin", figures.without_matched),
    )
    rows = [
        [
            name,
            str(value.queries),
            f"{100 * value.map:.1f}",
            f"{100 * value.interval.low:.1f} to {100 * value.interval.high:.1f}",
        ]
        for name, value in named
    ]
    columns = ["queries", "number", "MAP, %", "95 % interval"]
    console.show_table(f"Served order, report {figures.report}", columns, rows, columns[1:])


def _write_manifest(path: Path, data: bytes) -> None:
    try:
        # Created exclusively: an existing file may hold corrections.
        with path.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"--manifest {path} cannot be written: {error.strerror}") from error
