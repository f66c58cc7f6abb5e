"""HTML files that need nothing else: no server, no scripts, no other files."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from utils.files import shown
from utils.plots import figure_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser then loads nothing


def new_page(title: str, style: str) -> tuple[Element, Element]:
    """A page, and its body, which begins with the title; `style` is its CSS."""
    page = Element("html", lang="en")
    head = SubElement(page, "head")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    add(head, "title", title)
    add(head, "style", style)
    body = SubElement(page, "body")
    add(body, "h1", title)
    return page, body


def page_text(page: Element) -> str:
    """The text of the file."""
    return shown(f"<!DOCTYPE html>\n{tostring(page, encoding='unicode', method='html')}\n")


def add(parent: Element, tag: str, text: str) -> None:
    """Adds an element that holds `text`."""
    SubElement(parent, tag).text = text


def add_table(parent: Element, heads: Iterable[str | Element], rows: Iterable[Sequence[str | Element]]) -> None:
    """Adds a table, in a box of the class "wide"."""
    table = SubElement(SubElement(parent, "div", {"class": "wide"}), "table")
    for tag, cells in (("th", heads), *(("td", row) for row in rows)):
        line = SubElement(table, "tr")
        for cell in cells:
            place = SubElement(line, tag)
            if isinstance(cell, Element):
                place.append(cell)
            else:
                place.text = cell


def add_picture(parent: Element, figure: Figure, text: str) -> None:
    """Adds a figure, which is embedded in the page; `text` says what it shows."""
    content = base64.b64encode(figure_bytes(figure, "svg")).decode("ascii")
    SubElement(parent, "img", src=f"data:image/svg+xml;base64,{content}", alt=text)
