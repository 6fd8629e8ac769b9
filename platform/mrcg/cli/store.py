"""The commands ``mrcg store``, ``mrcg verify``, ``mrcg gc`` and ``mrcg plan``."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, StoreOption
from mrcg.errors import IntegrityError, UsageError

store_app = typer.Typer(no_args_is_help=True, help="List the versions in a store and show how they were made.")


@store_app.command("ls")
def store_ls(store: StoreOption, as_json: JsonOption = False) -> None:
    """List all complete versions in a store."""
    from mrcg.stages.registry import artefact_kinds
    from mrcg.storage.store import Store

    opened = Store(store)
    manifests = [opened.manifest(kind, version) for kind in artefact_kinds() for version in opened.versions(kind)]
    if as_json:
        console.emit_json([{"kind": m.kind, "version": m.version, "counts": m.counts.stated()} for m in manifests])
        return
    rows = [
        [m.kind, m.version, f"{sum(f.size for f in m.files) / 1e6:.1f}", console.short_counts(m.counts)]
        for m in manifests
    ]
    console.show_table(opened.url, ["kind", "version", "MB", "counts"], rows, ["MB"])


@store_app.command("show")
def store_show(
    store: StoreOption,
    artefact: Annotated[str, typer.Argument(help="A version, its first characters, or kind/version.")],
    as_json: JsonOption = False,
) -> None:
    """Show how a version was made: settings, inputs, counts and files."""
    from mrcg.storage.store import Store

    manifest = Store(store).find(artefact)
    if as_json:
        console.emit_json(json.loads(manifest.to_bytes()))
        return
    rows = [
        ["made by", f"mrcg {manifest.code_version}, schema {manifest.schema_number}"],
        *[[f"from {kind}", version] for kind, version in manifest.inputs.items()],
        *[[f"setting {key}", json.dumps(value)] for key, value in manifest.settings.items()],
        *[[f"count {key}", json.dumps(value)] for key, value in manifest.counts.stated().items()],
        ["content", manifest.content],
        *[[f"file {f.name}", f"{f.size:,} bytes, SHA-256 {f.sha256[:16]}…"] for f in manifest.files],
    ]
    console.show_table(f"{manifest.kind}/{manifest.version}, files in {manifest.folder}", ["field", "value"], rows)


def verify(store: StoreOption, as_json: JsonOption = False) -> None:
    """Hash all files, compare them with their manifests, and check that all releases are complete."""
    from mrcg.releases.verify import verify_store
    from mrcg.storage.store import Store

    opened = Store(store)
    with console.StageBars(quiet=as_json) as bars:
        verified = verify_store(opened, bars.stage("verify"))
        bars.finish("verify")
    if as_json:
        console.emit_json({**verified.__dict__, "sound": not verified.problems})
    else:
        for line in (*verified.problems, *verified.notes):
            console.say(line)
        console.say(f"{verified.versions} versions, {verified.files} files, {verified.size / 1e6:.1f} MB hashed")
    if problems := verified.problems:
        raise IntegrityError(f"{opened.url}: {len(problems)} problems; the first: {problems[0]}")


def gc(
    store: StoreOption,
    keep_releases: Annotated[
        int | None,
        typer.Option(
            "--keep-releases", min=1, help="Keep the versions of this many newest releases; of all releases by default."
        ),
    ] = None,
    grace_days: Annotated[
        float | None,
        typer.Option("--grace-days", min=0.0, help="Keep versions younger than this many days; two weeks by default."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove versions that no release, grace period or running job needs."""
    from mrcg.releases.gc import GRACE_DAYS, sweep
    from mrcg.storage.store import Store

    swept = sweep(Store(store), keep_releases, GRACE_DAYS if grace_days is None else grace_days, dry_run)
    if as_json:
        console.emit_json({**swept.__dict__, "dry_run": dry_run})
        return
    for name in (*swept.attempts, *swept.versions, *swept.files):
        console.say(f"{'would remove' if dry_run else 'removed'} {name}")
    console.say(
        f"{len(swept.versions)} versions, {len(swept.attempts)} abandoned attempts, {len(swept.files)} unreferenced "
        f"files {'would be removed' if dry_run else 'removed'}, {swept.freed_bytes / 1e6:.1f} MB"
    )


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 64GB, 1.5 TiB or 500_000_000.

    ``pydantic.ByteSize`` reads ``1..5GB`` as 1 byte, and ``64 G B`` as 64 GB.

    Raises:
        UsageError: the text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if match is None or match[2] not in _UNITS:
        raise UsageError(f"--memory-per-node {text}: write a size such as 64GB, 1.5TiB or a number of bytes")
    return int(float(match[1].replace("_", "")) * _UNITS[match[2]])


def plan(
    images: Annotated[str, typer.Option("--images", help="Number of images, e.g. 50_000_000.")],
    memory: Annotated[str, typer.Option("--memory-per-node", help="Memory of a node, e.g. 64GB or 1.5TiB.")] = "16GiB",
    recall: Annotated[float, typer.Option("--recall", min=0.5, max=1.0, help="Recall@50 to plan for.")] = 0.95,
    dim: Annotated[int, typer.Option("--dim", min=1, help="Dimensions of an embedding.")] = 1000,
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="Kind of index: flat, hnsw, ivf_flat, ivf_sq or opq_ivf_pq; chosen if omitted."),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", min=0, help="Number of shards; 0 chooses it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Plan an index for a number of images: kind, shards, nodes and cost. Needs no data."""
    from mrcg.index_build.sizing import KINDS, plan_index

    if not re.fullmatch(r"[0-9][0-9_]*", images) or int(images) < 1:
        raise UsageError(f"--images {images}: write a number such as 50_000_000")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind}: must be one of {', '.join(KINDS)}")
    index_kind = next((k for k in KINDS if k == kind), None)
    index_plan = plan_index(int(images), dim, parse_size(memory), recall, index_kind, shards)
    if as_json:
        console.emit_json({**index_plan.__dict__, "shape": index_plan.shape.model_dump()})
        return
    gib = 2**30
    rows = [
        ["index", f"{index_plan.shape.kind}, {index_plan.shape.dim} dimensions"],
        ["shards", f"{index_plan.shards}"],
        ["nodes", f"{index_plan.nodes}"],
        ["memory of the fullest node", f"{index_plan.node_bytes / gib:.2f} GiB"],
        ["memory of the largest build task", f"{index_plan.build_bytes / gib:.2f} GiB"],
        ["disk", f"{index_plan.disk_bytes / gib:.2f} GiB"],
        ["build", f"{index_plan.build_seconds / 3600:.2f} core hours"],
        ["one query", f"{1000 * index_plan.query_seconds:.2f} ms of a core, over all shards"],
        *[["why", line] for line in index_plan.why],
    ]
    console.show_table(f"{index_plan.count:,} images, recall@50 {recall:g}", ["item", "value"], rows)
