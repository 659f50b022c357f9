"""What a preparation doubts of its text, and what it left out: lines for people, on standard error."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chronomask.data.folder import PreparedData
from chronomask.errors import printable
from chronomask.prepare.read.find import is_address
from chronomask.prepare.read.left_out import Skipped, list_names
from chronomask.prepare.read.records import how_to_read
from chronomask.prepare.tokenizer import TokenizerChoice
from chronomask.prepare.words.tagger import Tagger
from chronomask.prepare.words.unicode import unlikely_language
from chronomask.progress import say
from chronomask.yardsticks import expected_predictions, few_in_words

__all__ = [
    "doubt_language",
    "doubt_repeats",
    "doubt_validation",
    "doubt_vocabulary",
    "tell_what_is_thrown_away",
    "tell_what_was_left_out",
]

logger = logging.getLogger(__name__)

_LOOKED_AT = 1000
"""Characters of a document that are looked at."""
_TOO_MUCH = 0.15
"""How much more of the tokens than of the documents may be held out unnoticed."""
_MANY_UNKNOWN = 0.01
"""Share of the characters in unknown tokens that is worth a warning."""


def doubt_language(texts: Iterable[str], tokenizer: TokenizerChoice, tagger: Tagger) -> None:
    """Warn where tokenizer or tagger are not for such text."""
    beginnings = [text[:_LOOKED_AT] for text in texts]
    language = tagger.made_for()
    why = unlikely_language(language, beginnings) if language else None
    english = unlikely_language("en", beginnings) is None
    damage = tokenizer.damage(beginnings, english=english)
    if damage:
        logger.warning("the tokenizer %s", damage)
    if why:
        logger.warning(
            "the tagger is for text in '%s', but %s: its classes will mean little. Choose "
            "another, such as --set tagger=bands, which any language has, or --set tagger=none",
            language, why,
        )  # fmt: skip


def doubt_repeats(sources: Iterable[Mapping[str, Any]]) -> None:
    """Warn of files that are read more than once; ``sources``: what they are, by their ``file``."""
    named = [source["file"] for source in sources if "file" in source]
    files = Counter(name if is_address(name) else str(Path(name).resolve()) for name in named)
    names = [printable(file) for file, times in files.items() if times > 1]
    if names:
        logger.warning(
            "%s named more than once, and all of the text is read as often (%s): leave out what a folder or "
            "pattern holds already, unless it is meant to count more",
            "1 file is" if len(names) == 1 else f"{len(names):,} files are", list_names(names),
        )  # fmt: skip


def tell_what_is_thrown_away(out: Path, difference: str) -> None:
    """Warn that another unfinished preparation is lost; ``difference``: what differs, as a clause."""
    logger.warning(
        "what an unfinished preparation had done in %s is thrown away: %s", out, difference
    )


def doubt_validation(
    held_out: int, parts: int, train: int, num_documents: int, asked: float, *, may_split: bool
) -> None:
    """Warn where so many held-out tokens, beside those to train on, are too few or too many.

    ``parts``: how many parts of documents in one row they are; ``asked``: the share of the documents,
    ``num_documents``, that was to be held out; ``may_split``: whether there are .txt files that might be
    read line by line.
    """
    share = held_out / max(held_out + train, 1)
    what = None
    if num_documents == 1:
        what = "the text is one document, and nothing is left to validate on"
    elif share > asked + _TOO_MUCH:
        what = f"the text is {num_documents:,} documents, and {100 * share:.0f} % of its tokens are held out"
    if what is not None:
        logger.warning(
            "%s: a document is held out as a whole or not at all. Give more %s",
            what,
            "files, or add --set txt_documents=lines where each line of a .txt file stands for itself"
            if may_split
            else "documents",
        )
    few = few_in_words(*expected_predictions(held_out, parts))
    if num_documents > 1 and few:
        logger.warning(
            "%s held out: %s: give more text, or a larger share with --set held_out=NUMBER",
            "1 token is" if held_out == 1 else f"{held_out:,} tokens are",
            few,
        )


def doubt_vocabulary(data: PreparedData, tokenizer: TokenizerChoice) -> None:
    """Warn where much of the text is unknown to its tokenizer."""
    total = data.unknown_share()
    if total is None or total <= _MANY_UNKNOWN:
        return
    train = data.unknown_share("train") or 0.0
    way_out = tokenizer.advise()
    if train <= _MANY_UNKNOWN:
        way_out = (
            "They are held out, and of characters that the training text lacks: give more text"
        )
    logger.warning(
        "%.1f %% of the characters are unknown to the tokenizer of %s (%.1f %% of the training text's) and "
        "will never be masked. %s",
        100 * total, data.path, 100 * train, way_out,
    )  # fmt: skip


def tell_what_was_left_out(report: Mapping[str, Any]) -> None:
    """Print on stderr, also where nothing else is shown, what did not become rows as it was given."""
    files = report["read_by_lines"]
    if files:
        say(
            f"read line by line, because they have no blank line (txt_documents): {list_names(files)}"
        )
    skipped = Skipped()
    skipped.merge(report["skipped"])
    if skipped.reasons:
        say(f"{skipped.summary()}; more in statistics.json{how_to_read(skipped)}")
