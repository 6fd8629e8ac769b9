"""The commands ``mrcg releases``."""

from __future__ import annotations

from typing import Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, StoreOption

releases_app = typer.Typer(no_args_is_help=True, help="Which release serves: list, show, compare, promote, roll back.")


@releases_app.command("list")
def releases_list(store: StoreOption, as_json: JsonOption = False) -> None:
    """All releases, the current one last."""
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
            *(str(r.number), r.created, r.protocol, f"{100 * r.reranked_map:.1f}", r.encoder, r.index, r.reranker),
            f"{r.reason}, parts are gone" if missing[r.number] else r.reason,
        ]
        for r in releases
    ]
    console.show_table(
        "Releases",
        ["release", "created", "protocol", "MAP", "encoder", "index", "reranker", "why"],
        rows,
        ["release", "MAP"],
    )


@releases_app.command("show")
def releases_show(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Of the release; the current one by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """One release and what it pins."""
    from mrcg.releases.release import read_release
    from mrcg.storage.store import Store

    release = read_release(Store(store), number).model_dump(mode="json")
    if as_json:
        console.emit_json(release)
    else:
        console.show_table(f"Release {release['number']}", ["what", "value"], [[k, str(v)] for k, v in release.items()])


@releases_app.command("promote")
def releases_promote(
    store: StoreOption,
    report: Annotated[str, typer.Argument(help="Version of the report that speaks for the release.")],
    gate: Annotated[bool, typer.Option(help="Refuse where MAP or recall falls below the current release's.")] = True,
    max_map_drop: Annotated[float, typer.Option(min=0.0, max=1.0, help="How far the MAP may fall.")] = 0.01,
    max_recall_drop: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How far the index's recall may fall.")
    ] = 0.02,
    as_json: JsonOption = False,
) -> None:
    """Make the models that a report measured the current release."""
    from mrcg.releases.release import Gate, promote
    from mrcg.storage.store import Store

    opened = Store(store)
    limits = Gate(map_drop=max_map_drop, recall_drop=max_recall_drop) if gate else None
    outcome = promote(opened, opened.find(f"reports/{report}").version, limits)
    if as_json:
        console.emit_json(outcome.model_dump(mode="json"))
    else:
        console.say(outcome.why)


@releases_app.command("rollback")
def releases_rollback(
    store: StoreOption,
    number: Annotated[int | None, typer.Argument(help="Release to go back to; the one before by default.")] = None,
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
    after: Annotated[int | None, typer.Argument(help="And of another; the current one by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What two releases differ in, down to settings and counts."""
    from mrcg.releases.release import diff, read_release
    from mrcg.storage.store import Store

    opened = Store(store)
    one, two = read_release(opened, before), read_release(opened, after)
    changes = diff(opened, one, two)
    if as_json:
        console.emit_json([change.model_dump() for change in changes])
        return
    if not changes:
        console.say(f"releases {one.number} and {two.number} are alike")
        return
    rows = [[change.what, change.before, change.after] for change in changes]
    console.show_table(f"Release {one.number} to {two.number}", ["what", str(one.number), str(two.number)], rows)
