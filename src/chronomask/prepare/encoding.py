"""A saved tokenizer at work: opened for encoding documents, with offsets that find words.

Workers open it so, with the ``tokenizers`` library alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask.vocabulary import vocabulary_size

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["ByteRuns", "for_documents", "load_backend"]


def load_backend(folder: Path) -> Tokenizer:
    """The tokenizer of a saved folder, as :func:`for_documents` opens it."""
    return for_documents((folder / "tokenizer.json").read_text(encoding="utf-8"))


def for_documents(text: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``, for encoding documents: no padding, no truncation, and a
    document that spells a special token ("[MASK]") is ordinary text.

    It is for encoding alone: the special tokens have other names in it.
    """
    from tokenizers import Tokenizer

    values = json.loads(text)
    _rename_specials(values)
    _trim_alike(values)
    backend = Tokenizer.from_str(json.dumps(values))
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _rename_specials(values: dict[str, Any]) -> None:
    """Change a ``tokenizer.json`` so that no special token is a piece that a text may hold.

    A model looks them up like its other entries, whatever ``encode_special_tokens`` says.
    """
    model = values["model"]
    entries = model["vocab"]
    # An entry that BPE's merges make cannot have another name than theirs.
    merged = {
        m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in model.get("merges", ())
    }
    renamed = set()
    added = values.get("added_tokens", [])
    for token in added:
        name, number = token["content"], token["id"]
        is_entry = number < len(entries) if isinstance(entries, list) else name in entries
        if not (token["special"] and is_entry) or name in merged:
            continue
        renamed.add(number)
        other = f"{_NOT_A_CHARACTER}{number}"
        if isinstance(entries, list):
            entries[number][0] = other
            continue
        entries[other] = entries.pop(name)
        if model.get("unk_token") == name:
            model["unk_token"] = other
    values["added_tokens"] = [token for token in added if token["id"] not in renamed]


def _trim_alike(values: dict[str, Any]) -> None:
    """Change a ``tokenizer.json`` so that a space that begins a text is trimmed from offsets like others.

    A post-processor leaves it to the first token where it believes that the pre-tokenizer added it.
    """
    before, after = values.get("pre_tokenizer") or {}, values.get("post_processor") or {}
    if before.get("type") == "ByteLevel" and not before["add_prefix_space"]:
        for processor in (after, *after.get("processors", ())):
            if "add_prefix_space" in processor:
                processor["add_prefix_space"] = False


_NOT_A_CHARACTER = "\ufdd0"  # Unicode promises that it never will be


class ByteRuns:
    """Parts the bytes of unknown characters among these.

    A Unigram tokenizer with byte fallback joins neighbouring characters that it does not know, and says of
    each of their bytes that it covers all of them. So words that touch, as ideographs do, would be one.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._normalizer = backend.normalizer
        self._byte_of = np.full(vocabulary_size(backend), -1)
        for token, number in backend.get_vocab().items():
            byte = _BYTE.fullmatch(token)
            if byte:
                self._byte_of[number] = int(byte[1], 16)

    @classmethod
    def of(cls, backend: Tokenizer) -> ByteRuns | None:
        """None for a tokenizer that does not join unknown characters."""
        model = json.loads(backend.to_str())["model"]
        joins = model["type"] == "Unigram" and model.get("byte_fallback")
        return cls(backend) if joins else None

    def part(self, text: str, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> None:
        """Change the offsets of a text's tokens (``starts``, ``ends`` int64 [T]) in place."""
        joined = (self._byte_of[ids] >= 0) & (ends - starts > 1)
        place = np.flatnonzero(joined)
        if not place.size:
            return
        new_run = (np.diff(place) > 1) | (np.diff(starts[place]) != 0)
        for run in np.split(place, np.flatnonzero(new_run) + 1):
            first, last = int(starts[run[0]]), int(ends[run[0]])
            # A byte that does not continue a character (10xxxxxx) begins the next one.
            character = np.cumsum(self._byte_of[ids[run]] & 0xC0 != 0x80) - 1
            origin = self._origins(text[first:last], int(character[-1]) + 1)
            starts[run] = first + origin[np.maximum(character, 0)]
            ends[run] = starts[run] + 1

    def _origins(self, text: str, num: int) -> np.ndarray:
        """int64 [num]: which character of a text each of its ``num`` normalised characters comes from."""
        normalise = self._normalizer.normalize_str if self._normalizer else str
        lengths = [len(normalise(character)) for character in text]
        if sum(lengths) == num:
            return np.repeat(np.arange(len(text)), lengths)
        return np.arange(num) * len(text) // num  # changed as a whole: about where they are


_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
