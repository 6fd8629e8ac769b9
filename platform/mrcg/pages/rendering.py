"""Render HTML pages from the templates in this folder.

A page is one file without scripts or external resources. Jinja escapes everything that a template prints, so a label or
a file name with HTML in it is shown as text.
"""

from __future__ import annotations

import base64
import functools

import jinja2

from mrcg.metrics.bootstrap import Interval


def render(template: str, view: object) -> bytes:
    """Return a page as UTF-8.

    Args:
        template: name of a file in this folder.
        view: what the template reads, under the name ``view``.
    """
    return _environment().get_template(template).render(view=view).encode()


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mrcg.pages", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "bounds": bounds,
        "count": count,
        "data_uri": data_uri,
        "number": number,
        "percent": percent,
        "signed": signed,
        "tenths": tenths,
    }
    return environment


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent, without the sign."""
    return f"{100 * share:.{digits}f}"


def signed(share: float, digits: int = 1) -> str:
    """Return a change of a share in points, always with its sign."""
    return f"{100 * share:+.{digits}f}"


def tenths(share: float) -> str:
    """Return a share as hits out of ten."""
    return f"{10 * share:.1f}"


def bounds(interval: Interval) -> str:
    """Return an interval of shares in percent."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def count(value: int) -> str:
    """Return a whole number with separators of thousands."""
    return f"{value:,}"


def number(value: float | None) -> str:
    """Return a number with four digits; ``none`` for None."""
    return "none" if value is None else f"{value:.4g}"


def data_uri(data: bytes, kind: str) -> str:
    """Return an image of a kind such as ``image/png`` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
