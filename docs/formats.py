"""Write docs/formats.md: what becomes of every file that pydicom and nibabel carry for their own tests.

python docs/formats.py          rewrites the page
python docs/formats.py --check  fails where the page is not what the readers do
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mrcg.config.settings import ReadSettings
from mrcg.errors import ImageError
from mrcg.imaging.isolated_reader import IsolatedReader
from mrcg.imaging.readers import format_of
from mrcg.imaging.slices import Reading

PAGE = Path(__file__).with_name("formats.md")
FOLDERS = (("pydicom.data", "test_files"), ("nibabel", "tests/data"), ("nibabel.nicom", "tests/data"))
#: Many of these files are small on purpose, or say that they are screen shots.
SETTINGS = ReadSettings(min_side=1, allow_secondary_capture=True, allow_burned_in=True)
FORMATS = {"dicom": "DICOM", "nifti": "NIfTI", "matlab": "MATLAB, HDF5", "raster": "image", None: "other"}

INTRO = """# The test files of pydicom and nibabel

Real files that nobody here made: those that pydicom {pydicom} and nibabel {nibabel} carry for their own tests, and what
becomes of each. Read are grey DICOM (one frame of anything, all frames of MR), NIfTI volumes, MATLAB files of the
CE-MRI set, and images; [the corpus](corpus.md) says how. All else is refused with a reason: colour, series of volumes,
objects and headers without pixels, directories, files that are damaged or show nothing, pixels that no decoder takes,
other formats. A refused file stops no job.

They were read with `min_side` 1, and with screen shots and burned-in text allowed; as a source they would have more
refused. [A test](../tests/unit/imaging/test_reference_files.py) holds the pixels against those that pydicom and nibabel
read, and each reason against the file. [formats.py](formats.py) writes this page.
"""


def page() -> str:
    """The page, for the versions that are installed."""
    intro = INTRO.format(pydicom=version("pydicom"), nibabel=version("nibabel"))
    lines = ["| package | file | format | outcome |", "| --- | --- | --- | --- |"]
    lines += [f"| {package} | {file} | {kind} | {outcome} |" for package, file, kind, outcome in rows()]
    return "\n".join((intro, *lines, ""))


def rows() -> Iterator[tuple[str, str, str, str]]:
    """(package, file, format, outcome); equal ones below a subfolder, or of a format that is not read, share a row."""
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    with IsolatedReader(SETTINGS, 60.0, 2**30) as guard:
        for package, name, data in files():
            kind = FORMATS[format_of(data)]
            pattern = name
            if "/" in name:
                pattern = name.split("/")[0] + "/**"
            elif kind in ("other", FORMATS["matlab"]):
                pattern = "*" + Path(name).suffix if Path(name).suffix else name
            groups[package, pattern, kind, outcome(guard, data)].append(name)
    for (package, pattern, kind, what), names in groups.items():
        file = f"`{names[0]}`" if len(names) == 1 else f"`{pattern}` ({len(names)} files)"
        yield package, file, kind, what


def files() -> Iterator[tuple[str, str, bytes]]:
    """(package, name, content) of the files of both packages, in the order of their names; hidden ones left out."""
    for package, folder in FOLDERS:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent / folder
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            name = path.relative_to(root).as_posix()
            if "__pycache__" not in name and not path.name.startswith("."):
                yield package, name, path.read_bytes()


def outcome(guard: IsolatedReader, data: bytes) -> str:
    """How many slices a file gives, or why none."""
    try:
        reading: Reading = guard.read(data)
    except ImageError as error:
        return f"`{error.reason}`"
    count = len(reading.slices)
    reasons = sorted({one.reason for one in reading.refused})
    more = f", {len(reading.refused)} refused: {', '.join(f'`{reason}`' for reason in reasons)}" if reasons else ""
    return f"{count} slice{'s' * (count > 1)}{more}"


def main() -> None:
    """Rewrite or check the page."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
            sys.exit("docs/formats.md is not what the readers do; run python docs/formats.py")
        return
    PAGE.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
