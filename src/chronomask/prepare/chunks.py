"""Chunks: pieces of a text that tokenizer and word finder treat alike wherever they stand.

A chunk is a run of characters up to the next lone space or line feed, with the one before it. Nothing
that fast tokenizers of the kinds below or spaCy's tokenizer do reaches across such a cut, so a chunk
needs them once, however often it occurs. May enter: where a text may be cut, and for which tokenizers.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["AT_START", "cut", "may_be_cut", "text_of"]

AT_START = "\0"
"""Begins the key of a chunk whose white space begins its text, where it means something else."""

# Between two visible characters, before a lone space or line feed.
_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")


def cut(text: str) -> list[str]:
    """The chunks of a text, in order; their :func:`text_of`, joined, is the text.

    A text with a NUL is one chunk.
    """
    if AT_START in text:
        return [AT_START + text]
    words = text.split()
    gaps = len(words) - 1
    if gaps >= 0 and len(text) - sum(map(len, words)) == gaps == text.count(" ") + text.count("\n"):
        return text.replace(" ", "\0 ").replace("\n", "\0\n").split("\0")
    chunks = _CUT.split(text)
    if chunks[0][:1].isspace():
        chunks[0] = AT_START + chunks[0]
    return chunks if text else []


def text_of(chunk: str) -> str:
    """The characters of a chunk."""
    return chunk.removeprefix(AT_START)


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
