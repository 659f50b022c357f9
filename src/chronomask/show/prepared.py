"""``chronomask data info``: what prepared data holds, as text and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.data.folder import PreparedData
from chronomask.data.summary import MOST_PIECES, SplitSummary, summarise
from chronomask.prepare.read.left_out import Skipped
from chronomask.report.render import page_path, render
from chronomask.show.groups import group_key, legend_of
from chronomask.storage import write_text

__all__ = ["PAGE", "ClassShare", "DataView", "as_text", "look_into", "write_data_page"]

PAGE = "data.html"
"""What the page is called in a folder."""
_TEMPLATE = Path(__file__).with_name("prepared.html")
_BAR = 30
"""Characters of the longest bar in a terminal."""


@dataclass(frozen=True, slots=True)
class ClassShare:
    """One class of the training rows; shares in [0, 1]."""

    name: str
    of_tokens: float
    of_words: float
    pieces_per_word: float


@dataclass(frozen=True, slots=True)
class DataView:
    """What is to be shown: ``facts`` are (name, value); ``table`` has one row of numbers per count,

    a column per split; ``pieces`` [6]: share of the words with 1, 2, … pieces.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    splits: tuple[str, ...]
    table: tuple[tuple[str, tuple[str, ...]], ...]
    classes: tuple[ClassShare, ...]
    pieces: tuple[float, ...]


def look_into(data: PreparedData) -> DataView:
    """Count the rows of every split. Raises :class:`DataError` where a shard cannot be read."""
    manifest = data.manifest
    names = tuple(name for name, entry in manifest.splits.items() if entry.num_rows)
    found = [summarise(data.split(name), len(data.class_names)) for name in names]
    train = found[names.index("train")]
    skipped = Skipped()
    skipped.merge(data.statistics.get("skipped", {}))
    facts = [
        ("rows", f"{data.row_length:,} tokens each, packing {manifest.packing}"),
        ("words and classes", manifest.tagger),
        ("tokenizer", f"{data.vocab_size:,} ids"),
        (
            "size",
            f"{sum(s.num_bytes for s in found):,} bytes, {train.bytes_per_token:.3f} per token",
        ),
        ("fingerprint", data.fingerprint),
    ]
    unknown = [(name, data.unknown_share(name)) for name in names]
    shares = [
        f"{name.replace('_', ' ')} {_percent(share, 2)}"
        for name, share in unknown
        if share is not None
    ]
    if shares:
        facts.insert(3, ("unknown text", f"{', '.join(shares)}; never masked"))
    if manifest.scores is not None:
        facts.append(("scores", f"{manifest.scores}, a number for every token"))
    if manifest.ngrams is not None:
        facts.append(("n-grams", f"collocations by {manifest.ngrams}, for strategy 'pmi'"))
    left_out = skipped.lines()
    facts += zip(["left out", *[""] * len(left_out)], left_out, strict=False)
    return DataView(
        name=str(data.path),
        facts=tuple(facts),
        splits=names,
        table=tuple((label, tuple(map(write, found))) for label, write in _COUNTS.items()),
        classes=_classes(train, data.class_names),
        pieces=tuple((train.words_of_pieces / max(train.num_words, 1)).tolist()),
    )


_COUNTS = {
    "documents": lambda s: f"{s.num_documents:,}",
    "rows": lambda s: f"{s.num_rows:,}",
    "row utilisation": lambda s: _percent(s.row_utilisation, 2),
    "tokens": lambda s: f"{s.num_tokens:,}",
    "maskable tokens": lambda s: f"{s.num_maskable:,}",
    "words": lambda s: f"{s.num_words:,}",
    "pieces per word": lambda s: f"{s.tokens_per_word:.3f}",
}


def _classes(summary: SplitSummary, names: Sequence[str]) -> tuple[ClassShare, ...]:
    """The classes that occur: bands in their order, others by their share."""
    tokens, words = summary.class_tokens, summary.class_words
    shares = [
        ClassShare(
            names[c],
            float(tokens[c] / max(summary.num_maskable, 1)),
            float(words[c] / max(summary.num_words, 1)),
            float(tokens[c] / words[c]) if words[c] else float("nan"),
        )
        for c in np.flatnonzero(tokens).tolist()
    ]
    if not names[-1].startswith("band_"):
        shares.sort(key=lambda share: -share.of_words)
    return tuple(shares)


def as_text(view: DataView) -> str:
    """Plain text for a terminal."""
    lines = [view.name, *(f"  {name:18}{value}" for name, value in view.facts), ""]
    lines.append(f"{'':20}" + "".join(f"{name.replace('_', ' '):>16}" for name in view.splits))
    lines += [
        f"  {label:18}" + "".join(f"{value:>16}" for value in values)
        for label, values in view.table
    ]
    lines += ["", "  words of the training rows by number of pieces"]
    for number, share in enumerate(view.pieces, start=1):
        label = f"{number} or more" if number == MOST_PIECES else str(number)
        lines.append(
            f"  {label:18}{_percent(share, 2):>9}  {_bar(share, max(view.pieces))}".rstrip()
        )
    if len(view.classes) > 1:
        most = max(share.of_words for share in view.classes)
        width = max(len(share.name) for share in view.classes) + 2
        lines += ["", f"  {'class':{width}}{'words':>9}{'tokens':>10}{'pieces per word':>17}"]
        lines += [
            f"  {c.name:{width}}{_percent(c.of_words, 2):>9}{_percent(c.of_tokens, 2):>10}"
            f"{c.pieces_per_word:17.3f}  {_bar(c.of_words, most)}".rstrip()
            for c in view.classes
        ]
    return "\n".join(lines)


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} %"


def _bar(share: float, most: float) -> str:
    eighths = round(8 * _BAR * share / most) if most else 0
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def write_data_page(out: Path, view: DataView) -> Path:
    """Write the picture to ``out`` and give its path; a folder gets ``data.html``.

    Raises UsageError or RunError if it cannot be written.
    """
    path = page_path(out, PAGE)
    most = max((share.of_words for share in view.classes), default=1.0) or 1.0
    page = render(
        _TEMPLATE,
        title="What the data holds",
        view=view,
        splits=[name.replace("_", " ") for name in view.splits],
        groups=legend_of(share.name for share in view.classes),
        classes=[_class_values(share, most) for share in view.classes if len(view.classes) > 1],
        pieces=[
            {
                "name": f"{k}+" if k == MOST_PIECES else str(k),
                "share": _percent(share, 1),
                "width": f"{100 * share / (max(view.pieces) or 1):.2f}",
            }
            for k, share in enumerate(view.pieces, start=1)
        ],
    )
    write_text(path, page)
    return path


def _class_values(share: ClassShare, most: float) -> dict[str, Any]:
    return {
        "name": share.name,
        "group": group_key(share.name),
        "share": _percent(share.of_words, 1),
        "width": f"{100 * share.of_words / most:.2f}",
        "pieces": "–" if np.isnan(share.pieces_per_word) else f"{share.pieces_per_word:.2f}",
    }
