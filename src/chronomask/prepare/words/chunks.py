"""Chunks: pieces of a text that tokenizer and word finder treat alike wherever they stand.

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
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from chronomask.errors import need

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Chunks", "begins_its_text", "cut", "may_be_cut", "text_of"]

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
