"""Parts of the HTML pages of reports: style, figures, escaped text and numbers."""

from __future__ import annotations

import base64
import html

from mrcg.evaluation.figures import Drawing
from mrcg.metrics.bootstrap import Interval

STYLE = """
:root{color-scheme:light dark;--ink:#1b2733;--faint:#5b6b78;--line:#dde4ea;--paper:#fff;--tile:#f3f6f9;--mark:#0072b2;
--warn:#8a5a00;--warnpaper:#fff6e0}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--faint:#9fb0bf;--line:#34414d;--paper:#182129;--tile:#202b35;
--mark:#6db8ea;--warn:#f0c36a;--warnpaper:#2d2818}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:64rem;
padding:2rem 1.2rem 4rem}
h1{font-weight:650;line-height:1.2;margin:0 0 .3rem}h2{margin:2.6rem 0 .6rem;font-weight:600}h3{margin:1.8rem 0 .4rem}
p,li{max-width:46rem}.faint{color:var(--faint)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(14rem,1fr));gap:1rem;margin:1.4rem 0;padding:0}
.tile{background:var(--tile);border-radius:.6rem;padding:1rem 1.2rem;max-width:none}
.tile b{display:block;font-size:2.1rem;line-height:1.2;color:var(--mark)}
.warn{background:var(--warnpaper);border-left:.3rem solid var(--warn);padding:.5rem 1rem .5rem 2.2rem;margin:1rem 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--faint);padding-bottom:.3rem}
th,td{padding:.3rem 1.1rem .3rem 0;border-top:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{font-weight:600}
figure{margin:1.2rem 0}figure img{max-width:100%;height:auto;display:block;border-radius:.4rem}
figcaption{color:var(--faint);font-size:.92rem;max-width:46rem;margin-top:.4rem}
code{font-size:.92em}
@media print{body{max-width:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""


def figure(drawing: Drawing, caption: str) -> str:
    """Return a figure that follows the reader's colour scheme."""
    light, dark = (image_uri("image/svg+xml", data) for data in (drawing.light, drawing.dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{escaped(drawing.description)}" src="{light}"></picture>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def image_uri(kind: str, data: bytes) -> str:
    """Return an image as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def bounds(interval: Interval) -> str:
    """Return an interval of shares in percent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def out_of_ten(interval: Interval) -> str:
    """Return an interval of shares as hits out of ten."""
    return f"{10 * interval.low:.1f} to {10 * interval.high:.1f}"


def number(value: float | None) -> str:
    """Return a number with four digits; ``none`` for None."""
    return "none" if value is None else f"{value:.4g}"


def escaped(value: str) -> str:
    """Return text with HTML's special characters escaped."""
    return html.escape(value, quote=True)
