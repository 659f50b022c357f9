"""What the sampling does, measured by running it on rows shaped like text."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from chronomask import keyed
from chronomask.keyed import Stream
from chronomask.masking.config import MaskingConfig
from chronomask.masking.content import Fixed, Ptw, PtwFaithful
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.ratio import Constant
from chronomask.masking.select.published import walk
from chronomask.report.drawing import MUTED
from chronomask.types import ClassTally, Rows

from .paper import BLUE, GREEN, ORANGE, headed, label, per_cent, sheet

PIECES = np.array([0.82, 0.11, 0.045, 0.018, 0.005, 0.002])
"""Share of words with 1, 2, … pieces: English Wikipedia in a WordPiece vocabulary of 8,000."""
ROWS, LENGTH = 400, 256
RATIOS = np.array([0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.2, 0.3, 0.4])


def figures() -> dict[str, Figure]:
    """Budgets, chances, long words, the published walk's ratio, and running losses."""
    return {
        "budget": _budget(),
        "chances": _chances(),
        "long-words": _long_words(),
        "walk-ratio": _walk_ratio(),
        "running-loss": _running_loss(),
    }


def _word_id(seed: int = 0) -> np.ndarray:
    """int32 [ROWS, LENGTH]: words whose piece counts follow ``PIECES``."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice(np.arange(1, 7), size=(ROWS, LENGTH), p=PIECES)
    words = [np.repeat(np.arange(LENGTH), row)[:LENGTH] for row in sizes]
    return np.array(words, np.int32)


def _rows(word_id: np.ndarray, token_class: np.ndarray, epoch: int = 0) -> Rows:
    """Rows of these words, whose ids do not matter."""
    number, length = word_id.shape
    return Rows(
        np.ones(word_id.shape, np.int64),
        word_id.astype(np.int32),
        token_class.astype(np.uint8),
        np.arange(number),
        np.full(number, epoch),
        np.arange(number + 1, dtype=np.int32) * np.int32(length),
        np.arange(number) + epoch * number,
    )


def _masked(config: MaskingConfig, rows: Rows, classes: tuple[str, ...] = ("none",)) -> np.ndarray:
    """Bool [B, T]: which tokens are predicted."""
    masker = Masker(config, Vocabulary(0, np.arange(1, 9), 9), classes)
    return masker(rows, 0.0).labels >= 0


def _exact(word_id: np.ndarray, ratio: float, epoch: int) -> np.ndarray:
    config = MaskingConfig(ratio=Constant(base=ratio))
    return np.flatnonzero(_masked(config, _rows(word_id, word_id * 0, epoch)))


def _published(word_id: np.ndarray, ratio: float, epoch: int, weight: float = 0.5) -> np.ndarray:
    keys = [keyed.row_keys(0, s, epoch, np.arange(ROWS)) for s in (Stream.SELECT, Stream.ACCEPT)]
    classes = np.zeros(word_id.shape, np.uint8)
    return walk(word_id, classes, np.array([weight]), np.full(ROWS, ratio), keys[0], keys[1])


def _budget() -> Figure:
    """How far the masked tokens so far are from what was asked, row after row."""
    figure, (axes,) = sheet(5.6, 2.6)
    number, maskable, ratio = 300, 126, 0.05
    asked = ratio * maskable * np.arange(1, number + 1)
    words = np.tile(np.arange(maskable), (number, 1))
    ours = _masked(MaskingConfig(ratio=Constant(base=ratio)), _rows(words, words * 0)).sum(axis=1)
    on_its_own = np.floor(ratio * maskable + np.random.default_rng(1).random(number))
    nearest = np.full(number, round(ratio * maskable))
    for text, got, colour in (
        ("each row rounded on its own", on_its_own, ORANGE),
        ("chronomask: roundings that cancel", ours, BLUE),
        ("always to the nearest token", nearest, MUTED),
    ):
        off = np.cumsum(got) - asked
        axes.step(np.arange(1, number + 1), off, color=colour, where="post", lw=1.3, label=text)
    axes.set_ylim(-12, 12)
    axes.set_xlim(0, number)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    headed(axes, "6.3 tokens asked of every row", "rows", "tokens masked so far, less those asked")
    return figure


def _chances() -> Figure:
    """π against the asked ratio for classes of several weights: the formula, and what is measured."""
    figure, (axes,) = sheet(5.2, 3.1)
    weights = np.array([1.0, 0.5, 0.25, 0.1])
    rate = np.logspace(-4, 4, 400)[:, None]
    chance = rate * weights / (1 + rate * weights)
    names = ("none", "a", "b", "c", "d")
    rng = np.random.default_rng(0)
    classes = rng.permuted(np.tile(np.arange(1, 5), (ROWS, 32)), axis=1)
    words = np.tile(np.arange(classes.shape[1]), (ROWS, 1))
    content = Fixed(weights=dict(zip(names[1:], weights.tolist(), strict=True)))
    asked = np.linspace(0.1, 0.9, 9)
    measured = []
    for ratio in asked.tolist():
        config = MaskingConfig(ratio=Constant(base=ratio), content=content)
        masked = _masked(config, _rows(words, classes), names)
        measured.append([masked[classes == c].mean() for c in range(1, 5)])
    shades = ("#08306b", "#2171b5", "#6baed6", "#9ecae1")
    for k, (weight, colour) in enumerate(zip(weights, shades, strict=True)):
        axes.plot(chance.mean(axis=1), chance[:, k], color=colour, label=f"weight {weight:g}")
        axes.plot(asked, np.array(measured)[:, k], "o", color=colour, ms=3.5)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (3, 3)), label="equal weights")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    per_cent(axes, x=True)
    headed(axes, "Chance of a word to be masked", "asked ratio (four classes, equally frequent)")
    return figure


def _long_words() -> Figure:
    """Share of multi-piece words among the masked words, relative to their share in the text."""
    figure, (axes,) = sheet(5.6, 3.0)
    word_id = _word_id()
    sizes = np.array([np.bincount(row)[row] for row in word_id])
    part, multi = (1.0 / sizes).ravel(), (sizes > 1).ravel()
    in_text = part[multi].sum() / part.sum()

    def relative(positions: list[np.ndarray]) -> float:
        chosen = np.concatenate(positions)
        return float(part[chosen][multi[chosen]].sum() / part[chosen].sum() / in_text)

    for text, draw, colour in (
        ("exact sampler", _exact, BLUE),
        ("published walk", _published, ORANGE),
    ):
        epochs = [max(8, round(1.2 / ratio)) for ratio in RATIOS]
        shares = [
            relative([draw(word_id, float(ratio), epoch) for epoch in range(number)])
            for ratio, number in zip(RATIOS, epochs, strict=True)
        ]
        axes.plot(RATIOS, shares, color=colour, marker="o", ms=3.5)
        x, y, place = (0.011, 1.04, "bottom") if draw is _exact else (0.011, 0.5, "top")
        label(axes, x, y, text, colour, va=place)
    axes.set_xscale("log")
    axes.set_xticks([0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
    axes.minorticks_off()
    per_cent(axes, x=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    axes.set_ylim(0, 1.2)
    headed(
        axes,
        "Words of several tokens among the masked",
        f"asked ratio (rows of {LENGTH} tokens, all weights ½)",
        "their share, relative to their share in the text",
    )
    return figure


def _walk_ratio() -> Figure:
    """What ratio the published walk gives when words are accepted rarely."""
    figure, (axes,) = sheet(5.2, 3.0)
    word_id = _word_id(1)
    asked = np.linspace(0.02, 0.8, 27)
    axes.plot(asked, asked, color=BLUE)
    label(axes, 0.56, 0.64, "exact sampler, any weights", BLUE, ha="right")
    for weight, colour in ((0.5, "#d55e00"), (0.3, "#e58a45"), (0.15, "#f0b487")):
        got = [_published(word_id, float(r), 0, weight).size / word_id.size for r in asked]
        axes.plot(asked, got, color=colour)
        label(axes, 0.805, got[-1], f"walk, weights {weight:g}", colour)
    axes.set_xlim(0, 1.06)
    axes.set_ylim(0, 0.82)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8])
    per_cent(axes, x=True)
    headed(axes, "Ratio asked and achieved", "asked ratio", "achieved ratio")
    return figure


def _running_loss() -> Figure:
    """The running loss of a frequent and a rare class whose true loss is the same."""
    figure, panels = sheet(7.2, 2.7, 1, 2)
    steps, truth = 3000, 3.0
    names = ("none", "frequent", "rare")
    for axes, title, config in (
        (panels[0], "Published: from 0, uncorrected", PtwFaithful()),
        (panels[1], "chronomask: sum over count", Ptw()),
    ):
        rng = np.random.default_rng(0)
        state = config.begin(names, vocab_size=0)
        course = []
        for _ in range(steps):
            count = np.array([0, rng.poisson(60), rng.random() < 0.05], np.int64)
            noise = np.array([rng.normal(0, 0.5 / max(np.sqrt(n), 1)) for n in count])
            state.update(ClassTally((truth + noise) * count, count, count * 0))
            tensors = state.state_dict()
            loss = tensors["loss_average"]
            if "count_average" in tensors:
                loss = loss / tensors["count_average"]
            course.append(loss.tolist()[1:])
        frequent, rare = np.array(course).T
        axes.axhline(truth, color=MUTED, lw=0.8, ls=(0, (3, 3)))
        axes.plot(frequent, color=BLUE)
        axes.plot(rare, color=GREEN)
        axes.set_ylim(0, 4.2)
        axes.set_xlim(0, steps)
        headed(axes, title, "steps", "running loss of a class, nats")
    label(panels[0], 1900, 2.25, "frequent class", BLUE)
    label(panels[0], 1500, 0.62, "rare class, as hard", GREEN)
    label(panels[1], 1250, 3.35, "both, near the truth", MUTED)
    return figure
