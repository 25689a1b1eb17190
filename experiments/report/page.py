"""The page of a report: one HTML file with everything in it, plotly's library included."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experiments.analysis.figures import Look
    from experiments.report.sections import Section

_SVG_DASHES = {"-": "none", "--": "6 3", "-.": "6 2 2 2", ":": "2 2"}
_TEMPLATE = Path(__file__).with_name("page.html")


def page(title: str, opening: str, look: Mapping[str, Look], sections: Sequence[Section]) -> str:
    """
    Return the page.

    Parameters
    ----------
    title
        Its heading.
    opening
        HTML of what stands above the plots: sentences and tables.
    look
        The arms, each with a switch that hides it in all plots.
    sections
        The plots.

    Returns
    -------
    str
        HTML that asks the network for nothing.
    """
    body = [f"<h1>{escape(title)}</h1>", opening]
    if look:
        body.append(f'<div id="switches">{"".join(_switch(arm, look[arm]) for arm in look)}</div>')
    body += [_place(section) for section in sections]
    parts = {
        "TITLE": escape(title),
        "BODY": "\n".join(body),
        "LIBRARY": get_plotlyjs(),
        "SECTIONS": _data(sections),
    }
    html = _TEMPLATE.read_text(encoding="utf-8")
    for name, text in parts.items():
        html = html.replace(f"@@{name}@@", text, 1)
    return html


def _switch(arm: str, look: Look) -> str:
    line = (
        f'<line x1="0" y1="5" x2="22" y2="5" stroke="{look.colour}" stroke-width="4" '
        f'stroke-dasharray="{_SVG_DASHES[look.dash]}"/>'
    )
    swatch = f'<svg width="22" height="10" aria-hidden="true">{line}</svg>'
    name = escape(arm)
    return f'<label><input type="checkbox" checked value="{name}">{swatch}{name}</label>'


def _place(section: Section) -> str:
    first = _first(section)
    menu = ""
    if len(section.views) > 1:
        options = "".join(
            f"<option{' selected' if k == first else ''}>{escape(view.label)}</option>"
            for k, view in enumerate(section.views)
        )
        menu = f'<select id="menu-{section.key}" autocomplete="off">{options}</select>'
    return (
        f"<h2>{escape(section.title)}</h2>\n<p>{escape(section.text)}</p>\n{menu}\n"
        f'<div id="plot-{section.key}"></div>'
    )


def _first(section: Section) -> int:
    """The view that is shown first: the first one that is printed too."""
    return next((k for k, view in enumerate(section.views) if view.printed), 0)


def _data(sections: Sequence[Section]) -> str:
    """The plots as JSON that may stand in a script element."""
    entries = []
    for section in sections:
        head = json.dumps({"key": section.key, "shown": _first(section)})
        views = ",".join(to_json_plotly(view.plot()) for view in section.views)
        entries.append(f'{head[:-1]}, "views": [{views}]}}')
    return f"[{','.join(entries)}]".replace("<", "\\u003c")
