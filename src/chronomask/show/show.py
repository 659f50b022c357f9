"""``chronomask inspect``: from a request to text for the terminal and a page."""

from __future__ import annotations

from pathlib import Path

from chronomask.data.folder import PreparedData
from chronomask.runs.read import read_run
from chronomask.show.page import write_page
from chronomask.show.request import Request, configs_of, moments_of, text_of
from chronomask.show.subject import MAX_CHARACTERS, Subject, of_rows, of_text, shortened
from chronomask.show.terminal import in_terminal
from chronomask.show.view import look

__all__ = ["Request", "inspect_masking"]

MAX_ROWS = 32


def inspect_masking(request: Request, out: Path | None = None, *, colour: bool = False) -> str:
    """The picture as text for a terminal; with ``out`` also as an HTML page, named in the last line.

    Raises UsageError for whatever in the request cannot be shown.
    """
    moments = moments_of(request.progress)
    text = text_of(request)
    run = read_run(request.run) if request.run else None
    maskings = configs_of(request, run)
    subject, notices = _subject(request, text)
    views = tuple(look(masking, subject, moments, request.seed, run) for masking in maskings)
    picture = in_terminal(subject, views, notices, colour)
    if out is None:
        return picture
    page = write_page(out, subject, views, notices, request.seed)
    return f"{picture}\n\npage: {page}"


def _subject(request: Request, text: str | None) -> tuple[Subject, list[str]]:
    """What to show, and what a reader must know of it."""
    data = PreparedData.open(request.data) if request.data else None
    if text is not None:
        shown = shortened(text)
        notices = []
        if len(shown) < len(text):
            notices.append(
                f"only the first {len(shown):,} of {len(text):,} characters are shown "
                f"(at most {MAX_CHARACTERS:,})"
            )
        return of_text(shown, request.tokenizer, data), notices
    assert data is not None
    subject, notices = of_rows(data, min(request.rows, MAX_ROWS)), []
    if request.rows > subject.rows.num_rows:
        notices.append(
            f"{subject.rows.num_rows} of the {request.rows} rows asked for are shown "
            f"(the data has {data.split('train').num_rows:,}; at most {MAX_ROWS} fit a picture)"
        )
    return subject, notices
