"""Output of the commands: tables, lines and JSON on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from mrcg.errors import UsageError
from mrcg.stages.counts import Counts

StoreOption = Annotated[
    str, typer.Option("--store", envvar="MRCG_STORE", help="Store: a folder or s3://bucket/prefix.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="Name of a shipped recipe, or path of a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: a.b=value. Repeatable.")]

out = Console()
err = Console(stderr=True)


def emit_json(value: Any) -> None:
    """Print a value as one line of JSON on stdout."""
    out.out(json.dumps(value, ensure_ascii=False), highlight=False)


def say(line: str) -> None:
    """Print a line on stdout, unchanged and without wrapping."""
    out.print(line, highlight=False, markup=False, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on stdout; columns named in ``right`` are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)


def write_file(path: Path, data: bytes) -> None:
    """Write the file of the option ``--out``.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from error


#: Orders of the hits in words, by ``Answer.order``.
ORDERS = {"ann": "by distance", "fused": "by score and distance", "score": "by score"}


def short_counts(counts: Counts) -> str:
    """Format counts as one line: mappings by their number of entries, without empty and hidden counts."""
    numbers = {
        key: value for key, value in counts.stated().items() if value not in (None, {}) and key not in counts.hidden
    }
    return ", ".join(f"{key} {_short(value)}" for key, value in numbers.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return str(len(value))
    if isinstance(value, list):
        return "/".join(map(str, value))
    return str(value)


class StageBars:
    """Progress bars on stderr, one for each stage; a line per stage if stderr is not a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = err.is_terminal and not quiet
        self._bars = Progress(
            SpinnerColumn(), TextColumn("{task.description:<15}"), BarColumn(30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("{task.fields[note]}", style="dim"), console=err, disable=not self._live,
        )  # fmt: skip
        self._bar_by_stage: dict[str, StageBar] = {}

    def __enter__(self) -> StageBars:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str) -> StageBar:
        """Show and return the bar of a stage that starts."""
        if not self._live and not self._quiet:
            err.print(f"{name} …", highlight=False)
        bar = StageBar(self._bars, self._bars.add_task(name, total=None, note=""))
        self._bar_by_stage[name] = bar
        return bar

    def finish(self, name: str) -> None:
        """Fill the bar of a finished stage; a skipped stage has no bar."""
        if name in self._bar_by_stage:
            self._bar_by_stage[name].finish()


class StageBar:
    """Progress bar of one stage; call it with the units done, their total and a note."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars = bars
        self._task = task

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` units; a total of 0 means that it is not known yet."""
        self._bars.update(self._task, completed=done, total=total or None, note=note)

    def finish(self) -> None:
        """Fill the bar."""
        self._bars.update(self._task, completed=1, total=1, note="done")
