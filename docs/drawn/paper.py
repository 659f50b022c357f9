"""What all pictures of the documentation are drawn on."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from chronomask.report.drawing import INK, MUTED

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"


def sheet(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """A white figure of ``width`` × ``height`` inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_facecolor("white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.spines["left"].set_visible(False)
    return figure, list(axes.flat)


def headed(axes: Axes, title: str, x_label: str = "", y_label: str = "") -> None:
    """Title at the left above the axes, the y label under it, to be read with a straight neck."""
    axes.set_title(f"{title}\n" if y_label else title, loc="left", size=9.5, weight="bold")
    if y_label:
        axes.text(0, 1.03, y_label, transform=axes.transAxes, color=MUTED, size=8, va="bottom")
    axes.set_xlabel(x_label)


def per_cent(axes: Axes, x: bool = False) -> None:
    """Per cent on the y axis, and on the x axis if asked."""
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    if x:
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def label(axes: Axes, x: float, y: float, text: str, colour: str = INK, **more: object) -> None:
    """A small label beside a line, on a white ground that keeps grid lines out of it."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    look = {"va": "center", "color": colour, "size": 8, "bbox": ground, **more}
    axes.text(x, y, text, **look)


def save(figure: Figure, path: Path) -> int:
    """Write the figure as SVG without date or version; its size in bytes."""
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    # A hundredth of a point is finer than any screen; more digits only make the files large.
    svg = re.sub(r'(?<=["( ])-?\d+\.\d{3,}(?=["), \n])', _rounded, buffer.getvalue())
    svg = re.sub(r"DejaVuSans-(Bold-)?", lambda m: "B" if m[1] else "S", svg)
    path.write_text(re.sub(r"\n\s+", "\n", svg), encoding="utf-8", newline="\n")
    return path.stat().st_size


def _rounded(number: re.Match[str]) -> str:
    value = float(number[0])
    return number[0] if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")
