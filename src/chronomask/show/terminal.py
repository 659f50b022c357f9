"""Text for a terminal, with colours where there are any: what masking does, and rows as they are stored.

Masks have brackets and arrows; of stored rows, ``chronomask data show`` prints words, pieces and classes.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError, amount, harmless
from chronomask.show.measure import EPOCHS, Shown
from chronomask.show.subject import Subject, of_some_rows
from chronomask.show.view import Moment, Token, View, classes_shown, in_force, tokens_of
from chronomask.yardsticks import CONTENT, FUNCTION, group_of

__all__ = ["in_terminal", "rows_as_text", "wrap"]

_INDENT = "  "
_BACKGROUND = {CONTENT: "97;45", FUNCTION: "30;46"}
_FOREGROUND = {CONTENT: "35", FUNCTION: "36"}
_LEFT_TO_RIGHT, _END, _LEFT = "\u2066", "\u2069", "\u200e"
"""Characters without width: what stands between the first two runs from left to right, whatever is around
it, and so does what stands beside the third."""
_LEGEND = (
    "pieces of a word are joined by ·, its class follows it; ¶ begins a document or the padding"
)
"""Above stored rows."""


def in_terminal(
    subject: Subject, views: Sequence[View], notices: Sequence[str], colour: bool
) -> str:
    """All views under one another; without ``colour`` no escape codes."""
    width = min(shutil.get_terminal_size((88, 24)).columns, 100)
    blocks = [
        _legend(harmless(subject.mask), colour),
        *(f"note: {harmless(notice)}" for notice in notices),
    ]
    for view in views:
        name = _paint(harmless(view.name), "1", colour)
        blocks.append(f"\n{name}   {harmless(view.summary)}")
        for moment in view.moments:
            blocks += _moment(subject, moment, width, colour)
        blocks += ["", *map(harmless, _table(subject, view, views))]
    return "\n".join(blocks)


def _legend(mask: str, colour: bool) -> str:
    word = Token("", "word", "NOUN", Shown.HIDDEN, "", True, 1)
    marks = [
        (Shown.HIDDEN, "", f"shown as {mask}"),
        (Shown.RANDOM, "other", "as another token"),
        (Shown.KEPT, "", "as it is"),
    ]
    parts = []
    for shown, instead, meaning in marks:
        example = Token("", word.text, word.class_name, shown, instead, True, 1)
        parts.append(f"{_mark_token(example, colour)[1]} {meaning}")
    return f"masked, to be predicted: {'   '.join(parts)}"


def _moment(subject: Subject, moment: Moment, width: int, colour: bool) -> list[str]:
    stats = moment.statistics
    head = (
        f"progress {moment.progress:g}: asked {_percent(moment.asked)}, achieved {_percent(stats.achieved)} "
        f"over {EPOCHS} epochs, the first of them:"
    )
    lines = ["", _paint(head, "2", colour)]
    for row in range(subject.rows.num_rows):
        lines += wrap(_runs(tokens_of(subject, row, moment), colour), width)
    return lines


def wrap(runs: Iterable[tuple[str, int, str]], width: int) -> list[str]:
    """Lines of at most ``width`` visible characters: broken at gaps, and where a gap holds a line end.

    ``runs``: what must stay together, as the gap before it, its visible length and its text.
    """
    lines, line, used = [], _INDENT, len(_INDENT)
    for gap, size, text in runs:
        begun = used > len(_INDENT)
        if "\n" in gap or (begun and used + bool(gap) + size > width):
            lines.append(line)
            line, used = _INDENT, len(_INDENT)
        elif gap and begun:
            line, used = line + " ", used + 1
        line, used = line + text, used + size
    return [*lines, line] if used > len(_INDENT) else lines


def _runs(tokens: list[Token], colour: bool) -> Iterator[tuple[str, int, str]]:
    """The tokens between two gaps together, for :func:`wrap`."""
    starts = [k for k, token in enumerate(tokens) if k == 0 or token.gap]
    right_to_left = any(_is_right_to_left(token.text + token.instead) for token in tokens)
    for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
        marked = [_mark_token(token, colour, right_to_left) for token in tokens[start:stop]]
        size = sum(length for length, _ in marked)
        yield tokens[start].gap, size, "".join(text for _, text in marked)


def _mark_token(token: Token, colour: bool, right_to_left: bool = False) -> tuple[int, str]:
    """Visible length and text of a token; ``right_to_left``: whether words around it are, in whose midst an
    arrow would point from the substitute to the word.
    """
    text = harmless(token.text)
    if token.shown is Shown.PLAIN:
        return len(text), text
    instead = harmless(token.instead)
    plain = {
        Shown.HIDDEN: f"[{text}]",
        Shown.RANDOM: f"[{text}→{instead}]",
        Shown.KEPT: f"[{text}=]",
    }[token.shown]
    size = len(plain)
    if right_to_left and token.shown is Shown.RANDOM:
        plain = f"{_LEFT_TO_RIGHT}[{text}{_LEFT}→{_LEFT}{instead}]{_END}"
    group = group_of(token.class_name)
    code = _FOREGROUND.get(group, "90") + ";4"
    if token.shown is Shown.HIDDEN:
        code = _BACKGROUND.get(group, "30;47")
    return size, _paint(plain, code, colour)


def _is_right_to_left(text: str) -> bool:
    """Whether any letter runs from right to left, as Hebrew and Arabic ones do."""
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def _paint(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _table(subject: Subject, view: View, views: Sequence[View]) -> list[str]:
    """Class weights and shares of a view as aligned columns."""
    moments = view.moments
    weighted = any(moment.weights is not None for moment in moments)
    heads = [f"{moment.progress:g}" for moment in moments]
    block = 8 * len(moments)
    top = f"{'':8}{'share in':>9}" + (
        f"  {'weight at progress':^{max(block, 18)}}" if weighted else ""
    )
    top += "  share of the masked at progress"
    weight_heads = "".join(f"{head:>8}" for head in heads)
    second = f"{'class':8}{'the text':>9}"
    second += (f"  {weight_heads:^{max(block, 18)}}" if weighted else "") + f"  {weight_heads}"
    lines = [top, second]
    for c in classes_shown(subject.rows, views, subject.class_names):
        name = subject.class_names[c]
        line = f"{name[:8]:8}{_percent(moments[0].statistics.class_in_text[c]):>9}"
        if weighted:
            values = "".join(f"{_weight(moment, name):>8}" for moment in moments)
            line += f"  {values:^{max(block, 18)}}"
        line += "  " + "".join(
            f"{_percent(moment.statistics.class_in_masked[c]):>8}" for moment in moments
        )
        lines.append(line)
    multi = ", ".join(_percent(moment.statistics.multi_in_masked) for moment in moments)
    in_text = _percent(moments[0].statistics.multi_in_text)
    lines.append(f"words of several tokens: {in_text} of the words; among the masked: {multi}")
    lines += [
        f"weights at progress {moment.progress:g}: {moment.weights.origin}"
        for moment in moments
        if moment.weights is not None
    ]
    lines += [
        f"{name} at progress {_times(view)}: {'; '.join(values)}"
        for name, values in in_force(view, subject.mask)
    ]
    if view.config.content.by_token_id:
        lines.append("weights are kept per token id; here all are alike, as before training")
    return lines


def _times(view: View) -> str:
    """The moments of a view, as a sentence lists them."""
    return ", ".join(f"{moment.progress:g}" for moment in view.moments)


def _weight(moment: Moment, name: str) -> str:
    return "" if moment.weights is None else f"{moment.weights.values[name]:.2f}"


def _percent(share: float) -> str:
    """``–`` for a share of nothing."""
    return "–" if np.isnan(share) else f"{100 * share:.1f} %"


def rows_as_text(
    data: PreparedData, split: str, first: int, number: int, *, colour: bool = False
) -> str:
    """Rows ``first`` to ``first`` + ``number`` of a split; fewer if the data ends.

    Raises :class:`UsageError` for a split or a row that does not exist.
    """
    num_rows = data.split(split).num_rows
    if first >= num_rows:
        there = f"rows are 0 to {num_rows - 1:,}" if num_rows else "the split has no rows"
        raise UsageError(f"{data.path} has no row {first:,} in {split}; {there}")
    row_ids = np.arange(first, min(first + number, num_rows), dtype=np.int64)
    subject = of_some_rows(data, split, row_ids, "")
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [_LEGEND]
    for position, row in enumerate(row_ids.tolist()):
        padding = int((subject.rows.input_ids[position] == data.manifest.pad_token_id).sum())
        name = f"{split} row {row:,}: {amount(data.row_length - padding, 'tokens')}, {padding} of padding"
        lines += ["", *_row(subject, position, name, width, colour)]
    return "\n".join(lines)


def _row(subject: Subject, position: int, name: str, width: int, colour: bool) -> list[str]:
    """Lines of a stored row: its name, and its words, each with its class."""
    rows, pieces = subject.rows, subject.pieces[position]
    words, classes = rows.word_id[position], rows.token_class[position]
    length = rows.row_length
    bounds = rows.cu_seqlens - position * length
    begins = set(bounds[(bounds > 0) & (bounds < length)].tolist())
    runs: list[tuple[str, int, str]] = []
    at = 0
    while at < length:
        stop = at + 1
        while stop < length and words[at] >= 0 and words[stop] == words[at]:
            stop += 1
        if at in begins:
            runs.append((" ", 1, "¶"))
        if pieces[at]:
            class_name = subject.class_names[int(classes[at])]
            word = harmless("·".join(pieces[at:stop]))
            runs.append((" ", *_word(word, class_name, colour)))
        at = stop
    return [f"{name}, {amount(int(words.max()) + 1, 'words')}", *wrap(runs, width)]


def _word(text: str, class_name: str, colour: bool) -> tuple[int, str]:
    """Visible length and text of a word."""
    if class_name == "none":
        return len(text), text
    tag = f"/{class_name}"
    code = _FOREGROUND.get(group_of(class_name), "90")
    return len(text) + len(tag), text + _paint(tag, code, colour)
