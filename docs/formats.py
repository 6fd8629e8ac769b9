"""Write docs/formats.md: the outcome of reading every test file that comes with pydicom and nibabel.

python docs/formats.py          rewrites the page
python docs/formats.py --check  fails if the page differs from what the readers do
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
#: Many of these files are small on purpose, or are marked as screen captures.
SETTINGS = ReadSettings(min_side=1, allow_secondary_capture=True, allow_burned_in=True)
FORMATS = {"dicom": "DICOM", "nifti": "NIfTI", "matlab": "MATLAB, HDF5", "raster": "image", None: "other"}

INTRO = """# The test files of pydicom and nibabel

The outcome of reading the test files that come with pydicom {pydicom} and nibabel {nibabel}: real files that were not
made for this project. MRCG reads grey DICOM (single frames of any modality, all frames of MR), NIfTI volumes, MATLAB
files of the CE-MRI set, and images; see [Formats](corpus.md#formats). Everything else is refused with a reason:
colour, series of volumes, objects and headers without pixels, directories, files that are damaged or blank, pixels
that no decoder can decode, and other formats. A refused file does not stop a job.

The files were read with `min_side` 1, and with screen captures and burned-in text allowed. With the default settings,
more of them would be refused. [A test](../tests/unit/imaging/test_reference_files.py) compares the pixels with those
that pydicom and nibabel read, and checks each reason against the file. [formats.py](formats.py) generates this page.
"""


def page() -> str:
    """Return the page for the installed versions of both packages."""
    intro = INTRO.format(pydicom=version("pydicom"), nibabel=version("nibabel"))
    lines = ["| package | file | format | outcome |", "| --- | --- | --- | --- |"]
    lines += [f"| {package} | {file} | {kind} | {outcome} |" for package, file, kind, outcome in rows()]
    return "\n".join((intro, *lines, ""))


def rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield (package, file, format, outcome); equal rows of a subfolder, or of a format that is not read, merged."""
    groups: dict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    with IsolatedReader(SETTINGS, 60.0, 2**30) as reader:
        for package, name, data in files():
            kind = FORMATS[format_of(data)]
            pattern = name
            if "/" in name:
                pattern = name.split("/")[0] + "/**"
            elif kind in ("other", FORMATS["matlab"]):
                pattern = "*" + Path(name).suffix if Path(name).suffix else name
            groups[package, pattern, kind, outcome(reader, data)].append(name)
    for (package, pattern, kind, result), names in groups.items():
        file = f"`{names[0]}`" if len(names) == 1 else f"`{pattern}` ({len(names)} files)"
        yield package, file, kind, result


def files() -> Iterator[tuple[str, str, bytes]]:
    """Yield (package, name, content) of the files of both packages, ordered by name, without hidden files."""
    for package, folder in FOLDERS:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent / folder
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            name = path.relative_to(root).as_posix()
            if "__pycache__" not in name and not path.name.startswith("."):
                yield package, name, path.read_bytes()


def outcome(reader: IsolatedReader, data: bytes) -> str:
    """Return the number of slices that a file yields, or the reason why it is refused."""
    try:
        reading: Reading = reader.read(data)
    except ImageError as error:
        return f"`{error.reason}`"
    count = len(reading.slices)
    reasons = sorted({refusal.reason for refusal in reading.refused})
    more = f", {len(reading.refused)} refused: {', '.join(f'`{reason}`' for reason in reasons)}" if reasons else ""
    return f"{count} slice{'s' * (count > 1)}{more}"


def main() -> None:
    """Rewrite the page or, with ``--check``, check it."""
    expected = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != expected:
            sys.exit("docs/formats.md differs from what the readers do: run python docs/formats.py")
        return
    PAGE.write_text(expected, encoding="utf-8")


if __name__ == "__main__":
    main()
