"""``chronomask inspect`` and :func:`inspect_text`: from a request to a picture, as text or as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.prepare.words.unicode import unlikely_language
from chronomask.recipes import find_recipe
from chronomask.runs.read import Run, read_run
from chronomask.show.page import fragment, write_page
from chronomask.show.request import (
    NamedMasking,
    Request,
    check_characters,
    checked_moments,
    configs_of,
    data_of,
    data_paths_of,
    default_masking,
    english_is_installed,
    masking_in,
    moments_of,
    text_of,
)
from chronomask.show.subject import Subject, of_rows, of_text, shorten
from chronomask.show.terminal import in_terminal
from chronomask.show.view import View, look
from chronomask.storage import as_a_shell_has_it

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Picture", "Request", "inspect_masking", "inspect_text"]

MAX_ROWS = 32
SHOWN_ROWS = 2
"""Rows of prepared data that are shown where nobody says how many."""


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """What masking does to a text or to rows, at several moments of training.

    Printed, it is the picture of ``chronomask inspect``; a notebook shows it in colours.
    """

    subject: Subject
    views: tuple[View, ...]
    notices: tuple[str, ...]
    seed: int

    def __str__(self) -> str:
        return self.as_text(colour=False)

    __repr__ = __str__  # what a console shows of a value

    def as_text(self, *, colour: bool) -> str:
        """The picture for a terminal; ``colour`` adds escape codes."""
        return in_terminal(self.subject, self.views, self.notices, colour)

    def _repr_html_(self) -> str:
        return fragment(self.subject, self.views, self.notices)

    def save(self, out: str | Path) -> Path:
        """Write the picture as a page of its own: a .html file, or ``inspect.html`` in a folder."""
        return write_page(as_a_shell_has_it(out), self.subject, self.views, self.notices, self.seed)


def inspect_text(
    text: str,
    masking: MaskingConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    data: str | Path | None = None,
    run: str | Path | None = None,
    progress: float | Sequence[float] = (0.0, 0.5, 1.0),
    seed: int = 0,
) -> Picture:
    """What masking does to ``text`` at the moments ``progress`` of training, each in [0, 1].

    ``masking``: a masking config, a dict of its fields or of a run's, the YAML file of either, or the name
    of a recipe; by default that of ``run``, else a falling ratio with PTW. ``tokenizer``: one of
    transformers or its folder; without one the tokenizer of the prepared ``data``, else every word is one
    token. ``run``: a run folder, whose class weights are shown as they were logged; its data are taken where
    none are given and they are at hand. Words and classes come from the data's tagger, else from the bundled
    English one.

    Raises UsageError for whatever cannot be shown.
    """
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"the text is {text!r}; give a string of at least one word")
    check_characters(text)
    several = [progress] if isinstance(progress, str | int | float) else progress
    moments = checked_moments(several, f"progress {progress!r}")
    opened = read_run(run) if run is not None else None
    if masking is None:
        named = default_masking(opened)
    elif isinstance(masking, str | Path):
        named = masking_in(find_recipe(masking), Path(masking).stem)
    else:
        named = masking_in(masking, "masking")
    given = None if data is None else as_a_shell_has_it(data)
    place = data_of(given, opened, for_rows=False)
    prepared = PreparedData.open(place) if place is not None else None
    shown, notices = _text_to_show(text, prepared, opened)
    folder = Path(tokenizer) if isinstance(tokenizer, str) else tokenizer
    subject = _row_of(shown, folder, prepared, [named])
    return _picture(subject, [named], notices, moments, seed, opened)


def inspect_masking(request: Request, out: Path | None = None, *, colour: bool = False) -> str:
    """The picture as text for a terminal; with ``out`` also as an HTML page, named in the last line.

    Raises UsageError for whatever in the request cannot be shown.
    """
    moments = moments_of(request.progress)
    text = text_of(request)
    run = read_run(request.run) if request.run else None
    maskings = configs_of(request, run)
    place = data_of(request.data, run, for_rows=text is None)
    data = PreparedData.open(place) if place is not None else None
    if text is not None:
        shown, notices = _text_to_show(text, data, run)
        subject = _row_of(shown, request.tokenizer, data, maskings)
    else:
        assert data is not None  # text_of has seen to it
        subject, notices = _rows_of(data, request.rows or SHOWN_ROWS)
        paths = data_paths_of(run) if run is not None else []
        if len(paths) > 1 and place == paths[0]:
            notices.append(
                f"these rows are of {place}, the first of the {len(paths)} data sets that the run reads; "
                "--data FOLDER shows those of another"
            )
    picture = _picture(subject, maskings, notices, moments, request.seed, run)
    shown = picture.as_text(colour=colour)
    return shown if out is None else f"{shown}\n\npage: {picture.save(out)}"


def _text_to_show(text: str, data: PreparedData | None, run: Run | None) -> tuple[str, list[str]]:
    """The text, shortened, and what a reader must know of it; without data the English tagger reads it."""
    shown, notices = shorten(text)
    if data is not None:
        return shown, notices
    if run is not None:
        notices.append(
            f"the data of {run.name} are not where it looks for them: words and classes are not read as "
            "those of its training were; --data FOLDER with the data where they are now does"
        )
    why = unlikely_language("en", [shown]) if english_is_installed() else None
    if why:
        notices.append(
            f"words and classes are those of an English tagger, but {why}; --data FOLDER shows those of "
            "prepared data"
        )
    return shown, notices


def _row_of(
    text: str,
    tokenizer: Path | PreTrainedTokenizerBase | None,
    data: PreparedData | None,
    maskings: Sequence[NamedMasking],
) -> Subject:
    """The text as a row that these configs can mask; raises UsageError for one that masks collocations."""
    for masking in maskings:
        if masking.config.strategy.needs_ngrams:
            raise UsageError(
                f"{masking.name} masks collocations together, which rows of prepared data mark and a text "
                "does not: leave out the text, as in  chronomask inspect --data FOLDER --rows 1 , once  "
                "chronomask data ngrams FOLDER  has found them"
            )
    needs_classes = any(masking.config.content.needs_classes for masking in maskings)
    return of_text(text, tokenizer, data, needs_classes=needs_classes)


def _picture(
    subject: Subject,
    maskings: Sequence[NamedMasking],
    notices: Sequence[str],
    moments: tuple[float, ...],
    seed: int,
    run: Run | None,
) -> Picture:
    if len(subject.class_names) < 2 and not english_is_installed():
        notices = [
            *notices,
            "words are shown without classes; for parts of speech: pip install 'chronomask[prepare]'",
        ]
    views = tuple(look(masking, subject, moments, seed, run) for masking in maskings)
    return Picture(subject, views, tuple(notices), seed)


def _rows_of(data: PreparedData, number: int) -> tuple[Subject, list[str]]:
    """The first rows of prepared data, and what a reader must know of them."""
    subject = of_rows(data, min(number, MAX_ROWS))
    if number <= subject.rows.num_rows:
        return subject, []
    return subject, [
        f"{subject.rows.num_rows} of the {number} rows asked for are shown "
        f"(the data has {data.split('train').num_rows:,}; a picture shows at most {MAX_ROWS})"
    ]
