"""The commands ``mrcg releases``."""

from __future__ import annotations

from typing import Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, StoreOption

releases_app = typer.Typer(no_args_is_help=True, help="List, show, compare, promote and roll back releases.")


@releases_app.command("list")
def releases_list(store: StoreOption, as_json: JsonOption = False) -> None:
    """List all releases, the current one last."""
    from mrcg.releases.release import missing_parts, read_release, release_numbers
    from mrcg.storage.store import Store

    opened = Store(store)
    releases = [read_release(opened, number) for number in release_numbers(opened)]
    missing = {release.number: missing_parts(opened, release) for release in releases}
    if as_json:
        console.emit_json(
            [{**release.model_dump(mode="json"), "missing": missing[release.number]} for release in releases]
        )
        return
    if not releases:
        console.say(f"{opened.url} has no release yet: `mrcg run` makes and promotes one")
        return
    rows = [
        [
            *(str(r.number), r.created, r.protocol, f"{100 * r.map:.1f}"),
            *("" if r.known_first is None else f"{100 * r.known_first:.0f} %", r.encoder, r.index, r.reranker),
            f"{r.reason}, versions are missing" if missing[r.number] else r.reason,
        ]
        for r in releases
    ]
    console.show_table(
        "Releases",
        ["release", "created", "protocol", "MAP", "known items", "encoder", "index", "reranker", "reason"],
        rows,
        ["release", "MAP", "known items"],
    )


@releases_app.command("show")
def releases_show(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Number of the release; the current one by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a release and the versions that it pins."""
    from mrcg.releases.release import read_release
    from mrcg.storage.store import Store

    release = read_release(Store(store), number).model_dump(mode="json")
    if as_json:
        console.emit_json(release)
    else:
        console.show_table(
            f"Release {release['number']}", ["field", "value"], [[k, str(v)] for k, v in release.items()]
        )


@releases_app.command("promote")
def releases_promote(
    store: StoreOption,
    report: Annotated[str, typer.Argument(help="Version of the report to release.")],
    gate: Annotated[
        bool,
        typer.Option(help="Refuse the promotion if MAP, recall or known items drop by more than the limits."),
    ] = True,
    max_map_drop: Annotated[float, typer.Option(min=0.0, max=1.0, help="Maximum drop of the MAP.")] = 0.01,
    max_recall_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Maximum drop of the recall of the index.")
    ] = 0.02,
    max_known_drop: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Maximum drop of the share of changed scans that find themselves first."),
    ] = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Promote the models and the index that a report measured to the current release."""
    from mrcg.releases.release import Gate, promote
    from mrcg.storage.store import Store

    opened = Store(store)
    limits = Gate(map_drop=max_map_drop, recall_drop=max_recall_drop, known_drop=max_known_drop) if gate else None
    outcome = promote(opened, opened.find(f"reports/{report}").version, limits)
    if as_json:
        console.emit_json(outcome.model_dump(mode="json"))
    else:
        console.say(outcome.why)


@releases_app.command("rollback")
def releases_rollback(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Release to go back to; the previous one by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an earlier release current again."""
    from mrcg.releases.release import rollback
    from mrcg.storage.store import Store

    release = rollback(Store(store), number)
    if as_json:
        console.emit_json(release.model_dump(mode="json"))
    else:
        console.say(f"release {release.number} is current: {release.reason}")


@releases_app.command("diff")
def releases_diff(
    store: StoreOption,
    before: Annotated[int, typer.Argument(help="Number of a release.")],
    after: Annotated[
        int | None, typer.Argument(help="Number of the other release; the current one by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the differences of two releases, including settings and counts."""
    from mrcg.releases.release import diff, read_release
    from mrcg.storage.store import Store

    opened = Store(store)
    first, second = read_release(opened, before), read_release(opened, after)
    changes = diff(opened, first, second)
    if as_json:
        console.emit_json([change.model_dump() for change in changes])
        return
    if not changes:
        console.say(f"releases {first.number} and {second.number} are identical")
        return
    rows = [[change.what, change.before, change.after] for change in changes]
    numbers = [str(first.number), str(second.number)]
    console.show_table(f"Release {numbers[0]} to {numbers[1]}", ["changed", *numbers], rows)
