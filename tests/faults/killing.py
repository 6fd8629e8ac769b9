"""Work in a process of its own that ends with SIGKILL at a drawn moment.

A forkserver has imported what is slow once; a child is there in milliseconds. What it kills itself by is the number of
changes that it made on disk: seen from there, every half-done state of a store has its moment.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mrcg.api.requests import SearchParams
from mrcg.execution.executor import silent
from mrcg.releases.verify import verify_store
from mrcg.retrieval.local import LocalPipeline
from mrcg.storage.store import Store

#: What changes a folder, or makes a change last.
CHANGES = ("mkdir", "fsync", "link", "replace", "unlink", "remove", "rmdir")
#: Imported once, by the server that all children come from. Ray is not among them.
PRELOADED = (
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "pytest",
    "sklearn.manifold",
    "mrcg.evaluation.evaluate",
    "mrcg.evaluation.html_report",
    "mrcg.index_build.build",
    "mrcg.retrieval.local",
    "mrcg_jobs.stages.build_graphs",
    "mrcg_jobs.stages.build_index",
    "mrcg_jobs.stages.embed",
    "mrcg_jobs.erasure",
    "mrcg_jobs.stages.evaluate",
    "mrcg_jobs.stages.split",
)
_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Moment:
    """The n-th change on disk (from 0), just before it is done or just after."""

    number: int
    after: bool


@dataclass(frozen=True)
class Ended:
    """How a child ended: killed, or with so many changes in so many seconds."""

    killed: bool
    changes: int
    seconds: float


class _Counting:
    """Counts changes on disk below a folder; at a moment it ends the process."""

    def __init__(self, moment: Moment | None) -> None:
        self.moment = moment
        self.count = 0
        self._lock = threading.Lock()
        for name in CHANGES:
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            with self._lock:
                number, self.count = self.count, self.count + 1
                self._die_at(Moment(number, False))
                try:
                    return change(*args, **more)
                finally:
                    self._die_at(Moment(number, True))

        return counted

    def _die_at(self, moment: Moment) -> None:
        if moment == self.moment:
            os.kill(os.getpid(), signal.SIGKILL)


def _live(act: Callable[[], object], moment: Moment | None, end: Connection) -> None:
    try:
        counting = _Counting(moment)
        begun = time.monotonic()
        act()
        end.send(Ended(False, counting.count, time.monotonic() - begun))
    except BaseException:
        end.send(traceback.format_exc())


def run(act: Callable[[], object], moment: Moment | None = None, seconds: float | None = None) -> Ended:
    """Do something (a partial of a module's function) in a child; killed at a moment, or after some seconds."""
    here, there = _children.Pipe(duplex=False)
    child = _children.Process(target=_live, args=(act, moment, there))
    child.start()
    there.close()
    if seconds is not None:
        child.join(seconds)
        child.kill()
    # A child that is killed sends nothing: its end of the pipe closes with it.
    try:
        said = here.recv()
    except EOFError:
        said = None
    child.join()
    here.close()
    if child.exitcode == -signal.SIGKILL:
        return Ended(True, 0, 0.0)
    assert isinstance(said, Ended), f"the child ended with {child.exitcode}: {said}"
    return said


def copy_of(store: Store, folder: Path) -> Store:
    """Another store with the same content, and the same times of its files."""
    shutil.copytree(store.root, folder)
    return Store(str(folder))


def files_of(store: Store) -> dict[str, bytes]:
    """All files of a store with their content; a killed write's leftovers are none."""
    files = [path for path in Path(store.root).rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(store.root)): path.read_bytes() for path in files}


@dataclass
class Killing:
    """Kills one operation again and again, and looks at what it left.

    Attributes:
        act: does the operation on a store.
        fresh: makes a store to do it on, from a number.
        sound: looks at a store after each kill.
        finished: looks at a store on which it was done at last, after one kill or several.
        rng: draws the moments.
    """

    act: Callable[[Store], Callable[[], object]]
    fresh: Callable[[int], Store]
    sound: Callable[[Store], None]
    finished: Callable[[Store], None]
    rng: random.Random
    kills: int = 0

    def undisturbed(self) -> tuple[Store, Ended]:
        """Done once by a child that nobody kills."""
        store = self.fresh(0)
        return store, run(self.act(store))

    def kill(self, times: int, whole: Ended, in_a_row: int = 2, timers: int = 0) -> None:
        """Kill it so many times, at most so many in a row before it may end; the last ones by a timer from outside."""
        number = 0
        while self.kills < times:
            number += 1
            store = self.fresh(number)
            for _ in range(in_a_row):
                if self.kills == times or not self._once(store, whole, times - self.kills <= timers):
                    break
                self.sound(store)
            assert not run(self.act(store)).killed
            self.sound(store)
            self.finished(store)
            shutil.rmtree(store.root)

    def _once(self, store: Store, whole: Ended, by_timer: bool) -> bool:
        if by_timer:
            seconds = self.rng.uniform(0, whole.seconds)
            ended = run(self.act(store), seconds=seconds)
            print(f"{store.root}: {seconds:.3f} s, {ended}")
        else:
            moment = Moment(self.rng.randrange(whole.changes), self.rng.random() < 0.5)
            ended = run(self.act(store), moment)
            print(f"{store.root}: {moment}, {ended}")
        self.kills += ended.killed
        return ended.killed


def assert_sound(store: Store, image: bytes) -> None:
    """Every file of every visible version is whole, and the current release answers."""
    assert verify_store(store, silent).problems == ()
    assert len(LocalPipeline.open(store).search(image, SearchParams(k=5)).hits) == 5
