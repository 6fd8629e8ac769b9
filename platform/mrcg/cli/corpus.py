"""The commands ``mrcg corpus`` and ``mrcg keys``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrcg.cli import console
from mrcg.cli.console import JsonOption, StoreOption
from mrcg.errors import SourceError, UsageError

if TYPE_CHECKING:
    from mrcg.corpus.report import Inventory

keys_app = typer.Typer(no_args_is_help=True, help="Create keys for pseudonyms and signatures.")
corpus_app = typer.Typer(no_args_is_help=True, help="Report on a corpus and its quarantined files.")


@keys_app.command("new")
def keys_new(
    kind: Annotated[str, typer.Option("--kind", help="pseudonym (replaces patient ids) or signing (signs receipts).")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the key to this new file, readable by its owner only.")
    ] = None,
) -> None:
    """Create a key and print it or write it to a file; it is stored nowhere else."""
    from mrcg.privacy import pseudonyms, signing

    kinds = {
        "pseudonym": (pseudonyms.new_key, pseudonyms.ENVIRONMENT, "orphan every pseudonym made with the old key"),
        "signing": (signing.new_signing_key, signing.ENVIRONMENT, "not verify signatures made with the old key"),
    }
    if kind not in kinds:
        raise UsageError(f"--kind {kind}: the kinds are {', '.join(kinds)}")
    new_key, variable, loss = kinds[kind]
    if out is None:
        console.say(new_key())
        return
    try:
        # Created exclusively and readable by the owner only: an existing key is never overwritten.
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_key() + "\n")
    except FileExistsError as error:
        raise UsageError(f"--out {out} already exists: a new key would {loss}; choose another file") from error
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror}") from error
    console.say(f"{kind} key written to {out}: set {variable}={out} to use it, and keep a copy in a safe place")


@corpus_app.command("report")
def corpus_report(
    store: StoreOption,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Version of the corpus; the newest by default.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--source", help="Source of the corpus; lists its quarantined files and, with --out, shows them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write an HTML page with pictures. The pictures show scans.")
    ] = None,
    max_bad_fraction: Annotated[
        float | None,
        typer.Option("--max-bad-fraction", min=0.0, max=1.0, help="Fail if a larger fraction of files is bad."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count scans by class, site, plane, sequence and split, duplicates, and quarantined files by reason."""
    from mrcg.corpus.report import inventory_page, inventory_picture, newest_corpus, refused_files, take_inventory
    from mrcg.imaging.contact_sheet import Panel
    from mrcg.privacy.pseudonyms import pseudonyms_from_environment
    from mrcg.storage.store import Store

    opened = Store(store)
    manifest = opened.find(f"corpus/{corpus}") if corpus else newest_corpus(opened)
    inventory = take_inventory(opened, manifest)
    refused = refused_files(opened, manifest, source, pseudonyms_from_environment()) if source else {}
    if as_json:
        console.emit_json(inventory.model_dump(mode="json"))
    else:
        _show_inventory(inventory, refused)
    if out is not None:
        panels = {
            reason: [Panel(pixels, key.rsplit("/", 1)[-1], detail) for key, detail, pixels in files]
            for reason, files in refused.items()
        }
        console.write_file(out, inventory_page(inventory, inventory_picture(opened, manifest, panels)))
        hint = "" if source or not inventory.reasons else "; --source adds pictures of quarantined files"
        console.err.print(f"page: {out}{hint}", highlight=False, soft_wrap=True)
    if max_bad_fraction is not None and inventory.bad_fraction > max_bad_fraction:
        raise SourceError(
            f"corpus {inventory.version}: {inventory.bad_files} of {inventory.files} files are bad "
            f"({100 * inventory.bad_fraction:.1f} %, the limit is {100 * max_bad_fraction:g} %): "
            "fix the source and ingest it again"
        )


@corpus_app.command("migrate")
def corpus_migrate(
    store: StoreOption,
    corpus: Annotated[
        str | None, typer.Option("--corpus", help="Version of the corpus; the newest by default.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a corpus of an earlier privacy policy to the present one without its source; `reindex` extends it."""
    from mrcg.corpus.report import newest_corpus
    from mrcg.pipeline.rebuild import migrate_corpus
    from mrcg.privacy.pseudonyms import pseudonyms_from_environment
    from mrcg.stages.counts import CorpusCounts
    from mrcg.storage.store import Store

    opened = Store(store)
    opened.check_writable()
    base = opened.find(f"corpus/{corpus}") if corpus else newest_corpus(opened)
    made = migrate_corpus(opened, base, pseudonyms_from_environment())
    counts, before = made.counts_as(CorpusCounts), base.counts_as(CorpusCounts)
    if as_json:
        console.emit_json({"corpus": made.version, "counts": counts.model_dump(mode="json")})
        return
    console.say(
        f"corpus/{made.version}: {counts.images} scans of {counts.patients} patients ({before.patients} before). "
        "`mrcg ingest`, `mrcg run` and `mrcg reindex` of the same source with the same settings extend it; "
        "with the source at hand they read all of it again instead if you do not migrate"
    )


def _show_inventory(inventory: Inventory, refused: Mapping[str, Sequence[tuple[str, str, Any]]]) -> None:
    nested = {"by", "reasons", "splits", "version"}
    facts = [[name.replace("_", " "), _format_value(value)] for name, value in inventory if name not in nested]
    console.show_table(f"Corpus {inventory.version}", ["item", "count"], facts, ["count"])
    groups = {**inventory.by, **{f"split, {name}": counts for name, counts in inventory.splits.items()}}
    rows = [[name, value, str(count)] for name, counts in groups.items() for value, count in counts.items()]
    console.show_table("Scans", ["by", "value", "count"], rows, ["count"])
    if inventory.reasons:
        reasons = [[reason, str(count)] for reason, count in inventory.reasons.items()]
        console.show_table("Quarantine", ["reason", "count"], reasons, ["count"])
    for reason, files in refused.items():
        for key, detail, _ in files:
            console.say(f"{reason}: {key}: {detail}")


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)
