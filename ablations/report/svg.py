"""From a Vega-Lite chart to a small static SVG that follows the page's colours, and from panels to one file."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from html import escape
from typing import Any

import altair
import vl_convert
from markupsafe import Markup

from ablations.report.palette import ROLE_OF, style_sheet

SVG = "http://www.w3.org/2000/svg"
# Measured like Liberation Sans, which comes with vl-convert; Arial and Helvetica have the same widths.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
GAP, COLUMNS = 16, 3
DECIMAL = re.compile(r"-?\d*\.\d+(?:e-?\d+)?")
KEPT = frozenset(
    [
        "d",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "cx",
        "cy",
        "r",
        "width",
        "height",
        "transform",
        "fill",
        "stroke",
        "stroke-width",
        "stroke-dasharray",
        "stroke-linecap",
        "opacity",
        "fill-opacity",
        "stroke-opacity",
        "font-size",
        "font-weight",
        "font-style",
        "text-anchor",
    ]
)
DEFAULTS = {"opacity": "1", "stroke-width": "1", "fill-opacity": "1", "stroke-opacity": "1", "text-anchor": "start"}


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a drawn element stands for.

    Attributes:
      title: shown when a pointer rests on it.
      data: attributes `data-*` of the element.
    """

    title: str
    data: Mapping[str, str | int]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
      description: what it shows, for those who cannot see it.
      body: SVG elements, without the outer `<svg>`.
      width, height: in pixels at scale 1.
    """

    description: str
    body: str
    width: int
    height: int

    @property
    def inline(self) -> Markup:
        """The panel as an element of an HTML page."""
        return Markup(
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(self.description)}">{self.body}</svg>'
        )


@dataclasses.dataclass(frozen=True)
class Figure:
    """Panels that belong together.

    Attributes:
      name: stem of its file.
      title, caption: the caption says what the marks are.
      panels: in reading order.
      columns: panels beside each other, at most.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int = COLUMNS

    def file(self) -> str:
        """The figure as one file of its own: panels in rows, colours for light and dark."""
        columns = min(self.columns, len(self.panels))
        rows = [self.panels[i : i + columns] for i in range(0, len(self.panels), columns)]
        column_width = max(panel.width for panel in self.panels)
        width = columns * column_width + (columns + 1) * GAP
        top, placed = GAP, []
        for row in rows:
            for i, panel in enumerate(row):
                x = GAP + i * (column_width + GAP)
                placed.append(
                    f'<svg x="{x}" y="{top}" width="{panel.width}" height="{panel.height}">{panel.body}</svg>'
                )
            top += max(panel.height for panel in row) + GAP
        return (
            f'<svg xmlns="{SVG}" viewBox="0 0 {width} {top}" width="{width}" height="{top}" role="img" '
            f'font-family="{FONT}"><title>{escape(self.title)}</title><desc>{escape(self.caption)}</desc>'
            f"<style>{style_sheet()}</style>{''.join(placed)}</svg>\n"
        )


def render(spec: Mapping[str, Any], marks: Mapping[str, Mark], description: str) -> Panel:
    """Draws one chart.

    Args:
      spec: Vega-Lite, with its data.
      marks: what the elements stand for, by the text of their `description` channel.
      description: see `Panel`.
    """
    version = "_".join(altair.SCHEMA_VERSION.split(".")[:2])
    root = ElementTree.fromstring(vl_convert.vegalite_to_svg(dict(spec), vl_version=version))
    width, height = (round(float(root.attrib[side])) for side in ("width", "height"))
    body = "".join(_written(child, marks) for child in root)
    return Panel(description, body, width, height)


def _written(element: ElementTree.Element, marks: Mapping[str, Mark]) -> str:
    """The element with what the page needs: shapes and text, colour classes, titles; accessibility roles of Vega
    and identifiers, which would collide on a page with many charts, are dropped."""
    tag = element.tag.removeprefix(f"{{{SVG}}}")
    if tag == "defs" or element.get("display") == "none" or element.get("d") in ("", "M0,0h0v0h0Z"):
        return ""
    if element.get("class") in ("background", "foreground") and not element.get("stroke") and not element.get("fill"):
        return ""
    mark = marks.get(element.get("aria-label", ""))
    inside = "".join(_written(child, marks) for child in element)
    text = escape(element.text or "", quote=False) if tag == "text" else ""
    if (tag == "g" and not inside) or (tag == "text" and not text.strip()):
        return ""
    attributes = _attributes(element)
    if mark:
        attributes += [f'data-{key}="{escape(str(value))}"' for key, value in sorted(mark.data.items())]
        text = f"<title>{escape(mark.title, quote=False)}</title>{text}"
    if tag == "g" and not attributes:
        return inside
    opening = " ".join([tag, *attributes])
    return f"<{opening}>{text}{inside}</{tag}>" if text or inside else f"<{opening}/>"


def _attributes(element: ElementTree.Element) -> list[str]:
    attributes, classes = [], []
    for key, value in element.attrib.items():
        if key not in KEPT or DEFAULTS.get(key) == value or (key == "transform" and value == "translate(0,0)"):
            continue
        if key in ("fill", "stroke") and value in ROLE_OF:
            classes.append(f"{key[0]}-{ROLE_OF[value]}")
        if key == "font-size":
            value = value.removesuffix("px")
        attributes.append(f'{key}="{escape(_rounded(value) if key in ("d", "transform") else value)}"')
    return [f'class="{" ".join(classes)}"', *attributes] if classes else attributes


def _rounded(path: str) -> str:
    """Coordinates to a tenth of a pixel."""
    return DECIMAL.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), path)
