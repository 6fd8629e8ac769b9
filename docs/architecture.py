"""Draw docs/architecture.md's pictures and table from the code.

python docs/architecture.py          rewrites docs/rooms.svg, docs/data-path.svg and the table
python docs/architecture.py --check  fails where they are not what the code says
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

from mrcg.config.settings import Config
from mrcg.stages.registry import pipeline_stages

DOCS = Path(__file__).parent
ROOT = DOCS.parent
SOURCES = {"mrcg": ROOT / "platform", "mrcg_jobs": ROOT / "jobs", "mrcg_serve": ROOT / "serve"}
PAGE, ROOMS, DATA_PATH = DOCS / "architecture.md", DOCS / "rooms.svg", DOCS / "data-path.svg"
BEGIN, END = "<!-- rooms -->", "<!-- /rooms -->"

WIDTH, BOX_HEIGHT, FLOOR_HEIGHT, MARGIN = 1180, 34, 92, 24
COLOURS = ("#2563a8", "#b4561f", "#2e7d4f", "#8b3a8f", "#9a7b16", "#3f6d78", "#a33a4a", "#5a5aa8", "#57702a")
#: The stages that answer a query, in the order of ``mrcg.retrieval.search.answer``.
SERVING = ("gateway", "embedder", "searcher", "reranker")

#: What a docstring says of pages of docs, where the table would repeat it.
REFERENCE = re.compile(r" \((?:see )?docs/[^)]*\)| See docs/\S+")

Arrows = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Box:
    """A box of a picture: its centre and width, in pixels."""

    x: float
    y: float
    width: float


def room_of(module: str) -> str:
    """``mrcg.corpus.sources`` -> ``corpus``; a shell is one room as a whole."""
    package, *rest = module.split(".")
    return rest[0] if package == "mrcg" and rest else package


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every module that a person wrote."""
    for package, source in SOURCES.items():
        for path in sorted((source / package).rglob("*.py")):
            if "_pb2" not in path.name:
                parts = path.relative_to(source).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                yield name, ast.parse(path.read_text("utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    """Our modules that a module imports, at its top or later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in SOURCES:
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module in SOURCES else node.module


def room_arrows() -> Arrows:
    """Which room imports which. The public face (``mrcg/__init__.py``) is not drawn: it imports only on demand."""
    arrows: dict[str, set[str]] = {}
    for name, tree in modules():
        if name == "mrcg":
            continue
        room = room_of(name)
        targets = {room_of(target) for target in imports(tree) if not target.endswith("__version__")} - {room, "mrcg"}
        arrows.setdefault(room, set()).update(targets)
    return {room: frozenset(targets) for room, targets in arrows.items()}


def purposes() -> dict[str, str]:
    """First sentence of the docstring of each room."""
    found = {}
    for name, tree in modules():
        package, *rest = name.split(".")
        if name != "mrcg" and ((package == "mrcg" and len(rest) == 1) or not rest):
            text = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            found[room_of(name)] = REFERENCE.sub("", text)
    return found


def loads() -> dict[str, list[str]]:
    """Kinds of artefact that each stage of the service reads of a release, by ``mrcg/retrieval/loaders.py``."""
    tree = next(tree for name, tree in modules() if name == "mrcg.retrieval.loaders")
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (stage := node.name.removesuffix("Loader").lower()) in SERVING:
            pins = {
                inner.attr
                for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute)
                and isinstance(inner.value, ast.Name)
                and inner.value.id == "release"
            }
            # ``release.index`` is a version of kind ``indexes``.
            found[stage] = [step.kind for step in pipeline_stages() if any(step.kind.startswith(pin) for pin in pins)]
    assert set(found) == set(SERVING[1:]), "a stage has no loader of its name"
    return found


def floors(arrows: Arrows) -> dict[str, int]:
    """Floor of each box: one above the highest that it needs.

    Raises:
        RecursionError: the arrows run in a circle.
    """
    found: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in found:
            found[name] = 1 + max((floor(target) for target in arrows[name]), default=0)
        return found[name]

    for name in sorted(arrows):
        floor(name)
    return found


def reduced(arrows: Arrows) -> Arrows:
    """The arrows without those that follow from others (the transitive reduction)."""

    def reach(name: str) -> set[str]:
        return {other for target in arrows[name] for other in (target, *reach(target))}

    return {
        name: frozenset(
            target for target in targets if not any(target in reach(other) for other in targets if other != target)
        )
        for name, targets in arrows.items()
    }


def placed(rows: Mapping[str, int], arrows: Arrows) -> dict[str, Box]:
    """A place for each box: on its floor, near the boxes that it needs."""
    height = max(rows.values())
    boxes: dict[str, Box] = {}
    for floor in range(1, height + 1):
        names = [name for name in rows if rows[name] == floor]

        def centre(name: str) -> float:
            xs = [boxes[target].x for target in arrows[name] if target in boxes]
            return sum(xs) / len(xs) if xs else WIDTH / 2

        names.sort(key=lambda name: (centre(name), name))
        gap = (WIDTH - 2 * MARGIN) / len(names)
        for number, name in enumerate(names):
            y = MARGIN + BOX_HEIGHT / 2 + (height - floor) * FLOOR_HEIGHT
            boxes[name] = Box(MARGIN + gap * (number + 0.5), y, 22 + 8.4 * len(name))
    return boxes


def rooms_picture(arrows: Arrows) -> str:
    """The rooms on their floors, each with arrows down to those that it imports (but those that follow from others)."""
    rows, drawn = floors(arrows), reduced(arrows)
    boxes = placed(rows, arrows)
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(sorted(boxes))}
    shapes = [
        _arrow(boxes[name], boxes[target], colours[name]) for name in sorted(drawn) for target in sorted(drawn[name])
    ]
    shapes += [_box(name, box, colours[name]) for name, box in sorted(boxes.items())]
    height = 2 * MARGIN + BOX_HEIGHT + (max(rows.values()) - 1) * FLOOR_HEIGHT
    return _svg("Rooms of the code and what each imports", height, shapes)


def data_picture() -> str:
    """Artefacts in the order of their stages, above the stages of the service that load them and answer a query."""
    kinds = ["source", *(stage.kind for stage in pipeline_stages())]
    inputs = {stage.kind: stage.inputs(Config()) or ("source",) for stage in pipeline_stages()}
    makers = {stage.kind: stage.name for stage in pipeline_stages()}
    answering = ["query scan", *SERVING, "ranked hits"]
    top, bottom = 170.0, 390.0
    boxes = {name: Box(_spread(n, len(kinds)), top, 22 + 8.4 * len(name)) for n, name in enumerate(kinds)}
    boxes |= {name: Box(_spread(n, len(answering)), bottom, 22 + 8.4 * len(name)) for n, name in enumerate(answering)}
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(boxes)}
    shapes = []
    for kind, names in inputs.items():
        for name in names:
            distance = kinds.index(kind) - kinds.index(name)
            straight = distance == 1
            shapes.append((_straight if straight else _arc)(boxes[name], boxes[kind], colours[name]))
    for first, last in pairwise(answering):
        shapes.append(_straight(boxes[first], boxes[last], COLOURS[0]))
    for stage, names in loads().items():
        shapes += [_arrow(boxes[name], boxes[stage], colours[name]) for name in names]
    shapes += [_box(name, box, colours[name]) for name, box in boxes.items()]
    shapes += [_note(boxes[kind], f"mrcg {maker}") for kind, maker in makers.items()]
    shapes.append(_note(Box(boxes["gateway"].x, bottom, 0), "pins a release"))
    return _svg("From a file to an answer", 440, shapes)


def _spread(number: int, count: int) -> float:
    gap = (WIDTH - 2 * MARGIN) / count
    return MARGIN + gap * (number + 0.5)


def _svg(title: str, height: float, shapes: Sequence[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    return "\n".join([*lines, *shapes, "</svg>", ""])


def _box(name: str, box: Box, colour: str) -> str:
    left, top = box.x - box.width / 2, box.y - BOX_HEIGHT / 2
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="#f7f8fa" stroke="{colour}" stroke-width="1.6"/>'
        f'<text x="{box.x:.1f}" y="{box.y + 5:.1f}" text-anchor="middle" fill="#1c2330">{escape(name)}</text>'
    )


def _note(box: Box, text: str) -> str:
    y = box.y + BOX_HEIGHT / 2 + 16
    # With a white edge: arrows pass behind it.
    return (
        f'<text x="{box.x:.1f}" y="{y:.1f}" text-anchor="middle" font-size="11" fill="#5b6472" stroke="#ffffff" '
        f'stroke-width="5" paint-order="stroke">{escape(text)}</text>'
    )


def _path(shape: str, colour: str) -> str:
    return (
        f'<path d="{shape}" fill="none" stroke="{colour}" stroke-opacity="0.75" stroke-width="1.3" '
        'marker-end="url(#head)"/>'
    )


def _straight(first: Box, last: Box, colour: str) -> str:
    return _path(f"M{first.x + first.width / 2:.1f} {first.y:.1f} H{last.x - last.width / 2:.1f}", colour)


def _arc(first: Box, last: Box, colour: str) -> str:
    """Above the boxes between: the farther, the higher."""
    start, end, y = first.x + 8, last.x - 8, first.y - BOX_HEIGHT / 2
    peak = y - 14 - (end - start) * 0.17
    return _path(f"M{start:.1f} {y:.1f} C{start:.1f} {peak:.1f} {end:.1f} {peak:.1f} {end:.1f} {y:.1f}", colour)


def _arrow(first: Box, last: Box, colour: str) -> str:
    start, end = first.y + BOX_HEIGHT / 2, last.y - BOX_HEIGHT / 2
    bend = (end - start) / 2
    return _path(
        f"M{first.x:.1f} {start:.1f} "
        f"C{first.x:.1f} {start + bend:.1f} {last.x:.1f} {end - bend:.1f} {last.x:.1f} {end:.1f}",
        colour,
    )


def table(arrows: Arrows) -> str:
    """The rooms from the ground up, what each is for, and all of its imports."""
    rows, texts = floors(arrows), purposes()
    lines = ["| floor | room | what it is for | imports |", "| ---: | --- | --- | --- |"]
    for name in sorted(rows, key=lambda name: (rows[name], name)):
        needs = ", ".join(f"`{target}`" for target in sorted(arrows[name])) or "nothing"
        lines.append(f"| {rows[name]} | `{name}` | {texts[name]} | {needs} |")
    return "\n".join(lines)


def written() -> dict[Path, str]:
    """Every file that this command writes, with its text."""
    rooms = room_arrows()
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        ROOMS: rooms_picture(rooms),
        DATA_PATH: data_picture(),
        PAGE: f"{before}{BEGIN}\n{table(rooms)}\n{END}{after}",
    }


def main(arguments: Sequence[str]) -> None:
    """Write the files, or check them."""
    for path, text in written().items():
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
        elif not path.exists() or path.read_text("utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} is not what the code says: run python docs/architecture.py")


if __name__ == "__main__":
    main(sys.argv[1:])
