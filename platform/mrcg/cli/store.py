"""The commands ``mrcg store``, ``mrcg verify``, ``mrcg gc`` and ``mrcg plan``."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, StoreOption
from mrcg.errors import IntegrityError, UsageError

store_app = typer.Typer(no_args_is_help=True, help="What is in a store, and why a version exists.")


@store_app.command("ls")
def store_ls(store: StoreOption, as_json: JsonOption = False) -> None:
    """All complete versions in a store."""
    from mrcg.storage.manifest import KINDS
    from mrcg.storage.store import Store

    opened = Store(store)
    manifests = [opened.manifest(kind, version) for kind in KINDS for version in opened.versions(kind)]
    if as_json:
        console.emit_json([{"kind": m.kind, "version": m.version, "counts": m.counts} for m in manifests])
        return
    rows = [
        [m.kind, m.version, f"{sum(f.size for f in m.files) / 1e6:.1f}", console.short_counts(m.counts)]
        for m in manifests
    ]
    console.show_table(opened.url, ["kind", "version", "MB", "counts"], rows, ["MB"])


@store_app.command("show")
def store_show(
    store: StoreOption,
    artefact: Annotated[str, typer.Argument(help="A version, its first letters, or kind/version.")],
    as_json: JsonOption = False,
) -> None:
    """Why a version exists: settings, inputs, counts, files."""
    from mrcg.storage.store import Store

    manifest = Store(store).find(artefact)
    if as_json:
        console.emit_json(json.loads(manifest.to_bytes()))
        return
    rows = [
        ["made by", f"mrcg {manifest.code_version}, schema {manifest.schema_number}"],
        *[[f"from {kind}", version] for kind, version in manifest.inputs.items()],
        *[[f"setting {key}", json.dumps(value)] for key, value in manifest.settings.items()],
        *[[f"count {key}", json.dumps(value)] for key, value in manifest.counts.items()],
        ["content", manifest.content],
        *[[f"file {f.name}", f"{f.size:,} bytes, SHA-256 {f.sha256[:16]}…"] for f in manifest.files],
    ]
    console.show_table(f"{manifest.kind}/{manifest.version}, files in {manifest.folder}", ["what", "value"], rows)


def verify(store: StoreOption, as_json: JsonOption = False) -> None:
    """Hash everything again: is every file the one that was published, is every release whole?"""
    from mrcg.releases.verify import verify_store
    from mrcg.storage.store import Store

    opened = Store(store)
    with console.StageBars(quiet=as_json) as bars:
        found = verify_store(opened, bars.stage("verify"))
        bars.finish("verify")
    if as_json:
        console.emit_json({**found.__dict__, "sound": not found.problems})
    else:
        for line in (*found.problems, *found.notes):
            console.say(line)
        console.say(f"{found.versions} versions, {found.files} files, {found.size / 1e6:.1f} MB hashed")
    if found.problems:
        raise IntegrityError(f"{opened.url}: {len(found.problems)} problems; the first: {found.problems[0]}")


def gc(
    store: StoreOption,
    keep_releases: Annotated[
        int | None, typer.Option("--keep-releases", min=1, help="Only the newest so many releases hold their parts.")
    ] = None,
    grace_days: Annotated[float, typer.Option("--grace-days", min=0.0, help="Versions younger than this stay.")] = 14.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove what no release, no grace period and no running job holds."""
    from mrcg.releases.gc import sweep
    from mrcg.storage.store import Store

    swept = sweep(Store(store), keep_releases, grace_days, dry_run)
    if as_json:
        console.emit_json({**swept.__dict__, "dry_run": dry_run})
        return
    for name in (*swept.attempts, *swept.versions, *swept.files):
        console.say(f"{'would remove' if dry_run else 'removed'} {name}")
    console.say(
        f"{len(swept.versions)} versions, {len(swept.attempts)} unfinished folders, {len(swept.files)} loose files "
        f"{'would go' if dry_run else 'removed'}, {swept.freed_bytes / 1e6:.1f} MB"
    )


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def bytes_of(text: str) -> int:
    """Bytes of a size as people write it: 64GB, 1.5 TiB, 500_000_000.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"--memory-per-node {text}: write a size as 64GB, 1.5TiB or a number of bytes")
    return int(float(match[1].replace("_", "")) * _UNITS[match[2]])


def plan(
    images: Annotated[str, typer.Option("--images", help="Vectors: 50_000_000.")],
    memory: Annotated[str, typer.Option("--memory-per-node", help="64GB, 1.5TiB, …")] = "16GiB",
    recall: Annotated[float, typer.Option("--recall", min=0.5, max=1.0, help="Recall@50 that is wanted.")] = 0.95,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Of an embedding.")] = 1000,
    kind: Annotated[str | None, typer.Option("--kind", help="Of index; chosen where none is given.")] = None,
    shards: Annotated[int, typer.Option("--shards", min=0, help="0 chooses.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say which index, how many shards and nodes a gallery needs and what it costs; needs no data."""
    from mrcg.index_build.sizing import KINDS, plan_index

    if not re.fullmatch(r"[0-9][0-9_]*", images) or int(images) < 1:
        raise UsageError(f"--images {images}: write a number, 50_000_000")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind}: one of {', '.join(KINDS)}")
    found = plan_index(int(images), dim, bytes_of(memory), recall, next((k for k in KINDS if k == kind), None), shards)
    if as_json:
        console.emit_json({**found.__dict__, "shape": found.shape.model_dump()})
        return
    gib = 2**30
    rows = [
        ["index", f"{found.shape.kind}, {found.shape.dim} dimensions"],
        ["shards", f"{found.shards}"],
        ["nodes", f"{found.nodes}"],
        ["memory of the fullest node", f"{found.node_bytes / gib:.2f} GiB"],
        ["memory of one building task", f"{found.build_bytes / gib:.2f} GiB"],
        ["disk", f"{found.disk_bytes / gib:.2f} GiB"],
        ["build", f"{found.build_seconds / 3600:.2f} core hours"],
        ["one query", f"{1000 * found.query_seconds:.2f} ms of a core, over all shards"],
        *[["why", line] for line in found.why],
    ]
    console.show_table(f"{found.count:,} images, recall@50 {recall:g}", ["what", "value"], rows)
