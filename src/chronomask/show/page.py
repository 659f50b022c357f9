"""The picture as one self-contained HTML page, and as a part of somebody else's page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.report.render import page_path, render
from chronomask.show.groups import group_key, legend_of
from chronomask.show.measure import EPOCHS, Shown
from chronomask.show.request import PAGE
from chronomask.show.subject import Subject
from chronomask.show.view import Moment, Token, View, classes_shown, in_force, tokens_of
from chronomask.storage import write_text

__all__ = ["fragment", "write_page"]

_PAGE = Path(__file__).with_name("page.html")
_FRAGMENT = Path(__file__).with_name("fragment.html")
_SHOWN = {
    Shown.HIDDEN: "masked: the model sees {}",
    Shown.RANDOM: "masked: the model sees “{}”",
    Shown.KEPT: "masked: the model sees the word itself",
}


def write_page(
    out: Path, subject: Subject, views: Sequence[View], notices: Sequence[str], seed: int
) -> Path:
    """Write the page to ``out`` and give its path; a folder gets ``inspect.html``.

    Raises UsageError or RunError if it cannot be written.
    """
    path = page_path(out, PAGE)
    page = render(
        _PAGE,
        title="What masking does to a text",
        texts=[_words(tokens_of(subject, row)) for row in range(subject.rows.num_rows)],
        times=[_time(moment.progress) for moment in views[0].moments],
        epochs=EPOCHS,
        seed=seed,
        **_drawn_values(subject, views, notices),
    )
    write_text(path, page)
    return path


def fragment(subject: Subject, views: Sequence[View], notices: Sequence[str]) -> str:
    """The picture as one ``div`` for a notebook: nothing is loaded, no script, styles of its own.

    The same picture has the same ``id``, a hash of it: shown twice in a page, it is styled alike.
    """
    values = _drawn_values(subject, views, notices)
    name = "chronomask-" + hashlib.sha256(repr(values).encode()).hexdigest()[:12]
    return render(_FRAGMENT, id=name, scope=f"#{name}", **values)


def _drawn_values(
    subject: Subject, views: Sequence[View], notices: Sequence[str]
) -> dict[str, Any]:
    """What both templates draw."""
    classes = classes_shown(subject.rows, views, subject.class_names)
    origins = [m.weights.origin for view in views for m in view.moments if m.weights is not None]
    return {
        "notices": list(notices),
        "mask": subject.mask,
        "language": subject.language,
        "subject": subject.description,
        "tagged": len(subject.class_names) > 1,
        "groups": legend_of(subject.class_names[c] for c in classes),
        "columns": [_column(view, subject, classes) for view in views],
        "illustrative": any(origin.startswith("illustrative") for origin in origins),
    }


def _column(view: View, subject: Subject, classes: list[int]) -> dict[str, Any]:
    """Everything the template draws of one view."""
    first = view.moments[0].statistics
    return {
        "name": view.name,
        "summary": view.summary,
        "curve": _curve(view),
        "moments": [_moment(moment, view, subject, classes) for moment in view.moments],
        "classes": [
            {
                "name": subject.class_names[c],
                "group": group_key(subject.class_names[c]),
                "in_text": _percent(first.class_in_text[c]),
                "in_masked": [
                    _bar(moment.statistics.class_in_masked[c], first.class_in_text[c], view)
                    for moment in view.moments
                ],
            }
            for c in classes
        ],
        "rows": [
            ("ratio asked", "", [_percent(m.asked) for m in view.moments]),
            ("ratio achieved", "", [_percent(m.statistics.achieved) for m in view.moments]),
            (
                "words of several tokens",
                _percent(first.multi_in_text),
                [_percent(m.statistics.multi_in_masked) for m in view.moments],
            ),
            *((name, "", values) for name, values in in_force(view, subject.mask)),
        ],
    }


def _moment(moment: Moment, view: View, subject: Subject, classes: list[int]) -> dict[str, Any]:
    """What the template needs of a moment: shares, the rows' tokens, and bars of the class weights."""
    predicted = int(np.count_nonzero(moment.shown))
    maskable = int(np.count_nonzero(subject.rows.word_id >= 0))
    weights = moment.weights
    bars = []
    if weights is not None:
        names = [subject.class_names[c] for c in classes]
        bars = [
            {
                "name": name,
                "group": group_key(name),
                "width": f"{weights.values[name]:.1%}",
                "value": f"{weights.values[name]:.2f}",
                "assumed": name in weights.assumed,
            }
            for name in names
        ]
    return {
        "time": _time(moment.progress),
        "progress": f"{moment.progress:g}",
        "asked": _percent(moment.asked),
        "asked_width": f"{moment.asked:.1%}",
        "here": f"{predicted:,} of {maskable:,} tokens in this epoch; "
        f"{moment.asked * maskable:,.1f} on average",
        "rows": [
            _row_values(tokens_of(subject, row, moment), subject.mask)
            for row in range(subject.rows.num_rows)
        ],
        "bars": bars,
        "origin": weights.origin if weights else _without_weights(view),
    }


def _without_weights(view: View) -> str:
    if view.config.content.by_token_id:
        return "weights are kept per token; here all are alike, as before training"
    return "no class weights: every word is as likely as any other"


def _row_values(tokens: list[Token], mask: str) -> list[dict[str, Any]]:
    """What the template needs of a row; a masked word has the name of its class once, at its first mask."""
    values = [_token_values(token, mask) for token in tokens]
    before = Shown.PLAIN
    for token, drawn in zip(tokens, values, strict=True):
        begins = token.first or before is Shown.PLAIN
        drawn["label"] = drawn["tag"] if begins else ""
        before = token.shown
    return values


def _token_values(token: Token, mask: str = "") -> dict[str, Any]:
    """What the template needs of a token; ``title`` is shown on hovering.

    ``mask``: how the mask token is written.
    """
    known = token.class_name != "none"
    facts = [token.class_name] if known else []
    if token.pieces > 1:
        facts.append(f"one of {token.pieces} tokens of its word")
    if token.shown is not Shown.PLAIN:
        facts.append(_SHOWN[token.shown].format(token.instead or mask))
    return {
        "gap": token.gap,
        "text": token.text or "·",
        "instead": token.instead,
        "first": token.first,
        "special": token.pieces == 0,
        "tag": token.class_name if known else "",
        "group": group_key(token.class_name),
        "shown": token.shown.name.lower(),
        "title": " · ".join(facts),
    }


def _words(tokens: list[Token]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Words with their parts of speech: what stands between two gaps, after the gap before it."""
    starts = [k for k, token in enumerate(tokens) if token.first]
    together: list[tuple[str, list[dict[str, Any]]]] = []
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        first = tokens[start]
        title = first.class_name if first.class_name != "none" else ""
        if first.pieces > 1:
            pieces = " | ".join(token.text for token in tokens[start:stop])
            title = f"{title} · {first.pieces} tokens: {pieces}".removeprefix(" · ")
        text = "".join(
            (token.gap if k else "") + token.text for k, token in enumerate(tokens[start:stop])
        )
        if first.gap or not together:
            together.append((first.gap, []))
        together[-1][1].append(_token_values(first) | {"text": text, "title": title})
    return together


def _bar(share: float, in_text: float, view: View) -> dict[str, str]:
    """A share of the masked as a bar, on a scale that fits the largest share of the view."""
    shares = [m.statistics.class_in_masked for m in view.moments]
    shares.append(view.moments[0].statistics.class_in_text)
    largest = max(np.nanmax(s, initial=0.01) for s in shares)
    width = 0.0 if np.isnan(share) else share / largest
    return {
        "value": _percent(share),
        "width": f"{width:.1%}",
        "text": f"{in_text / largest:.1%}",
    }


def _curve(view: View) -> dict[str, Any]:
    """The ratio over training as points of a 300 × 90 drawing, its top at a round ratio."""
    ratios = [moment.asked for moment in view.moments]
    largest = max(float(view.curve.max()), *ratios)
    top = next(t for t in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if largest <= t + 1e-9)

    def point(x: float, y: float) -> tuple[str, str]:
        return f"{10 + 280 * x:.1f}", f"{78 - 66 * y / top:.1f}"

    line = [point(k / 100, float(y)) for k, y in enumerate(view.curve)]
    return {
        "line": " ".join(",".join(p) for p in line),
        "dots": [
            (*point(m.progress, m.asked), _percent(m.asked), _anchor(m.progress))
            for m in view.moments
        ],
        "top": f"{top:.0%}",
    }


def _anchor(progress: float) -> str:
    return "start" if progress < 0.1 else "end" if progress > 0.8 else "middle"


def _time(progress: float) -> str:
    named = {0.0: "At the start of training", 0.5: "Half-way", 1.0: "At the end of training"}
    return named.get(progress, f"After {100 * progress:.3g} % of training")


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"
