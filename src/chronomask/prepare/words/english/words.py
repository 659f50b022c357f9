"""Words of English chunks and how they are spelt, as spaCy's English tokenizer has them.

spaCy tries some hundred patterns on every chunk it has not met. Most chunks are a word between quotes,
brackets and stops, and what those patterns make of such a chunk is plain from its characters; spaCy itself
is asked about all others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokenizer import Tokenizer

__all__ = [
    "FEATURES",
    "LONGEST_RUN",
    "EnglishWords",
    "FoundWords",
    "attribute_id",
    "cut_runs",
    "features_of",
    "plain_words",
    "spells_as_spacy",
]

FEATURES = ("ORTH", "LOWER", "PREFIX", "SUFFIX", "SHAPE")
"""What the bundled network knows of a word, in the order of its tables."""

LONGEST_RUN = 256
"""Characters of a run without white space that spaCy's tokenizer gets at a time. It tries its patterns
anew after every mark that it takes off such a run, so 50,000 brackets in one would take minutes."""
_OVERLONG = re.compile(rf"(?<!\S)\S{{{LONGEST_RUN + 1},}}")
_BETWEEN = " word "
_LETTER = "[A-Za-zÀ-ÖØ-öø-ſ]"
_CORE = rf"{_LETTER}+(?:[-–—]{_LETTER}+)*|[0-9]+(?:-[0-9]+)*|[0-9]+(?:[,–][0-9]+)*(?:\.[0-9]+)?"
_CLOSE = "[\"'”’)\\],;:]"
_PLAIN = re.compile(
    # Each mark before and after is a word, a stop after what is listed before it. Dashes between
    # letters are words, and hyphens between digits; other marks within numbers are not.
    rf"""(\n?)(["'“‘(\[]*)({_CORE})((?:['’]s)?)({_CLOSE}*(?:(?<=[a-z0-9"'”’)\]])\.)?{_CLOSE}*)"""
)
_HYPHEN, _DASH = re.compile("(-)"), re.compile("([-–—])")
_RUN = re.compile(f"{_LETTER}+|[0-9]+")


@dataclass(frozen=True, slots=True)
class FoundWords:
    """Words of chunks, one chunk after the other.

    ``words`` str [W] and ``starts`` int64 [W], in characters of the chunk; ``counts`` int64 [N]
    words of each.
    """

    words: list[str]
    starts: np.ndarray
    counts: np.ndarray


class EnglishWords:
    """Finds the words of chunks for a spaCy pipeline.

    A pipeline whose tokenizer has other patterns than spaCy's for English is asked about every chunk.
    """

    def __init__(self, pipeline: Language) -> None:
        tokenizer: Any = pipeline.tokenizer
        self._tokenizer = _bare(tokenizer)
        self._runs, self._signs = _special_cases(tokenizer)
        self._ask_always = not _has_english_patterns(tokenizer)

    def find(self, texts: Sequence[str], at_start: Sequence[bool]) -> FoundWords:
        """Words of chunks; ``at_start``: the chunk's white space begins its document."""
        leads = [int(t[:1] == " " and not first) for t, first in zip(texts, at_start, strict=True)]
        bodies = [text[lead:] for text, lead in zip(texts, leads, strict=True)]
        plain = [
            None if self._ask_always or len(body) > LONGEST_RUN else self._plain(body)
            for body in bodies
        ]
        asked = [number for number, words in enumerate(plain) if words is None]
        found: list[Sequence[str]] = [words or () for words in plain]
        answers = self._ask([bodies[number] for number in asked])
        for number, (words, _) in zip(asked, answers, strict=True):
            found[number] = words
        counts = np.fromiter(map(len, found), np.int64, len(found))
        flat = list(chain.from_iterable(found))
        edges = np.fromiter(accumulate(map(len, flat), initial=0), np.int64, len(flat) + 1)
        first = np.cumsum(counts) - counts
        # Words of a plain chunk touch.
        starts = edges[:-1] - np.repeat(edges[first] - np.asarray(leads, np.int64), counts)
        for number, (words, begins) in zip(asked, answers, strict=True):
            place = first[number]
            starts[place : place + len(words)] = np.asarray(begins, np.int64) + leads[number]
        return FoundWords(flat, starts, counts)

    def _plain(self, body: str) -> Sequence[str] | None:
        return plain_words(body, self._runs, self._signs)

    def _ask(self, bodies: Sequence[str]) -> list[tuple[list[str], list[int]]]:
        """Words of each body as spaCy finds them, and their first characters."""
        parts = [
            (number, offset, part)
            for number, body in enumerate(bodies)
            for offset, part in cut_runs(body)
        ]
        # Parts that end in visible characters share one call, a word between them: signs such as
        # ":(" are looked for across spaces.
        together = [k for k, (*_, part) in enumerate(parts) if part and not part[-1:].isspace()]
        alone = sorted(set(range(len(parts))) - set(together))
        found: list[tuple[list[str], list[int]]] = [([], []) for _ in parts]
        for group in [together, *([k] for k in alone)]:
            sizes = np.asarray([len(parts[k][2]) for k in group], np.int64)
            begins = np.cumsum(sizes + len(_BETWEEN)) - sizes - len(_BETWEEN)
            with self._tokenizer.vocab.memory_zone():
                document = self._tokenizer(_BETWEEN.join(parts[k][2] for k in group))
                words = [token.text for token in document]
                places = np.fromiter((token.idx for token in document), np.int64, len(words))
            owners = np.searchsorted(begins, places, side="right") - 1
            within = places - begins[owners]
            for number in np.flatnonzero(within < sizes[owners]):
                answer = found[group[owners[number]]]
                answer[0].append(words[number])
                answer[1].append(int(within[number]))
        if len(parts) == len(bodies):  # nothing was cut
            return found
        answers: list[tuple[list[str], list[int]]] = [([], []) for _ in bodies]
        for (number, offset, _), (of_part, at) in zip(parts, found, strict=True):
            answers[number][0].extend(of_part)
            answers[number][1].extend(offset + place for place in at)
        return answers


def cut_runs(text: str) -> list[tuple[int, str]]:
    """(offset, part) of a text whose joint is the text: cut inside runs longer than :data:`LONGEST_RUN`.

    A run is of characters that are not white space; it is cut at multiples of that length from its
    start, so its parts do not depend on what is around it.
    """
    if len(text) <= LONGEST_RUN:
        return [(0, text)]
    edges = [0]
    for run in _OVERLONG.finditer(text):
        edges += range(run.start() + LONGEST_RUN, run.end(), LONGEST_RUN)
    return [(a, text[a:b]) for a, b in zip(edges, [*edges[1:], len(text)], strict=True)]


def plain_words(
    body: str, special_runs: frozenset[str], special_signs: frozenset[str]
) -> Sequence[str] | None:
    """The words of a chunk without its space, None if spaCy has to be asked.

    ``special_runs`` are the runs of letters or digits of the tokenizer's special cases, which may be cut
    anywhere ("cannot") or not at all ("Jan."); ``special_signs`` its special cases without any.
    """
    if body.isalpha() and body.isascii():
        return None if body in special_runs else (body,)
    match = _PLAIN.fullmatch(body)
    if match is None:
        return None
    line, before, core, possessive, after = match.groups()
    if not special_runs.isdisjoint(_RUN.findall(core)):
        return None
    if len(before) > 1 and _has_sign(before, special_signs):
        return None
    if len(after) > 1 and _has_sign(after, special_signs):
        return None
    words = [line, *before] if line else [*before]
    words += (_HYPHEN if core[0].isdigit() else _DASH).split(core)
    if possessive:
        words.append(possessive)
    words += after
    return words


@lru_cache(maxsize=2)
def _bare(tokenizer: Any) -> Tokenizer:
    """The tokenizer with a vocabulary that asks nothing of a new word."""
    from spacy.tokenizer import Tokenizer
    from spacy.vocab import Vocab

    return Tokenizer(
        Vocab(),
        rules=tokenizer.rules,
        prefix_search=tokenizer.prefix_search,
        suffix_search=tokenizer.suffix_search,
        infix_finditer=tokenizer.infix_finditer,
        token_match=tokenizer.token_match,
        url_match=tokenizer.url_match,
        faster_heuristics=tokenizer.faster_heuristics,
    )


def _special_cases(tokenizer: Tokenizer) -> tuple[frozenset[str], frozenset[str]]:
    """Runs of letters or digits in a tokenizer's special cases; and the cases without any."""
    cases = list(tokenizer.rules)
    runs = frozenset(chain.from_iterable(map(_RUN.findall, cases)))
    return runs, frozenset(case for case in cases if not _RUN.search(case))


@lru_cache(maxsize=1 << 12)
def _has_sign(marks: str, signs: frozenset[str]) -> bool:
    """Whether a special case of two marks or more is among ``marks``."""
    return any(len(sign) > 1 and sign in marks for sign in signs)


def _has_english_patterns(tokenizer: Any) -> bool:
    """Whether a tokenizer cuts as spaCy's for English does, special cases aside."""
    from spacy.lang.en import English
    from spacy.util import compile_infix_regex, compile_prefix_regex, compile_suffix_regex

    own = English.Defaults
    patterns = [
        (tokenizer.prefix_search, compile_prefix_regex(own.prefixes or ()).search),
        (tokenizer.suffix_search, compile_suffix_regex(own.suffixes or ()).search),
        (tokenizer.infix_finditer, compile_infix_regex(own.infixes or ()).finditer),
        (tokenizer.url_match, own.url_match),
    ]
    return tokenizer.token_match is None and all(
        getattr(getattr(mine, "__self__", None), "pattern", None) == theirs.__self__.pattern
        for mine, theirs in patterns
    )


class _Kinds(dict[int, str]):
    """Characters by code: a letter's case, a digit, or the character itself."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        if sign.isalpha():
            sign = "X" if sign.isupper() else "x"
        elif sign.isdigit():
            sign = "d"
        self[code] = sign
        return sign


_kinds = _Kinds()
_LONG_RUN = re.compile(r"(.)\1{4,}", re.DOTALL)


def _shape(kinds: str) -> str:
    """The shape spaCy gives a word with these kinds of characters: runs cut to four ("Xxxxx")."""
    return "LONG" if len(kinds) >= 100 else _LONG_RUN.sub(r"\1\1\1\1", kinds)


def spells_as_spacy(vocab: Any) -> bool:
    """Whether :func:`features_of` is what a vocabulary says of its words."""
    from spacy.lang import lex_attrs

    own = {
        "LOWER": lex_attrs.lower,
        "PREFIX": lex_attrs.prefix,
        "SUFFIX": lex_attrs.suffix,
        "SHAPE": lex_attrs.word_shape,
    }
    getters = vocab.lex_attr_getters
    return all(getters.get(attribute_id(name)) is getter for name, getter in own.items())


def attribute_id(name: str) -> int:
    """The number of a spaCy attribute."""
    from spacy.attrs import IDS

    known: Any = IDS
    return int(known[name])


def features_of(words: Sequence[str]) -> np.ndarray:
    """uint64 [W, 5]: spaCy's hashes of :data:`FEATURES` of every word."""
    from spacy.strings import get_string_id

    part, shape = _Kept(get_string_id), _Kept(lambda kinds: get_string_id(_shape(kinds)))
    columns = [
        [get_string_id(word) for word in words],
        [get_string_id(word.lower()) for word in words],
        [part[word[0]] for word in words],
        [part[word[-3:]] for word in words],
        [shape[word.translate(_kinds)] for word in words],
    ]
    return np.asarray(columns, np.uint64).T


class _Kept(dict[str, int]):
    """A function's values by its argument."""

    def __init__(self, function: Callable[[str], int]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> int:
        value = self[text] = self._function(text)
        return value
