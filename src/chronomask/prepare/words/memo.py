"""What tokenizer and tagger say about chunks, kept: text becomes tokens mostly by looking up.

A language's frequent words make most of its text. Each different chunk is tokenised, cut into words and
aligned once; a text is then its chunks' tokens one after the other, and only what depends on the
neighbours, the class of a word in context, is computed for every word. Nothing that comes out depends
on what is known already.

A chunk is a run of characters up to the next lone space or line feed, with the one before it, or to the
comma in front of one. Nothing that fast tokenizers of the kinds below or spaCy's tokenizer do reaches
across such a cut, so a chunk needs them once, however often it occurs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numba import njit

from chronomask.compiled import KEPT
from chronomask.data.annotation import SPECIAL, annotate
from chronomask.errors import need
from chronomask.prepare.words.align import word_begins, words_of_tokens
from chronomask.prepare.words.tagger import ChunkTagger

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

__all__ = [
    "ChunkMemo",
    "Chunks",
    "Growing",
    "Numbers",
    "begins_its_text",
    "cut",
    "may_be_cut",
    "text_of",
    "token_arrays",
]

_ENCODING = "utf-32-le"  # an array of code points
_AT_START = "\0"
"""Begins the key of a chunk whose white space begins its text, where it means something else."""
_ENCODED_START = _AT_START.encode(_ENCODING)


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of several texts, one text after the other.

    ``distinct`` bytes [D]: keys of the different ones, for :func:`text_of`; ``which`` int64 [C] the one of
    every chunk; ``counts`` int64 [N] chunks of each text.
    """

    distinct: list[bytes]
    which: np.ndarray
    counts: np.ndarray


def cut(texts: Sequence[str]) -> Chunks:
    """Cut texts before every space or line feed that is alone between two visible characters.

    And before a comma between a small Latin letter and such a space. Joined, the chunks of a text
    are the text. A text with a NUL is one chunk.
    """
    pa = need("pyarrow", "prepare", "preparation")
    with_nul = [_AT_START in text for text in texts]
    marked = [
        _AT_START + text if nul or text[:1].isspace() else text
        for text, nul in zip(texts, with_nul, strict=True)
    ]
    data = "".join(marked).encode(_ENCODING, "surrogatepass")
    codes = np.frombuffer(data, np.uint32)
    edges = np.fromiter(accumulate(map(len, marked), initial=0), np.int64, len(texts) + 1)
    space = _is_space()[codes]
    lone = (codes == ord(" ")) | (codes == ord("\n"))
    lone[1:] &= ~space[:-1]
    lone[:-1] &= ~space[1:]
    lone[edges[edges > 0] - 1] = False  # nothing follows in its text
    begins = np.append(lone, False)
    comma = codes[1:-1] == ord(",")
    begins[1:-2] |= comma & lone[2:] & (codes[:-2] >= ord("a")) & (codes[:-2] <= ord("z"))
    for number in np.flatnonzero(with_nul):
        begins[edges[number] : edges[number + 1]] = False
    begins[edges] = True
    offsets = np.flatnonzero(begins)
    counts = np.diff(np.searchsorted(offsets, edges))
    buffers = [None, pa.py_buffer(4 * offsets), pa.py_buffer(data)]
    chunks = pa.Array.from_buffers(pa.large_binary(), offsets.size - 1, buffers)
    coded = chunks.dictionary_encode()
    return Chunks(coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64), counts)


def text_of(key: bytes) -> str:
    """The characters of a chunk."""
    return key.decode(_ENCODING, "surrogatepass").removeprefix(_AT_START)


def begins_its_text(key: bytes) -> bool:
    """Whether a chunk's white space begins its text (or the text has a NUL)."""
    return key.startswith(_ENCODED_START)


@lru_cache(maxsize=1)
def _is_space() -> np.ndarray:
    """Bool [0x110000]: code points that are white space, or mark a text's beginning."""
    table = np.zeros(sys.maxunicode + 1, bool)
    table[: 1 << 16] = [chr(code).isspace() for code in range(1 << 16)]  # no others are
    table[ord(_AT_START)] = True
    return table


def may_be_cut(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer gives a text's tokens chunk by chunk.

    Known to hold for BERT's and GPT-2's ways of finding words (WordPiece and byte-level BPE), without
    added tokens that ordinary text can match.
    """
    parts = json.loads(tokenizer.to_str())
    if any(not token["special"] for token in parts["added_tokens"]):
        return False
    if parts["model"].get("dropout") or parts["model"]["type"] not in ("WordPiece", "BPE"):
        return False
    normalizer, before = parts["normalizer"] or {}, parts["pre_tokenizer"] or {}
    if before.get("type") == "BertPreTokenizer":
        return normalizer.get("type") == "BertNormalizer"
    return (
        before.get("type") == "ByteLevel"
        and before.get("use_regex") is True
        and before.get("add_prefix_space") is False
        and normalizer.get("type") in (None, "NFC")
    )


MOST_CHUNKS = 1 << 18
"""Different chunks kept at most; then all are forgotten, so memory stays flat (about 500 MB)."""


_BLOCK = 1 << 9
"""Characters of new chunks that the tokenizer gets at a time, about."""


_Thing = TypeVar("_Thing", str, bytes)


class Numbers(dict[_Thing, int], Generic[_Thing]):
    """Things numbered as they are met, from ``first``; ``new``: those met since it was emptied."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self._first = first
        self.new: list[_Thing] = []

    def __missing__(self, thing: _Thing) -> int:
        number = self[thing] = self._first + len(self)
        self.new.append(thing)
        return number


class Growing:
    """An array whose first axis grows; room doubles when it is full, and is kept when it is emptied.

    ``rows`` is a view of what was appended, [N, *shape] of ``dtype``, good until more is.
    """

    def __init__(self, dtype: Any, shape: tuple[int, ...] = (), room: int = 1 << 10) -> None:
        self._array = np.zeros((room, *shape), dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def rows(self) -> np.ndarray:
        return self._array[: self._size]

    def extend(self, num: int) -> np.ndarray:
        """Room for ``num`` more rows, to be written at once: their view."""
        begin, self._size = self._size, self._size + num
        if self._size > len(self._array):
            shape = (max(self._size, 2 * len(self._array)), *self._array.shape[1:])
            larger = np.empty(shape, self._array.dtype)
            larger[:begin] = self._array[:begin]
            self._array = larger
        return self._array[begin : self._size]

    def append(self, rows: np.ndarray) -> None:
        """Append rows, converted to the array's dtype."""
        self.extend(len(rows))[...] = rows

    def clear(self) -> None:
        """Forget every row."""
        self._size = 0


class ChunkMemo:
    """Every different chunk's tokens and words, for one tokenizer and one tagger."""

    def __init__(self, tokenizer: Tokenizer, tagger: ChunkTagger, most: int = MOST_CHUNKS) -> None:
        self._tokenizer = tokenizer
        self._tagger = tagger
        self._most = most
        self._chunks = Numbers[bytes]()
        # Of every chunk, and one more: where its tokens and words begin.
        self._token_begin, self._word_begin = Growing(np.int64), Growing(np.int64)
        self._visible, self._unknown = Growing(np.int64), Growing(np.int64)
        # Of every token, and of every word.
        self._ids, self._annotation = Growing(np.uint32), Growing(np.uint8)
        self._word, self._types = Growing(np.int32), Growing(np.int32)
        self._forget()

    def _forget(self) -> None:
        self._tagger.forget()
        self._chunks.clear()
        for kept in (
            self._token_begin, self._word_begin, self._visible, self._unknown,
            self._ids, self._annotation, self._word, self._types,
        ):  # fmt: skip
            kept.clear()
        for begins in (self._token_begin, self._word_begin):
            begins.append(np.zeros(1, np.int64))

    def annotate(
        self, texts: Sequence[str], is_special: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int, int]:
        """``ids`` int64 and ``annotation`` uint8 [T] of the texts' tokens, ``lengths`` int64 [N]: tokens

        of each text, ``unknown`` int64 [N]: characters of its unknown tokens, the number of words, and the
        number of tokens without one.
        """
        if len(self._chunks) > self._most:
            self._forget()
        found = cut(texts)
        distinct = np.fromiter(
            map(self._chunks.__getitem__, found.distinct), np.int64, len(found.distinct)
        )
        chunks, counts = distinct[found.which], found.counts
        if self._chunks.new:
            self._learn(self._chunks.new, is_special)
            self._chunks.new = []
        types, first_word = _place_words(chunks, counts, self._word_begin.rows, self._types.rows)
        classes = self._tagger.classify(types)
        ids, annotation, lengths, without_word = _place_tokens(
            chunks, counts, self._token_begin.rows, self._ids.rows, self._annotation.rows,
            self._word.rows, first_word, classes,
        )  # fmt: skip
        edges = np.append(0, np.cumsum(counts))
        unknown = np.diff(np.append(0, np.cumsum(self._unknown.rows[chunks]))[edges])
        num_words = int(self._visible.rows[chunks].sum())
        return ids, annotation, lengths, unknown, num_words, without_word

    def _learn(self, new: list[bytes], is_special: np.ndarray) -> None:
        """Tokenise, find words and align chunks that were not met before."""
        texts, first = [text_of(key) for key in new], [begins_its_text(key) for key in new]
        ids, starts, ends, num_tokens = _encode(self._tokenizer, texts, first)
        words = self._tagger.learn(texts, first)
        # One character axis for all, with a gap so that no token reaches the next chunk.
        sizes = np.fromiter((len(text) + 2 for text in texts), np.int64, len(texts))
        base = np.cumsum(sizes) - sizes
        token_shift, word_shift = np.repeat(base, num_tokens), np.repeat(base, words.counts)
        seen = np.flatnonzero(words.visible)
        special = is_special[ids]
        word = words_of_tokens(
            starts + token_shift,
            ends + token_shift,
            (words.starts + word_shift)[seen],
            (words.ends + word_shift)[seen],
            no_word=special,
        )
        annotation = annotate(np.zeros(ids.size, np.uint8), word_begins(word), special)
        first_word = np.repeat(np.cumsum(words.counts) - words.counts, num_tokens)
        within = np.where(word >= 0, seen[word] - first_word, -1) if seen.size else word
        owner = np.repeat(np.arange(len(texts)), words.counts)
        for begins, counts in ((self._token_begin, num_tokens), (self._word_begin, words.counts)):
            begins.append(begins.rows[-1] + np.cumsum(counts))
        self._visible.append(np.bincount(owner[seen], minlength=len(texts)))
        chunk = np.repeat(np.arange(len(texts)), num_tokens)
        self._unknown.append(np.bincount(chunk, (ends - starts) * special, minlength=len(texts)))
        self._ids.append(ids)
        self._annotation.append(annotation)
        self._word.append(within)
        self._types.append(words.types)


def _encode(
    tokenizer: Tokenizer, texts: Sequence[str], at_start: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, start and end characters within its chunk of every token, int64 [T]; tokens of each chunk, [N].

    Chunks that may follow each other in a text go to the tokenizer as one text: a call per chunk costs
    more than its tokens do.
    """
    joined: list[list[str]] = []
    block_of = np.empty(len(texts), np.int64)
    open_ended, length = False, 0
    for number, (text, first) in enumerate(zip(texts, at_start, strict=True)):
        if first or not open_ended or length > _BLOCK or text[:1] not in (" ", "\n"):
            joined.append([])
            length = 0
        joined[-1].append(text)
        block_of[number] = len(joined) - 1
        length += len(text)
        open_ended = not text[-1:].isspace()
    encodings = tokenizer.encode_batch(
        ["".join(block) for block in joined], add_special_tokens=False
    )
    in_block = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
    ids, starts, ends = token_arrays(encodings, int(in_block.sum()))
    # One character axis, with a gap after every block: a token may begin where its block ends.
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    begins = np.cumsum(sizes) - sizes + 2 * block_of
    first = np.flatnonzero(np.diff(block_of, prepend=-1))
    shift = np.repeat(begins[first], in_block)
    owner = np.searchsorted(begins, starts + shift, side="right") - 1
    shift -= begins[owner]
    return ids, starts + shift, ends + shift, np.bincount(owner, minlength=len(texts))


@njit(cache=KEPT, nogil=True)
def _place_words(chunks: Any, counts: Any, word_begin: Any, types: Any) -> Any:
    """Word types of texts of ``counts`` chunks, two zeros around each; and each chunk's first word."""
    total = 2
    for chunk in chunks:
        total += word_begin[chunk + 1] - word_begin[chunk]
    out = np.zeros(total + 2 * counts.size, np.int64)
    first = np.empty(chunks.size, np.int64)
    place, n = 2, 0
    for count in counts:
        for _ in range(count):
            chunk = chunks[n]
            first[n] = place
            for word in range(word_begin[chunk], word_begin[chunk + 1]):
                out[place] = types[word]
                place += 1
            n += 1
        place += 2
    return out, first


@njit(cache=KEPT, nogil=True)
def _place_tokens(
    chunks: Any, counts: Any, token_begin: Any, ids: Any, annotation: Any, word: Any,
    first_word: Any, classes: Any,
) -> Any:  # fmt: skip
    """Tokens of the texts with classes; tokens of each text; and how many tokens have no word."""
    total = 0
    for chunk in chunks:
        total += token_begin[chunk + 1] - token_begin[chunk]
    out_ids = np.empty(total, np.int64)
    out_annotation = np.empty(total, np.uint8)
    lengths = np.zeros(counts.size, np.int64)
    place = n = without_word = 0
    for text in range(counts.size):
        begin = place
        for _ in range(counts[text]):
            chunk = chunks[n]
            for token in range(token_begin[chunk], token_begin[chunk + 1]):
                out_ids[place] = ids[token]
                value = annotation[token]
                if word[token] >= 0:
                    value |= classes[first_word[n] + word[token]]
                elif value < SPECIAL:
                    without_word += 1
                out_annotation[place] = value
                place += 1
            n += 1
        lengths[text] = place - begin
    return out_ids, out_annotation, lengths, without_word


def token_arrays(
    encodings: Sequence[Encoding], total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, start and end characters of all tokens, int64 [T] each."""
    ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int64, total)
    flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
    offsets = np.fromiter(flat, np.int64, 2 * total).reshape(total, 2)
    return ids, offsets[:, 0], offsets[:, 1]
