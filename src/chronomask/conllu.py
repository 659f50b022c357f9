"""CoNLL-U: sentences with words and their tags (https://universaldependencies.org/format.html)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from chronomask.errors import DataError
from chronomask.types import UPOS, TaggedWords

__all__ = ["COLUMNS", "Sentence", "as_text", "by_document", "sentences"]

_NUM_COLUMNS = 10
COLUMNS: Mapping[str, int] = {"form": 1, "lemma": 2, "upos": 3, "xpos": 4, "feats": 5, "deprel": 7}
"""The columns that say one thing of every word."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a treebank: syntactic words, whether a space follows each, and their tags."""

    words: tuple[str, ...]
    spaces: tuple[bool, ...]
    tags: tuple[str, ...]
    starts_document: bool
    written_as: tuple[tuple[int, int, str], ...] = ()
    """Multiword tokens: first word, end (exclusive), and how they are written ("don't")."""


def sentences(
    lines: Iterable[str],
    path: object,
    tags: Sequence[str] | None = UPOS,
    column: str = "upos",
    way_out: str = "",
) -> Iterator[Sentence]:
    """The sentences in the lines of a CoNLL-U file, ``path`` for messages.

    ``column``: the one of ``COLUMNS`` that tags the words; ``tags``: what may stand there; None: anything.
    ``way_out``: what to do about others, as the end of a sentence.

    A word is a syntactic word: the line `3-4 don't` of a multiword token only says how they are
    written and whether a space follows the last (none follows the others), and empty nodes (`8.1`) are
    passed over. Raises :class:`DataError` for a malformed line, a tag outside ``tags``, a file that
    ends inside a sentence, no sentence at all, or words that are withheld, at the file's end.
    """
    words: list[str] = []
    spaces: list[bool] = []
    found: list[str] = []
    written_as: list[tuple[int, int, str]] = []
    starts_document = False
    multiword_end = 0  # id of the last word of the multiword token being read
    multiword_space = True
    num_sentences = num_words = num_withheld = 0

    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if line.startswith("#"):
            starts_document |= line.startswith("# newdoc")
            continue
        if line:
            columns = line.split("\t")
            if len(columns) != _NUM_COLUMNS:
                raise DataError(
                    f"{path}:{number}: {len(columns)} tab-separated columns, "
                    f"CoNLL-U has {_NUM_COLUMNS}"
                )
            token_id, word, misc = columns[0], columns[1], columns[9]
            tag = columns[COLUMNS[column]]
            space = "SpaceAfter=No" not in misc.split("|")
            if "." in token_id:
                continue
            if "-" in token_id:
                multiword_end = _range_end(token_id, len(words) + 1, path, number)
                multiword_space = space
                written_as.append((len(words), multiword_end, word))
                continue
            if token_id != str(len(words) + 1):
                raise DataError(f"{path}:{number}: word id {token_id!r}, expected {len(words) + 1}")
            if tags is not None and tag not in tags:
                raise DataError(
                    f"{path}:{number}: {tag!r} is not a universal part-of-speech tag; the tags are "
                    f"{', '.join(tags)}{way_out}"
                )
            words.append(word)
            found.append(tag)
            if len(words) < multiword_end:
                spaces.append(False)
            elif len(words) == multiword_end:
                spaces.append(multiword_space)
            else:
                spaces.append(space)
        elif words:
            if multiword_end > len(words):
                raise DataError(
                    f"{path}:{number}: the sentence ends at word {len(words)}, inside a multiword token "
                    f"that ends at {multiword_end}"
                )
            yield Sentence(
                tuple(words), tuple(spaces), tuple(found), starts_document, tuple(written_as)
            )
            num_sentences += 1
            num_words += len(words)
            num_withheld += words.count(_WITHHELD)
            words, spaces, found, written_as = [], [], [], []
            starts_document, multiword_end = False, 0
    if words:
        raise DataError(
            f"{path}: ends inside a sentence (no empty line after the last word): copy it again, or add an "
            "empty line at its end where the last sentence is whole"
        )
    if not num_sentences:
        raise DataError(f"{path}: no sentence found")
    if 2 * num_withheld > num_words:
        raise DataError(
            f"{path}: {num_withheld:,} of {num_words:,} words are '{_WITHHELD}': this treebank comes without "
            "its text, and the README beside it says how to put that back"
        )


def _range_end(token_id: str, expected: int, path: object, number: int) -> int:
    start, _, end = token_id.partition("-")
    if not (start.isdecimal() and end.isdecimal() and int(start) < int(end)):
        raise DataError(f"{path}:{number}: {token_id!r} is not a range of word ids")
    if int(start) != expected:
        raise DataError(
            f"{path}:{number}: the words {token_id} of a multiword token stand behind it, and the next word "
            f"is {expected}"
        )
    return int(end)


_WITHHELD = "_"
"""What stands for every word of a treebank that is given away without its text."""


def by_document(found: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    """The sentences of each document: from one ``# newdoc`` to the next.

    In a file that does not begin with ``# newdoc`` every sentence is a document.
    """
    document: list[Sentence] = []
    alone = True
    for number, sentence in enumerate(found):
        if number == 0:
            alone = not sentence.starts_document
        if document and (alone or sentence.starts_document):
            yield document
            document = []
        document.append(sentence)
    if document:
        yield document


def as_text(document: Sequence[Sentence]) -> tuple[str, TaggedWords]:
    """Sentences as they were written, and where their words are.

    A multiword token whose words do not spell it (French "du" = de + le) is one word, with the tag of
    its first. ``_`` is "", no tag.
    """
    pieces: list[str] = []
    starts, ends, tags = [], [], []
    at = 0
    for sentence in document:
        for word, tag, space in _surface_words(sentence):
            pieces += (word, " ") if space else (word,)
            starts.append(at)
            ends.append(at + len(word))
            tags.append("" if tag == "_" else tag)
            at = ends[-1] + space
    return "".join(pieces).rstrip(" "), TaggedWords(tuple(starts), tuple(ends), tuple(tags))


def _surface_words(sentence: Sentence) -> Iterator[tuple[str, str, bool]]:
    """Word, tag and "a space follows" of everything that stands in the text."""
    merged = {
        first: (end, form)
        for first, end, form in sentence.written_as
        if form != "".join(sentence.words[first:end])
    }
    at = 0
    while at < len(sentence.words):
        end, form = merged.get(at, (at + 1, sentence.words[at]))
        yield form, sentence.tags[at], sentence.spaces[end - 1]
        at = end
