"""What of a docstring or README is English prose: whole sentences, without the markup around them.

May enter: rules that tell prose from code, lists, tables and headings, and that undo inline markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["prose_paragraphs"]

_FUNCTION_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "can", "for", "from", "has", "have", "if", "in",
    "into", "is", "it", "its", "may", "not", "of", "on", "one", "or", "so", "that", "the", "their", "them",
    "then", "there", "these", "they", "this", "to", "was", "were", "when", "which", "will", "with", "you",
))  # fmt: skip
_SECTION = re.compile(
    r"^(args?|arguments|attributes|deprecated|examples?|fields|inputs?|keyword arguments|keywords|"
    r"methods|note to self|notes?|other parameters|outputs?|parameters?|params|raises|"
    r"references|returns?|see also|shapes?|todo|usage|versionadded|warns?|warnings?|yields?)\s*:?\s*$",
    re.IGNORECASE,
)
_PROSE_SECTION = re.compile(r"^(notes?|warnings?|deprecated)\s*:?\s*$", re.IGNORECASE)
_UNDERLINE = re.compile(r"^([-=~^\"'`*+#.])\1{2,}\s*$")
_NO_PROSE_LINE = re.compile(r"^\s*(>>>|\.\.\.|\.\. |:[\w ]+:|@\w|\||\+[-=]|#|!\[|<|\$ |%)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^\s*([-*+•]|\(?\d+[.)]|\(?[a-zA-Z][.)])\s+")

_INLINE = (
    (re.compile(r"\s*\[[\d, ]+\]_?"), ""),  # citations
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),  # images
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),  # Markdown links
    (re.compile(r"\[`?([^\]`]+)`?\](?:\[[^\]]*\])?"), r"\1"),
    (re.compile(r":[\w:+.-]+:`~?(?:[\w.]*\.)?([^`<]+?)(?:\s*<[^`>]*>)?`"), r"\1"),  # roles
    (re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}"), r"\1"),  # reStructuredText links
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*{1,3}([^\s*](?:[^*]*[^\s*])?)\*{1,3}"), r"\1"),
    (re.compile(r"(?<!\w)_([^\s_](?:[^_]*[^\s_])?)_(?!\w)"), r"\1"),
    (re.compile(r"</?\w[^>]*>"), ""),  # HTML
    (re.compile(r"\s+"), " "),
)
_NO_PROSE = re.compile(
    r"https?:|www\.|::|->|=>|==|\w\(\)|\w\(\w|[{}<>|\\^~@#$=`*_]|\w/\w+/|\.(py|md|rst|txt|json|toml)\b"
)
_MIN_CHARACTERS, _MAX_CHARACTERS = 50, 5000
_ENDS = frozenset(".!?\"')”’`*_]>")
"""Last characters of a sentence, before its markup is undone."""
_SENTENCE = re.compile(r"""^["'(“]?[A-Z].*[.!?]["')”]?$""")
_BOILERPLATE = re.compile(
    r"copyright|all rights reserved|without warrant|licen[cs]ed? under|merchantability|sponsor|"
    r"pip install|pull request|automatically generated",
    re.IGNORECASE,
)


def prose_paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of ``text`` that read as English sentences, each on one line, unmarked."""
    for block in _blocks(text):
        if len(block) < _MIN_CHARACTERS or block[-1] not in _ENDS:
            continue
        for pattern, replacement in _INLINE:
            block = pattern.sub(replacement, block)
        block = block.strip()
        if _reads_as_prose(block):
            yield block


def _blocks(text: str) -> Iterator[str]:
    """Runs of flush-left lines outside code, lists of parameters, tables and headings."""
    lines = text.expandtabs(4).split("\n")
    block: list[str] = []
    in_fence = False
    hidden_below: int | None = None  # lines indented deeper than this belong to a dropped section
    for number, line in enumerate([*lines, ""]):
        if _FENCE.match(line):
            in_fence = not in_fence
            line = ""
        if in_fence:
            continue
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        following = lines[number + 1].strip() if number + 1 < len(lines) else ""
        if stripped and (_SECTION.match(stripped) or _UNDERLINE.match(following)):
            yield from _joined(block)
            block = []
            keeps = _PROSE_SECTION.match(stripped) or not _SECTION.match(stripped)
            # Under a numpy heading the entries are flush left; they end at the next heading.
            hidden_below = None if keeps else indent - bool(_UNDERLINE.match(following))
            continue
        if stripped and hidden_below is not None:
            if indent > hidden_below:
                continue
            hidden_below = None
        if not stripped or _UNDERLINE.match(stripped) or indent or _breaks(line):
            yield from _joined(block)
            block = []
        else:
            block.append(stripped)
    yield from _joined(block)


def _breaks(line: str) -> bool:
    return bool(_NO_PROSE_LINE.match(line) or _ITEM.match(line))


def _joined(block: list[str]) -> Iterator[str]:
    if block:
        yield " ".join(block)


def _reads_as_prose(text: str) -> bool:
    if not _MIN_CHARACTERS <= len(text) <= _MAX_CHARACTERS or not _SENTENCE.match(text):
        return False
    if _NO_PROSE.search(text) or _BOILERPLATE.search(text):
        return False
    words = text.split()
    plain = [word.strip("\"'“”‘’(),.;:!?-–—") for word in words]
    alphabetic = sum(
        word.replace("-", "").replace("'", "").replace("’", "").isalpha() for word in plain
    )
    function = sum(word.lower() in _FUNCTION_WORDS for word in plain)
    ascii_letters = sum(c.isascii() for c in text)
    return (
        len(words) >= 8
        and alphabetic >= 0.88 * len(words)
        and function >= 0.2 * len(words)
        and ascii_letters >= 0.97 * len(text)
    )
