"""Whatever a text of this repository points to exists: pages, sections, modules, places in the paper, pictures."""

import importlib
import re
import subprocess
import sys

import pytest
from tests.conftest import REPOSITORY

from mrcg.errors import MissingExtraError

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
CODE = [
    path
    for folder in ("platform", "jobs", "serve", "deploy", "docs", "tests")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if path.suffix in {".py", ".yaml", ".proto"} and "_pb2" not in path.name
]
#: Put together here, so that this file does not hold what it looks for.
OUTSIDE = "DES" + "IGN"
#: A file of this repository; what a command will write (``--out``) need not be there.
FILE = re.compile(r"(?<![\w/.-])(?<!--out )((?:platform|jobs|serve|tests|deploy|docs)/[\w./-]+\.\w+)")
#: Named where it is said that it must not exist.
ABSENT = "platform/__init__.py"
PAPER = re.compile(r"paper(?:,|'s)? (§[IVX]+(?:-[A-Z])?|Eq\. \d+|Fig\. \d+|Table [IVX]+)")


def texts():
    return [(path, path.read_text(encoding="utf-8")) for path in (*PAGES, *CODE)]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_nothing_cites_a_document_that_is_not_here():
    assert [str(path) for path, text in texts() if re.search(rf"\b{OUTSIDE}\b", text)] == []


def test_pages_and_sections_that_the_code_cites_exist():
    cited = 0
    for path, text in texts():
        for page, anchor in re.findall(r"\bdocs/([a-z-]+\.md)(?:#([\w-]+))?", text):
            cited += 1
            assert (DOCS / page).is_file(), f"{path}: docs/{page}"
            assert not anchor or anchor in anchors(DOCS / page), f"{path}: docs/{page}#{anchor}"
    assert cited > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name}: {target}"


def test_places_of_the_paper_are_on_the_page_about_the_method():
    listed = set(PAPER.findall((DOCS / "method.md").read_text("utf-8").split("## The paper")[1]))
    cited = {place for path, text in texts() for place in PAPER.findall(text)}
    assert len(cited) > 5
    assert cited <= listed


def test_modules_and_names_that_texts_mention_exist():
    for path, text in texts():
        prose = re.findall(r"``(mrcg\w*\.[\w.]+)``|`(mrcg\w*\.[\w.]+)`", text)
        for name in {one or other for one, other in prose}:
            # `mrcg.v1` is the package of the protocol buffers, `mrcg.commands` the group of entry points.
            if name.startswith("mrcg.v1") or name == "mrcg.commands":
                continue
            assert resolves(name), f"{path}: {name}"


def resolves(name):
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except (ModuleNotFoundError, MissingExtraError):
            continue
        for attribute in parts[count:]:
            if not hasattr(value, attribute):
                return attribute in getattr(value, "model_fields", {}) or attribute in getattr(
                    value, "__annotations__", {}
                )
            value = getattr(value, attribute)
        return True
    return False


def test_files_of_ours_that_texts_mention_exist():
    for path, text in texts():
        for name in FILE.findall(text):
            assert name == ABSENT or (REPOSITORY / name).exists(), f"{path}: {name}"


def test_pictures_and_table_of_the_architecture_are_those_of_the_code():
    done = subprocess.run(
        [sys.executable, "docs/architecture.py", "--check"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_names_are_the_fields():
    """Names that were metaphors, or that stood for several things: none comes back."""
    gone = re.compile(
        r"^\s*(?:class|(?:async )?def) (_?(?:Own|Ray)?Hands|_?Desk|_?Residents|_?Following|_?Judge|_?Ways|_?Wanted|_?Sent|_?Near"
        r"|_?Found|_?take_on|_?draw_up|_?bury|_?told|_?asked|_?give_back|_?by_heart)\b",
        re.M,
    )
    for path, text in texts():
        if "tests" not in path.parts and path.suffix == ".py":
            assert gone.findall(text) == [], path
