"""Sentences with their masked words marked: the strategies, and one text over training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Vocabulary
from chronomask.report.drawing import GROUP_COLOURS, INK, MUTED, text_width
from chronomask.show.measure import Shown
from chronomask.show.request import DEFAULT, NamedMasking
from chronomask.show.subject import Subject, of_text
from chronomask.show.view import Moment, Token, classes_shown, look, tokens_of
from chronomask.types import Rows
from chronomask.yardsticks import group_of

from .paper import sheet

TEXT = (
    "When Ada Lovelace wrote the first published program in 1843, no machine could run it. She had "
    "understood something that few of her contemporaries saw."
)
PIECES = (
    "The| tele|scope| showed| four| moons| of| Ju|piter|,| and| Gali|leo| drew| them| night| after| "
    "night| in| his| note|book|,| as| they| circ|led| the| bright| plan|et|."
)
SIZE = 11.5
STRATEGY_SEED, INSPECT_SEED = 20, 38


def figures() -> dict[str, Figure]:
    """The three strategies on one sentence, and a text at three moments of training."""
    return {"strategies": _strategies(), "inspect": _inspect()}


def _strategies() -> Figure:
    figure, panels = sheet(7.4, 3.0, 3, 1)
    subject = _in_pieces(PIECES.split("|"))
    for axes, strategy, meaning in zip(
        panels,
        ("token", "whole_word", "span"),
        ("any token", "whole words", "runs of words"),
        strict=True,
    ):
        config = MaskingConfig.parse(
            {
                "ratio": {"kind": "constant", "base": 0.3},
                "strategy": {"kind": strategy},
                "mask_replace_prob": 1.0,
                "random_replace_prob": 0.0,
            }
        )
        moment = look(NamedMasking(strategy, config), subject, (0.0,), STRATEGY_SEED, None).moments[
            0
        ]
        _write(axes, tokens_of(subject, 0, moment), 7.4 * 72 - 20)
        axes.set_title(f"{strategy}: {meaning}", loc="left", size=9.5, weight="bold")
    return figure


def _in_pieces(pieces: Sequence[str]) -> Subject:
    """A subject cut by hand; a piece that begins with white space begins a word, so does a comma."""
    starts = [piece[0] in " ,." or k == 0 for k, piece in enumerate(pieces)]
    number = len(pieces)
    rows = Rows(
        np.arange(1, number + 1)[None],
        (np.cumsum(starts) - 1).astype(np.int32)[None],
        np.ones((1, number), np.uint8),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.array([0, number], np.int32),
    )
    gaps = tuple(piece[: len(piece) - len(piece.lstrip())] for piece in pieces)
    return Subject(
        rows,
        (gaps,),
        (tuple(piece.lstrip() for piece in pieces),),
        ("none", "NOUN"),
        Vocabulary(0, np.arange(1, number + 1), number + 1),
        str,
        "",
    )


def _inspect() -> Figure:
    """A text at the start, half-way and at the end, with the class weights beside it."""
    figure = Figure(figsize=(8.6, 5.2))
    figure.patch.set_facecolor("white")
    subject = of_text(TEXT, None, None)
    view = look(NamedMasking("", DEFAULT), subject, (0.0, 0.5, 1.0), INSPECT_SEED, None)
    classes = [
        subject.class_names[c] for c in classes_shown(subject.rows, (view,), subject.class_names)
    ]
    times = ("At the start of training", "Half-way", "At the end of training")
    for k, (moment, time) in enumerate(zip(view.moments, times, strict=True)):
        bottom = 1 - (k + 1) / 3 + 0.02
        words = figure.add_axes((0.02, bottom, 0.62, 0.27))
        _write(words, tokens_of(subject, 0, moment), 0.62 * 8.6 * 72)
        words.set_title(
            f"{time}: {100 * moment.asked:.3g} % masked", loc="left", size=10.5, weight="bold"
        )
        _bars(figure.add_axes((0.745, bottom + 0.02, 0.22, 0.235)), moment, classes)
    return figure


def _bars(axes: Axes, moment: Moment, classes: list[str]) -> None:
    assert moment.weights is not None
    for k, name in enumerate(classes):
        colour = GROUP_COLOURS[group_of(name)]
        weight = moment.weights.values[name]
        hatch = {"hatch": "//////", "facecolor": "white"} if name in moment.weights.assumed else {}
        axes.barh(
            k, weight, height=0.62, **{"facecolor": colour, "edgecolor": colour, "lw": 0.6, **hatch}
        )
    axes.set_yticks(range(len(classes)), classes, size=7)
    axes.grid(False)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1])
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_title("class weights", loc="left", size=8.5, color=MUTED)


def _write(axes: Axes, tokens: list[Token], width: float) -> None:
    """Lay the tokens out in lines of ``width`` points, masked ones in boxes of their group's colour."""
    axes.set_axis_off()
    x, y, leading = 0.0, 0.0, SIZE * 1.75
    space = _wide(" ", SIZE)
    for start, stop in _unbroken(tokens):
        sizes = [_advance(token) for token in tokens[start:stop]]
        if x and x + space + sum(sizes) > width:
            x, y = 0.0, y + leading
        elif x:
            x += space
        for token, size in zip(tokens[start:stop], sizes, strict=True):
            _token(axes, token, x, y, size)
            x += size
    axes.set_xlim(0, width)
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None
    height = box.height * figure.get_size_inches()[1] * 72
    axes.set_ylim(max(height, y + leading) - SIZE, -SIZE)


def _unbroken(tokens: list[Token]) -> list[tuple[int, int]]:
    starts = [k for k, token in enumerate(tokens) if k == 0 or token.gap]
    return list(zip(starts, [*starts[1:], len(tokens)], strict=True))


def _advance(token: Token) -> float:
    width = _wide(token.text, SIZE)
    if token.shown is Shown.RANDOM:
        width += _wide(f"→{token.instead}", SIZE * 0.8) + 3
    return width + (5.0 if token.shown is not Shown.PLAIN else 0.0)


def _wide(text: str, size: float) -> float:
    """Width in points, the space that belongs to the first and last letter included."""
    return text_width(f"|{text}|", size) - text_width("||", size)


def _token(axes: Axes, token: Token, x: float, y: float, size: float) -> None:
    colour = GROUP_COLOURS[group_of(token.class_name)]
    ink = INK
    if token.shown is not Shown.PLAIN:
        hidden = token.shown is Shown.HIDDEN
        ink = "white" if hidden else INK
        axes.add_patch(
            FancyBboxPatch(
                (x + 0.4, y - SIZE * 0.62),
                size - 0.8,
                SIZE * 1.24,
                boxstyle="round,pad=0,rounding_size=2",
                facecolor=colour
                if hidden
                else "white"
                if token.shown is Shown.RANDOM
                else colour + "33",
                edgecolor=colour,
                linestyle="dashed" if token.shown is Shown.RANDOM else "solid",
                linewidth=0.8,
            )
        )
    shift = 2.5 if token.shown is not Shown.PLAIN else 0.0
    axes.text(x + shift, y, token.text, size=SIZE, color=ink, va="center_baseline")
    if token.instead:
        right = x + size - 3
        axes.text(
            right,
            y,
            f"→{token.instead}",
            size=SIZE * 0.8,
            color=colour,
            ha="right",
            va="center_baseline",
        )
