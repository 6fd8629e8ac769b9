import contextlib
import gc
import gzip
import io
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.unit.imaging.breaking import READ, SECRET, breaking_read
from tests.unit.imaging.test_raster import encoded, slice_of

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.execution import sandbox
from mrcg.execution.sandbox import start_child, without_cause
from mrcg.imaging import isolated_reader, readers
from mrcg.imaging.isolated_reader import IsolatedReader, make_decoder

ROOT = Path(__file__).parents[3]
SETTINGS = ReadSettings(max_side=128)
MEMORY = 2**30
GOOD, OTHER = encoded(slice_of()), encoded(slice_of(50))

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to see whether a child lives")


class Breaking(IsolatedReader):
    """A reader whose child decodes with the decoder of `breaking`."""

    def _start(self):
        self._child, self._pipe = start_child("tests.unit.imaging.breaking", self._settings, self._memory)
        return self._pipe


@pytest.fixture(scope="module")
def breaking():
    with pytest.MonkeyPatch.context() as patch, Breaking(SETTINGS, 60, 2**28) as one:
        patch.setenv("PYTHONPATH", str(ROOT))
        yield one


@pytest.fixture(scope="module")
def direct():
    with IsolatedReader(SETTINGS, 60, MEMORY) as one:
        yield one


def reason(call, data):
    with pytest.raises(ImageError) as caught:
        call(data)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, (EOFError, OSError))
    assert SECRET not in str(caught.value)
    return caught.value.reason


def equal(one, two):
    assert [(a.frame, a.facts, a.pixels.tobytes()) for a in one.slices] == [
        (b.frame, b.facts, b.pixels.tobytes()) for b in two.slices
    ]
    return list(one.refused) == list(two.refused)


def ended(child):
    """Return whether the process of a pidfd ends; wait for it."""
    try:
        return bool(select.select([child], [], [], 60)[0])
    finally:
        os.close(child)


VOLUME = np.random.default_rng(0).integers(0, 900, (20, 20, 20), dtype=np.int16)
VOLUME[:, :, 4] = 0


@pytest.mark.parametrize(
    "data", [GOOD, OTHER, encoded(slice_of(300)), nibabel.Nifti1Image(VOLUME, np.eye(4)).to_bytes()]
)
def test_the_reading_is_the_same_as_without_isolation(direct, data):
    assert equal(direct.read(data), readers.read(data, SETTINGS))


@pytest.mark.parametrize("data", [b"", b"words", GOOD[:300], encoded(np.full((40, 40), 7, np.uint8))])
def test_the_refusal_is_the_same_as_without_isolation(direct, data):
    with pytest.raises(ImageError) as caught:
        readers.read(data, SETTINGS)
    expected = caught.value
    with pytest.raises(ImageError) as caught:
        direct.read(data)
    assert (caught.value.reason, str(caught.value)) == (expected.reason, str(expected))


@pytest.mark.parametrize("data", [b"crash", b"exit", b"raise"])
def test_a_crash_refuses_the_file_and_the_next_one_is_read(breaking, data):
    assert reason(breaking.read, data) == "crashed"
    assert equal(breaking.read(b"good"), READ)


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"memory", "too_much_memory"), (b"pieces", "too_much_memory"), (b"deep", "unreadable")],
)
def test_a_file_over_the_memory_limit_is_refused_and_the_child_survives(breaking, data, expected):
    breaking.read(b"good")
    child = breaking._child.pid
    assert reason(breaking.read, data) == expected
    assert equal(breaking.read(b"good"), READ)
    assert breaking._child.pid == child


def test_a_child_that_times_out_is_replaced(breaking):
    breaking.read(b"good")
    child = os.pidfd_open(breaking._child.pid)
    breaking._seconds = 0.2
    assert reason(breaking.read, b"hang") == "timeout"
    assert ended(child)
    breaking._seconds = 60
    assert equal(breaking.read(b"good"), READ)


def test_error_causes_and_decoder_output_stay_in_the_child(breaking, capfd):
    assert reason(breaking.read, b"quote") == "undecodable"
    breaking.read(b"talk")
    assert SECRET not in "".join(capfd.readouterr())


def png(levels):
    out = io.BytesIO()
    Image.fromarray(levels).save(out, "PNG")
    return out.getvalue()


def test_real_files_over_the_memory_limit_are_refused():
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(300, dtype=np.uint8)[:, None, None], (300, 300, 300)))
    volume = gzip.compress(nibabel.Nifti1Image(ramp, np.eye(4)).to_bytes(), 1)
    large = png(np.tile(np.arange(256, dtype=np.uint16) * 100, (7000, 28))[:, :7000])
    with IsolatedReader(SETTINGS, 60, 2**28) as narrow:
        for data in (volume, large):
            assert len(data) < 2**20
            assert reason(narrow.read, data) == "too_much_memory"
            assert equal(narrow.read(GOOD), readers.read(GOOD, SETTINGS))


def test_the_child_ends_with_its_reader_and_a_later_read_starts_another():
    with IsolatedReader(SETTINGS, 60, MEMORY) as one:
        one.read(GOOD)
        child = os.pidfd_open(one._child.pid)
        one.close()
        assert ended(child)
        assert equal(one.read(OTHER), readers.read(OTHER, SETTINGS))
        child = os.pidfd_open(one._child.pid)
    assert ended(child)
    one.close()


@pytest.mark.parametrize("data", [b"good", b"hang"])
def test_the_child_ends_when_its_parent_is_killed(data):
    code = f"""
import sys
from mrcg.config.settings import ReadSettings
from mrcg.execution.sandbox import start_child
child, pipe = start_child("tests.unit.imaging.breaking", ReadSettings(), {MEMORY})
pipe.send_bytes({data!r})
print(child.pid, flush=True)
sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    with parent:
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert ended(child)


def test_a_child_that_died_between_two_files_refuses_neither():
    with IsolatedReader(SETTINGS, 60, MEMORY) as one:
        one.read(GOOD)
        one._child.kill()
        one._child.wait()
        assert equal(one.read(OTHER), readers.read(OTHER, SETTINGS))


def test_a_reader_outlives_the_thread_that_first_used_it():
    with IsolatedReader(SETTINGS, 60, MEMORY) as one:
        thread = threading.Thread(target=one.read, args=(GOOD,))
        thread.start()
        thread.join()
        with contextlib.suppress(subprocess.TimeoutExpired):
            one._child.wait(1)
        child = one._child.pid
        assert equal(one.read(OTHER), readers.read(OTHER, SETTINGS))
        assert one._child.pid == child


def test_errors_have_no_cause_and_memory_and_depth_become_reasons(monkeypatch):
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as inner:
            raise ImageError("undecodable", "no decoder takes it") from inner
    except ImageError as error:
        plain = without_cause(error)
    assert (plain.__cause__, plain.__context__, plain.__traceback__) == (None, None, None)
    monkeypatch.setattr(isolated_reader, "read", breaking_read)
    assert reason_of(make_decoder(SETTINGS), b"memory") == "too_much_memory"
    assert reason_of(make_decoder(SETTINGS), b"deep") == "unreadable"


def reason_of(call, data):
    with pytest.raises(ImageError) as caught:
        call(data)
    return caught.value.reason


def test_a_slow_start_of_the_child_is_reported(monkeypatch):
    monkeypatch.setattr(sandbox, "START_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="did not start: not ready after 0 s"):
        start_child("mrcg.imaging.isolated_reader", SETTINGS, MEMORY)


@pytest.mark.filterwarnings("ignore")
def test_a_child_that_dies_before_it_is_ready_is_reported():
    caught = None
    try:
        start_child("mrcg.no_such_module", SETTINGS, MEMORY)
    except Exception as error:
        caught = type(error)
    gc.collect()  # the warning about a child that was not waited for must appear here, not in another test
    assert caught is RuntimeError


@pytest.mark.parametrize("name", ["random", "json", "pydicom", "faiss", "numpy", "mrcg"])
def test_modules_of_the_working_folder_are_not_imported(tmp_path, monkeypatch, name):
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a script of the user')")
    monkeypatch.chdir(tmp_path)
    with IsolatedReader(SETTINGS, 30.0, MEMORY) as reader:
        assert reader.read(GOOD).slices
