"""The command ``mrcg``. Other packages add commands through entry points; they are imported only when called."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mrcg.cli import console
from mrcg.cli.console import JsonOption
from mrcg.cli.corpus import corpus_app, keys_app
from mrcg.cli.releases import releases_app
from mrcg.cli.store import gc, plan, store_app, verify
from mrcg.errors import MrcgError, UsageError, missing_extra
from mrcg.stages import registry
from mrcg.stages.registry import Stage
from mrcg.version import __version__

if TYPE_CHECKING:
    from mrcg.api.responses import Answer

#: Order of the commands in the help text.
ORDER = (
    "sample", "keys", "run", *(stage.name for stage in registry.STAGES if stage.help), "corpus", "audit", "reproduce",
    "plan", "reindex", "serve", "query", "releases", "erase", "store", "verify", "gc",
)  # fmt: skip


def _plugin_commands() -> dict[str, Callable[[], Any]]:
    """Return what loads each command, by its name: one per entry point, and one per stage of the registry."""
    points = {point.name: point.load for point in entry_points(group="mrcg.commands")}
    for point in entry_points(group="mrcg.stage_commands"):
        points |= {stage.name: partial(_load_stage, point.load, stage) for stage in registry.STAGES if stage.help}
    return points


def _load_stage(load: Callable[[], Callable[[Stage], Any]], stage: Stage) -> Any:
    return load()(stage)


class _LazyGroup(TyperGroup):
    """Adds the commands of other packages, from the entry-point group ``mrcg.commands``, and those of the stages."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = {*super().list_commands(ctx), *_plugin_commands()}
        return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        load = _plugin_commands().get(cmd_name)
        if own is not None or load is None:
            return own
        loaded = load()
        if isinstance(loaded, typer.Typer):  # a group of commands
            return typer.main.get_command(loaded)
        wrapper = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        wrapper.command(cmd_name)(loaded)
        return typer.main.get_command(wrapper)


app = typer.Typer(cls=_LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(releases_app, name="releases")
app.add_typer(keys_app, name="keys")
app.add_typer(corpus_app, name="corpus")
app.add_typer(store_app, name="store")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks and debug logs; can be given anywhere.")
    ] = False,
) -> None:
    """Retrieve similar MRI scans with a triplet CNN, a sharded index and a graph reranker, on Ray."""
    if version:
        console.say(__version__)
        raise typer.Exit


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    images: Annotated[int, typer.Option("--images", min=1, help="Number of images.")] = 400,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed; the same seed writes the same files.")] = 1,
    kind: Annotated[str, typer.Option("--format", help="File format: png, dicom, nifti or mat.")] = "png",
    as_json: JsonOption = False,
) -> None:
    """Write phantom scans by class, with several slices per patient and realistic headers in every format."""
    from mrcg.corpus.sources import MANIFEST
    from mrcg.imaging.samples import SampleFormat, write_manifest, write_samples

    if kind not in SampleFormat.__members__:
        raise UsageError(f"--format {kind}: must be one of {', '.join(SampleFormat.__members__)}")
    files, written = write_samples(folder, images, seed, SampleFormat(kind))
    manifest = write_manifest(folder, MANIFEST, images, seed, SampleFormat(kind))
    if as_json:
        facts = {"folder": str(folder), "images": images, "files": files, "written": written}
        console.emit_json({**facts, "manifest": None if manifest is None else str(manifest)})
    else:
        console.say(
            f"{images} phantoms in {files} files in {folder} ({written} written, {files - written} already there)"
            + ("" if manifest is None else f"; {manifest} lists them with their lesions and can be a source, too")
        )


@app.command()
def query(
    image: Annotated[Path, typer.Argument(help="Image file to search for.")],
    url: Annotated[str | None, typer.Option("--url", help="URL of a running service to search.")] = None,
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="MRCG_STORE", help="Store whose current release is searched in this process."),
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits.")] = 10,
    rerank: Annotated[bool, typer.Option(help="Order the hits by the reranker, or by distance.")] = True,
    group_by: Annotated[
        str, typer.Option("--group-by", help="Return one image per patient or study; none returns all images.")
    ] = "none",
    label: Annotated[list[str] | None, typer.Option("--label", help="Only images of this class. Repeatable.")] = None,
    site: Annotated[list[str] | None, typer.Option("--site", help="Only images of this site. Repeatable.")] = None,
    sequence: Annotated[
        list[str] | None, typer.Option("--sequence", help="Only images of this sequence. Repeatable.")
    ] = None,
    plane: Annotated[list[str] | None, typer.Option("--plane", help="Only images of this plane. Repeatable.")] = None,
    years: Annotated[
        str | None, typer.Option("--years", help="Only images of this year or range, e.g. 2015 or 2010-2020.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a PNG picture of the hits.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the images most similar to one image, best first."""
    from mrcg.cli.query import result_picture, search_params, search_service, search_store

    try:
        data = image.read_bytes()
    except OSError as error:
        raise UsageError(f"{image} cannot be read: {error.strerror}") from error
    if (url is None) == (store is None):
        if url is None:
            raise UsageError("give --url of a running service, or --store")
        store = None  # --url is explicit and overrides MRCG_STORE
    params = search_params(k, rerank, group_by, (label, site, sequence, plane), years)
    pictures = out is not None
    result = search_service(url, data, params, pictures) if url else search_store(str(store), data, params, pictures)
    if as_json:
        console.emit_json(result.answer.model_dump(mode="json"))
    else:
        _show_answer(result.answer)
    if out is not None:
        console.write_file(out, result_picture(data, result))
        console.err.print(f"picture: {out}", highlight=False, soft_wrap=True)


def _show_answer(answer: Answer) -> None:
    # Where no probability is known, the raw score takes its place; it is not one.
    likely = "score" if all(hit.probability is None for hit in answer.hits) else "probability"
    rows = [
        [
            str(hit.rank),
            hit.label or "",
            "" if hit.similarity is None else f"{hit.similarity:.2f}",
            "" if (value := getattr(hit, likely)) is None else f"{value:.2f}",
            f"{hit.distance:.2f}",
            str(hit.ann_rank),
            hit.image_id,
        ]
        for hit in answer.hits
    ]
    numbers = ["rank", "similarity", likely, "distance", "ANN rank"]
    columns = ["rank", "label", "similarity", likely, "distance", "ANN rank", "image"]
    console.show_table(f"Release {answer.release}, {console.ORDERS[answer.order]}", columns, rows, numbers)
    if answer.probability_withheld is not None:
        console.say(f"no probability: {answer.probability_withheld}")
    if answer.out_of_distribution:
        console.say("out of distribution: no image of the gallery is near this image; do not rely on the hits")
    console.say(", ".join(f"{stage} {ms:.1f} ms" for stage, ms in answer.milliseconds.items()))


app.command()(verify)
app.command()(gc)
app.command()(plan)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 success, 1 failure, 2 wrong usage or settings, 130 interrupted."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not debug:
        # These warnings of libraries are for developers.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        code = app(args, prog_name="mrcg", standalone_mode=False)
    except KeyboardInterrupt:
        code = _fail("interrupted; run the same command to resume", 130)
    except (MrcgError, ModuleNotFoundError) as error:
        known = missing_extra(error) if isinstance(error, ModuleNotFoundError) else error
        if debug or known is None:
            raise
        code = _fail(str(known), known.exit_code)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # an error of the argument parser
            error.show()
            code = int(error.exit_code)
        elif type(error).__name__ == "Abort":
            code = _fail("interrupted; run the same command to resume", 130)
        else:
            code = _fail(f"unexpected {type(error).__name__}: {error} (--debug shows the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(line: str, code: int) -> int:
    console.err.print(f"mrcg: {' '.join(line.split())}", highlight=False, markup=False, soft_wrap=True, style="red")
    return code
