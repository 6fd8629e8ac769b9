"""Retrieval pictures like paper Fig. 6: the query on the left, then its hits; irrelevant hits have a red frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from mrcg.imaging.slices import Grey

TILE, GAP, CAPTION, FRAME = 112, 8, 46, 3
EMPTY = "#eef2f5"
TEXT, BACKGROUND, MUTED = "#1b2733", "#ffffff", "#66757f"
RIGHT, WRONG, NEUTRAL = "#009e73", "#d55e00", "#8aa0b2"  # Okabe-Ito palette: safe for colour-blind readers


@dataclass(frozen=True)
class Panel:
    """One image with its caption.

    Attributes:
        pixels: grey pixels, scaled down to fit the tile; None draws an empty tile.
        caption: first line below the tile.
        note: smaller text below it, on one line or two.
        relevant: colour of the frame, ``RIGHT`` or ``WRONG``; None draws a neutral frame.
    """

    pixels: Grey | None
    caption: str
    note: str = ""
    relevant: bool | None = None


@dataclass(frozen=True)
class PanelRow:
    """A query and its hits, best first."""

    query: Panel
    hits: Sequence[Panel]


def retrieval_picture(rows: Sequence[PanelRow], title: str) -> bytes:
    """Draw the rows below a title and return the picture as PNG bytes. There must be at least one row."""
    columns = max(len(row.hits) for row in rows)
    step = TILE + GAP
    width = 2 * GAP + step + 2 * GAP + columns * step
    header = 40
    canvas = Image.new("RGB", (width, header + len(rows) * (TILE + CAPTION + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((2 * GAP, 10), title, TEXT, font=ImageFont.load_default(16))
    line_x = 2 * GAP + step + GAP // 2
    draw.line((line_x, header, line_x, canvas.height - GAP), MUTED)
    for number, row in enumerate(rows):
        top = header + number * (TILE + CAPTION + GAP)
        _draw_panel(canvas, draw, 2 * GAP, top, row.query)
        for rank, hit in enumerate(row.hits):
            _draw_panel(canvas, draw, 4 * GAP + step + rank * step, top, hit)
    out = io.BytesIO()
    canvas.save(out, "PNG", optimize=True)
    return out.getvalue()


def _draw_panel(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, panel: Panel) -> None:
    if panel.pixels is None:
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), EMPTY)
        _draw_caption(draw, left, top, panel)
        return
    colour = NEUTRAL if panel.relevant is None else RIGHT if panel.relevant else WRONG
    draw.rectangle((left - FRAME, top - FRAME, left + TILE + FRAME - 1, top + TILE + FRAME - 1), colour)
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), "black")
    image = Image.fromarray(panel.pixels)
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    canvas.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))
    _draw_caption(draw, left, top, panel)


def _draw_caption(draw: ImageDraw.ImageDraw, left: int, top: int, panel: Panel) -> None:
    draw.text((left, top + TILE + FRAME + 1), _fit(draw, panel.caption, 12), TEXT, font=ImageFont.load_default(12))
    for number, line in enumerate(_two_lines(draw, panel.note, 10)):
        draw.text((left, top + TILE + FRAME + 16 + 12 * number), line, MUTED, font=ImageFont.load_default(10))


def _two_lines(draw: ImageDraw.ImageDraw, text: str, size: int) -> list[str]:
    """Break a text after a comma into at most two lines of a tile's width, each shortened where it must be."""
    parts = text.split(", ")
    first = parts.pop(0)
    while parts and _fit(draw, f"{first}, {parts[0]}", size) == f"{first}, {parts[0]}":
        first = f"{first}, {parts.pop(0)}"
    return [_fit(draw, line, size) for line in (f"{first}," if parts else first, ", ".join(parts)) if line]


def _fit(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """Shorten a text with an ellipsis until it fits the width of a tile."""
    font = ImageFont.load_default(size)
    if draw.textlength(text, font) <= TILE:
        return text
    while text and draw.textlength(text + "…", font) > TILE:
        text = text[:-1]
    return text + "…"
