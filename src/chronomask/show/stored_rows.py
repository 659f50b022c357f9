"""``chronomask data show``: stored rows with their words, pieces and classes."""

from __future__ import annotations

import shutil

import numpy as np

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.report.classes import CONTENT, FUNCTION, group_of
from chronomask.show.subject import Subject, of_some_rows
from chronomask.show.terminal import wrap

__all__ = ["rows_as_text"]

_COLOUR = {CONTENT: "35", FUNCTION: "36"}
_LEGEND = (
    "pieces of a word are joined by ·, its class follows it; ¶ begins a document or the padding"
)


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
        name = f"{split} row {row:,}: {data.row_length - padding} tokens, {padding} of padding"
        lines += ["", *_row(subject, position, name, width, colour)]
    return "\n".join(lines)


def _row(subject: Subject, position: int, name: str, width: int, colour: bool) -> list[str]:
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
            runs.append((" ", *_word("·".join(pieces[at:stop]), class_name, colour)))
        at = stop
    return [f"{name}, {int(words.max()) + 1} words", *wrap(runs, width)]


def _word(text: str, class_name: str, colour: bool) -> tuple[int, str]:
    """Visible length and text of a word."""
    if class_name == "none":
        return len(text), text
    tag = f"/{class_name}"
    shown = f"\x1b[{_COLOUR.get(group_of(class_name), '90')}m{tag}\x1b[0m" if colour else tag
    return len(text) + len(tag), text + shown
