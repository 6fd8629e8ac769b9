"""Phantoms as files: a source of scans that anybody may see."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from mrcg.errors import UsageError
from mrcg.imaging.phantom import phantoms


def write_samples(folder: Path, images: int, seed: int) -> int:
    """Write ``<class>/patient-<p>-slice-<s>.png`` files, the same for the same arguments.

    A file that is there already with the same bytes is left alone: so its time, and with it the
    version of a corpus made from it, does not change.

    Returns:
        How many files were written.

    Raises:
        UsageError: the folder cannot be written.
    """
    written = 0
    for phantom in phantoms(images, seed):
        buffer = io.BytesIO()
        Image.fromarray(phantom.pixels).save(buffer, "PNG")
        path = folder / phantom.label / f"patient-{phantom.patient:04d}-slice-{phantom.slice_number}.png"
        try:
            if path.is_file() and path.read_bytes() == buffer.getvalue():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        except OSError as error:
            raise UsageError(f"{folder} cannot be written: {error.strerror}") from error
        written += 1
    return written
