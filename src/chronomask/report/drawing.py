"""How every figure looks: palette, axes, labels at the ends of lines, and SVG that never varies.

Panels are small and separate, so that a page lays them side by side on a laptop and one below the
other on a phone without shrinking their text. Nothing here touches pyplot or leaves settings
behind.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator

from chronomask.yardsticks import CONTENT, FUNCTION, OTHER, PUNCTUATION

__all__ = [
    "ARM_COLOURS",
    "GROUP_COLOURS",
    "INK",
    "LABEL_POINTS",
    "MUTED",
    "ArmLine",
    "EndLabel",
    "LegendEntry",
    "Picture",
    "appearance",
    "arm_colour",
    "arm_style",
    "arm_width",
    "compact",
    "contrast",
    "darker",
    "label_ends",
    "lines_panel",
    "panel",
    "shorten",
    "spread",
    "to_svg",
]

INK = "#22272e"
"""Colour of titles and of what is no arm's."""
MUTED = "#66707c"
"""Colour of axes and their words."""
GRID = "#e4e7eb"

# Okabe and Ito's palette, safe for colour-blind readers; the first arm, the baseline, is ink grey.
# Their yellow is left out: it cannot be read on white. Brown, violet and lime follow, chosen to be far
# from the others, for colour-blind readers too; later arms take the colours again with other line styles.
# Amber, sky and lime have little contrast with white. Darker, amber would be vermilion to colour-blind
# readers; names in a line's colour are darkened instead (`darker`).
ARM_COLOURS = (
    "#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b3a1e", "#7a3fb0",
    "#8fbf3f",
)  # fmt: skip
"""Of the arms in their order."""
# Plum, teal and grey differ in lightness as well as hue, and belong to no arm.
GROUP_COLOURS = {CONTENT: "#8a1c5f", FUNCTION: "#2a9296", PUNCTUATION: "#b98a2f", OTHER: "#9aa1a9"}
"""Of groups of word classes."""

MOST_LABELS = 8
"""Lines labelled at their ends; with more arms the legend alone tells them apart."""
_TEXT_CONTRAST = 4.5
"""Of text on white, as the WCAG 2 ask of small type."""
MOST_DOTS = 20
"""Dots of a seed along a line; of more points so many are drawn, the last among them."""

WIDTH_INCHES = 4.3
TEXT_POINTS = 9.5
LABEL_POINTS = 8.5
"""Size of all text but titles."""
_FONT = "DejaVu Sans"  # comes with matplotlib, so the same on every machine
_NO_FORMULAS: dict[Any, Any] = {"text.parse_math": False}  # names may have dollar signs in them


@dataclass(frozen=True, slots=True)
class EndLabel:
    """A label for the line that ends at (x, y) in data units; in italics if the line is ``faint``."""

    x: float
    y: float
    text: str
    colour: str
    faint: bool = False


@dataclass(frozen=True, slots=True)
class ArmLine:
    """An arm's line through (x, y) [N] in data units; ``index``: its place among the arms, for its looks.

    ``band``: lower and upper limits [N]. ``seeds``: x and y of single seeds, drawn as dots.
    """

    index: int
    name: str
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None
    seeds: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One key of a legend; ``mark`` is ``solid``, ``dashed``, ``dotted`` or ``dots``."""

    text: str
    colour: str
    mark: str = "solid"


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: its panels as SVG elements, its words, and every number plotted in it.

    ``key`` names its CSV file; ``rows`` hold str, int, float or None under ``columns``.
    """

    key: str
    title: str
    caption: str
    legend: tuple[LegendEntry, ...]
    panels: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


def arm_colour(index: int) -> str:
    """The colour of the arm at ``index``, the same in every figure and table."""
    return ARM_COLOURS[index % len(ARM_COLOURS)]


def arm_width(index: int, number: int) -> float:
    """Line width in points: earlier arms are wider, so that one still shows below its equal."""
    return 1.4 + 1.8 * (number - 1 - index) / max(number - 1, 3)


def arm_style(index: int) -> str:
    """The line style, by matplotlib's name, that tells arms apart once the colours are used up."""
    return ("solid", "dashed", "dotted")[index // len(ARM_COLOURS) % 3]


@contextmanager
def appearance() -> Iterator[None]:
    """Settings for everything drawn inside, whatever the user's own matplotlib settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # see to_svg
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "chronomask",
                "svg.fonttype": "path",  # the same picture with whatever fonts the reader has
                "font.family": _FONT,
                "font.size": TEXT_POINTS,
                **_NO_FORMULAS,
                "text.color": INK,
                "axes.edgecolor": MUTED,
                "axes.labelcolor": MUTED,
                "axes.labelsize": LABEL_POINTS,
                "axes.linewidth": 0.8,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": GRID,
                "grid.linewidth": 0.8,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelsize": LABEL_POINTS,
                "ytick.labelsize": LABEL_POINTS,
                "xtick.major.size": 3.0,
                "ytick.major.size": 0.0,
                "lines.linewidth": 1.7,
                "lines.solid_capstyle": "round",
            }
        )
        yield


def panel(
    title: str,
    x_label: str,
    y_label: str,
    *,
    height: float = 2.9,
    labels: Sequence[str] = (),
    row_names: Sequence[str] = (),
    title_colour: str = INK,
    note: str = "",
) -> Axes:
    """Axes of a new panel with room at the right for ``labels`` and at the left for ``row_names``.

    ``height`` in inches. The y label stands above the axis, to be read with a straight neck.
    """
    left = max((text_width(name) for name in row_names), default=0.0) + 10 if row_names else 38.0
    right = max((text_width(label) for label in labels), default=0.0) + 25 if labels else 14.0
    width = WIDTH_INCHES * 72
    tall = height * 72
    figure = Figure(figsize=(WIDTH_INCHES, height), dpi=72)
    figure.patch.set_visible(False)
    top, bottom = 42.0, 36.0
    axes = figure.add_axes(
        (left / width, bottom / tall, (width - left - right) / width, (tall - top - bottom) / tall)
    )
    axes.patch.set_visible(False)
    figure.text(
        6 / width, 1 - 13 / tall, title, color=title_colour, weight="bold", va="baseline", ha="left"
    )
    quiet = {"color": MUTED, "size": LABEL_POINTS, "va": "baseline"}
    figure.text(6 / width, 1 - 29 / tall, y_label, ha="left", **quiet)
    if note:
        figure.text(1 - 6 / width, 1 - 29 / tall, note, ha="right", **quiet)
    axes.set_xlabel(x_label, labelpad=4)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axes.spines["left"].set_visible(False)
    return axes


def lines_panel(
    lines: Sequence[ArmLine],
    title: str,
    x_label: str,
    y_label: str,
    prefix: str,
    references: Mapping[str, float] | None = None,
    beneath: Sequence[tuple[str, np.ndarray, np.ndarray]] = (),
) -> str:
    """A panel with one line per arm, labelled at its right end unless there are too many.

    ``references``: name → height of a dashed line across, to which the panel reaches.
    ``beneath``: name, x and y of grey dashed lines that are no arms. No legend has them, so they keep their
    labels where arms have none.
    """
    name_others = len(beneath) <= MOST_LABELS
    name_arms = len(lines) + len(beneath) <= MOST_LABELS
    labels = [shorten(line.name) for line in lines] if name_arms else []
    labels += [shorten(name) for name, _, _ in beneath] if name_others else []
    with appearance():
        axes = panel(title, x_label, y_label, labels=labels)
        ends = []
        for place, line in enumerate(lines):
            there = np.isfinite(line.x) & np.isfinite(line.y)
            if there.any():
                _draw_line(axes, line, there, arm_width(place, len(lines)))
                x, y = float(line.x[there][-1]), float(line.y[there][-1])
                ends.append(EndLabel(x, y, shorten(line.name), arm_colour(line.index)))
        others = []
        for name, x, y in beneath:
            alone = "o" if len(x) == 1 else None  # a line through one point is not to be seen
            axes.plot(x, y, color=MUTED, lw=0.9, ls=(0, (4, 3)), marker=alone, ms=3, zorder=1)
            others.append(EndLabel(float(x[-1]), float(y[-1]), shorten(name), MUTED))
        axes.set_xlim(0, max((end.x for end in (*ends, *others)), default=0.0) * 1.02 or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        for name, height in (references or {}).items():
            axes.axhline(height, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1)
            side = _clear_side(lines, height, axes.get_xlim()[1])
            axes.annotate(
                name, (float(side == "right"), height), xycoords=("axes fraction", "data"),
                xytext=(-2 if side == "right" else 2, 2), textcoords="offset points", ha=side,
                color=MUTED, fontsize=LABEL_POINTS,
            )  # fmt: skip
        axes.set_ylim(*axes.get_ylim())
        label_ends(axes, [*(ends if name_arms else ()), *(others if name_others else ())])
        grey = ", and grey dashed lines of other runs" if beneath else ""
        return to_svg(axes, prefix, f"{title}, one line per arm{grey}")


def _clear_side(lines: Sequence[ArmLine], height: float, width: float) -> Literal["left", "right"]:
    """Where a label at ``height`` is further from all lines, of a panel that reaches to ``width``."""

    def clearance(begin: float, end: float) -> float:
        nearest = math.inf
        for line in lines:
            there = np.isfinite(line.x) & np.isfinite(line.y)
            x, y = line.x[there], line.y[there]
            at = np.linspace(begin * width, end * width, 50)
            at = at[(at >= x.min(initial=math.inf)) & (at <= x.max(initial=-math.inf))]
            if at.size:
                nearest = min(nearest, float(np.abs(np.interp(at, x, y) - height).min()))
        return nearest

    return "left" if clearance(0.0, 0.4) > clearance(0.6, 1.0) else "right"


def _draw_line(axes: Axes, line: ArmLine, there: np.ndarray, width: float) -> None:
    colour = arm_colour(line.index)
    if line.band is not None:
        axes.fill_between(line.x, *line.band, color=colour, alpha=0.12, lw=0)
    for x, y in line.seeds:
        at = np.unique(np.linspace(len(x) - 1, 0, min(len(x), MOST_DOTS)).round().astype(int))
        axes.plot(x[at], y[at], "o", color=colour, alpha=0.4, ms=2.6, mew=0, clip_on=False)
    few = there.sum() <= 15 and not line.seeds
    axes.plot(
        line.x[there],
        line.y[there],
        color=colour,
        ls=arm_style(line.index),
        lw=width,
        marker="o" if few else None,
        ms=2.2 + width,
        clip_on=False,
    )


def label_ends(axes: Axes, labels: Sequence[EndLabel]) -> None:
    """Write labels right of the axes at their lines' height, moved apart where they would overlap.

    The limits of ``axes`` must be final: positions are computed from them.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches() * 72
    box = axes.get_position()
    ordered = sorted((label for label in labels if np.isfinite(label.y)), key=lambda item: item.y)
    if not ordered:
        return
    ends = [axes.transData.transform((label.x, label.y)) for label in ordered]
    room = (box.y0 * height + 2, box.y1 * height + 2)
    gap = min(LABEL_POINTS * 1.22, (room[1] - room[0]) / max(len(ordered) - 1, 1))
    heights = spread([float(end[1]) for end in ends], gap, *room)
    edge = box.x1 * width
    for label, end, y in zip(ordered, ends, heights, strict=True):
        xs = np.array([end[0] + 2.5, max(edge + 2, end[0] + 2.5), edge + 14]) / width
        ys = np.array([end[1], end[1], y]) / height
        leader = Line2D(xs, ys, transform=figure.transFigure, color=label.colour, lw=0.7, alpha=0.6)
        figure.add_artist(leader)
        figure.text(
            (edge + 16) / width,
            y / height,
            label.text,
            color=darker(label.colour),
            style="italic" if label.faint else "normal",
            size=LABEL_POINTS,
            va="center_baseline",
            ha="left",
        )


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending positions at least ``gap`` apart within [low, high], moved as little as possible.

    Least squares: subtracting k·gap from the k-th turns the task into isotonic regression, solved
    by pooling neighbours that are out of order.
    """
    blocks: list[tuple[float, int]] = []
    for index, position in enumerate(positions):
        mean, size = position - index * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, other_size = blocks.pop()
            mean = (mean * size + other * other_size) / (size + other_size)
            size += other_size
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    ceiling = max(low, high - (len(flat) - 1) * gap)
    return [min(max(value, low), ceiling) + index * gap for index, value in enumerate(flat)]


def to_svg(axes: Axes, prefix: str, description: str) -> str:
    """The panel as an ``<svg>`` element to put into HTML, ids led by ``prefix`` to stay unique.

    Of ``prefix``, which may hold a name from a file, letters and digits stay, and a hyphen stands for
    anything else.
    """
    buffer = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    # A letter that is not in the font would be drawn as a box: the reader's fonts have it, maybe.
    kind = "path" if _has_letters_of(figure) else "none"
    with matplotlib.rc_context({"svg.fonttype": kind}):
        FigureCanvasSVG(figure).print_svg(
            buffer, metadata={"Creator": None, "Date": None, "Format": None, "Type": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = svg.replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    svg = svg.replace("xlink:href=", "href=")
    lead = re.sub(r"[^\w-]", "-", prefix)
    svg = re.sub(r'\bid="', f'id="{lead}-', svg)
    svg = re.sub(r'href="#', f'href="#{lead}-', svg)
    svg = re.sub(r"url\(#", f"url(#{lead}-", svg)
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    box = re.search(r'viewBox="[^"]*"', opening.group())
    assert box is not None
    start = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box.group()} role="img" '
        f'aria-label="{escape(description)}">'
    )
    return re.sub(r"\n\s*", "\n", start + svg[opening.end() :])


def _has_letters_of(figure: Figure) -> bool:
    """Whether our font has every letter that stands in a figure."""
    letters = get_font(findfont(_FONT)).get_charmap()
    texts: list[Any] = figure.findobj(Text)
    return all(
        ord(letter) in letters for text in texts for letter in text.get_text().replace("\n", "")
    )


def compact(value: float) -> str:
    """A number as short as it can be read: 1,500 → ``1.5k``, 2,000,000 → ``2M``, 2·10¹⁹ → ``2e19``."""
    text = f"{value:g}"
    for limit, suffix in ((1e15, ""), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            text = f"{value / limit:g}{suffix}" if suffix else text.replace("e+", "e")
            break
    return text.replace("-", "−")


def contrast(colour: str) -> float:
    """The contrast of a colour with white, from 1 to 21, as the WCAG 2 define it."""
    return 1.05 / (_luminance(_linear(colour)) + 0.05)


def darker(colour: str) -> str:
    """The colour as text: dark enough to read in small type on white, and of the same hue."""
    if contrast(colour) >= _TEXT_CONTRAST:
        return colour
    light = _linear(colour)
    factor = (1.05 / _TEXT_CONTRAST - 0.05) / _luminance(light)
    shades = (factor * part for part in light)
    parts = (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055 for v in shades)
    return "#" + "".join(f"{math.floor(255 * part):02x}" for part in parts)


def _linear(colour: str) -> list[float]:
    """Red, green and blue of an sRGB colour as amounts of light, 0 to 1."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]


def _luminance(light: Sequence[float]) -> float:
    red, green, blue = light
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def shorten(name: str, limit: int = 20) -> str:
    """``name`` cut in the middle to ``limit`` characters: arms often differ at either end."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[-(limit - 1 - head) :]}"


def text_width(text: str, size: float = LABEL_POINTS) -> float:
    """Width of a line of text in points."""
    if not text.strip():
        return 0.0
    with matplotlib.rc_context(_NO_FORMULAS):
        path = TextPath((0, 0), text, size=size, prop=FontProperties(family=_FONT))
    return float(path.get_extents().width)
