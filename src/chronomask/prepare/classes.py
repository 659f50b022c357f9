"""Words and classes for rows that somebody else has tokenised, such as a Hugging Face data set."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from chronomask.errors import DataError, UsageError, shown
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.encoding import ByteRuns
from chronomask.prepare.words.align import align
from chronomask.prepare.words.tagger import Tagger, WordFinder, tagger_of_text
from chronomask.text_files import check_text
from chronomask.vocabulary import special_ids, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["add_classes"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MISSING = object()


def add_classes(
    dataset: Any,
    tokenizer: PreTrainedTokenizerBase,
    tagger: Tagger | Mapping[str, Any] | str = "english",
    *,
    text_column: str = "text",
    **options: Any,
) -> Any:
    """The data set with ``word_ids`` and ``token_class`` for every row's ``input_ids``.

    ``dataset``: a ``datasets.Dataset``, ``DatasetDict`` or stream, or a list of dictionaries; ``tagger``:
    a tagger or its name, as ``chronomask prepare --tagger`` takes it, other than ``bands`` and ``column``,
    which need a preparation. Where a row has a text (``text_column``) whose first tokens are the row's,
    words and classes are those of the text; ``offset_mapping`` is used if there is one. Rows without a
    text, such as those that were joined and cut, are spelled from their tokens: a tokenizer that
    lower-cases then gives the tagger lower-case text. ``options`` go to ``Dataset.map``.

    ``word_ids``: a number per token, −1 for special tokens; ``token_class``: 0 is none. The names of the
    classes are the column's: ``dataset.features["token_class"].feature.names``. Raises
    :class:`UsageError` for a tokenizer that is not fast, a row without ``input_ids``, and a tagger that
    needs a preparation, :class:`DataError` for token ids that the tokenizer does not have and for offsets
    that are not two numbers for each token.
    """
    chosen = _tagger_of(tagger)
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which tells no character offsets; "
            "use its fast class"
        )
    if chosen.learns or chosen.columns:
        raise UsageError(
            f"the tagger {chosen.label()} needs a preparation of the text (chronomask prepare); rows of "
            "your own take english, spacy:PIPELINE, stanza:LANGUAGE or none"
        )
    chosen.check()
    mark = _Mark(tokenizer, chosen, text_column)
    return _map_over(dataset, mark, chosen.classes(), options)


def _map_over(dataset: Any, mark: _Mark, names: Sequence[str], options: dict[str, Any]) -> Any:
    """Every split of a data set, every row of a split, marked."""
    if isinstance(dataset, Mapping):
        if "input_ids" in dataset:
            raise UsageError(
                "this is a batch of columns, such as a tokenizer gives; make a data set of it with "
                "datasets.Dataset.from_dict(dict(batch))"
            )
        parts = {name: _map_over(part, mark, names, options) for name, part in dataset.items()}
        return type(dataset)(parts)  # pyright: ignore[reportCallIssue]
    if not hasattr(dataset, "map"):
        rows = list(dataset)
        for row in rows:
            if not isinstance(row, Mapping):
                raise UsageError(f"a row is {shown(row)}; give dictionaries with input_ids")
        return [{**row, **new} for row, new in zip(rows, mark.rows(rows), strict=True)]
    if getattr(dataset, "features", None) is None:  # a stream that does not say what it holds
        return dataset.map(mark, batched=True, **options)
    from datasets import ClassLabel, List, Value

    features = dataset.features.copy()
    features["word_ids"] = List(Value("int32"))
    features["token_class"] = List(ClassLabel(names=list(names)))
    return dataset.map(mark, batched=True, features=features, **options)


def _tagger_of(value: Tagger | Mapping[str, Any] | str) -> Tagger:
    """A tagger from its name or its keys; raises :class:`UsageError`."""
    if isinstance(value, Tagger):
        return value
    keys = {"sources": ["none"], "tagger": tagger_of_text(value)}
    return PrepareConfig.parse(keys, where="add_classes").tagger


class _Mark:
    """Marks batches of rows; it is sent to processes without what it has loaded."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tagger: Tagger, text_column: str
    ) -> None:
        self._tokenizer = tokenizer
        self._tagger = tagger
        self._text_column = text_column
        self._finder: WordFinder | None = None
        backend: Any = tokenizer
        self._byte_runs = ByteRuns.of(backend.backend_tokenizer)
        self._vocabulary_size = vocabulary_size(tokenizer)

    def __reduce__(self) -> tuple[Any, ...]:
        """How it reaches another process: as what it was made of."""
        return type(self), (self._tokenizer, self._tagger, self._text_column)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        """The two new columns of a batch of columns."""
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        marked = self.rows(rows)
        return {name: [row[name] for row in marked] for name in ("word_ids", "token_class")}

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, list[int]]]:
        """``word_ids`` and ``token_class`` of each row."""
        if self._finder is None:
            self._finder = self._tagger.open()
        spelled = [self._spell(row) for row in rows]
        tagged = self._finder.tag([text for text, _ in spelled])
        special = np.asarray(sorted(special_ids(self._tokenizer)))
        out = []
        for row, (_, offsets), words in zip(rows, spelled, tagged, strict=True):
            is_special = np.isin(np.asarray(row["input_ids"], np.int64), special)
            starts, classes, _ = align(
                offsets[:, 0], offsets[:, 1], words.starts, words.ends, words.classes,
                no_word=is_special,
            )  # fmt: skip
            # A special token between two of a word does not part it; the first maskable token begins one.
            starts &= ~is_special
            word = np.where(is_special, -1, np.cumsum(starts) - 1)
            classes = np.where(is_special, 0, classes)
            out.append({"word_ids": word.tolist(), "token_class": classes.tolist()})
        return out

    def _spell(self, row: Mapping[str, Any]) -> tuple[str, np.ndarray]:
        """A row's text and the characters of each of its tokens, int64 [T, 2]."""
        ids = row.get("input_ids", _MISSING)
        if ids is _MISSING:
            raise UsageError(
                f"a row has no input_ids (it has {', '.join(map(str, row))}): tokenise the data set first"
            )
        try:
            numbers = [int(number) for number in ids]
        except (TypeError, ValueError):
            raise UsageError(
                f"a row's input_ids are {shown(ids)}; they must be a list of whole numbers"
            ) from None
        _check_ids(numbers, self._vocabulary_size)
        text = row.get(self._text_column)
        if isinstance(text, str):
            check_text(text, f"column {self._text_column!r} of a row, {shown(text)}")
            offsets = row.get("offset_mapping")
            if offsets is None:
                offsets = self._offsets_in(text, numbers)
            if offsets is not None:
                spans = _spans_of(offsets, len(numbers))
                if self._byte_runs is not None:
                    self._byte_runs.part(text, np.asarray(numbers), spans[:, 0], spans[:, 1])
                return text, spans
        return spell(numbers, self._tokenizer)

    def _offsets_in(self, text: str, ids: list[int]) -> list[tuple[int, int]] | None:
        """The characters of a row's tokens in its text; None if they are not the text's first tokens."""
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        known, offsets = encoding["input_ids"], encoding["offset_mapping"]
        special = set(self._tokenizer.all_special_ids)
        found: list[tuple[int, int]] = []
        place = 0
        for number in ids:
            if place < len(known) and number == known[place]:
                found.append(tuple(offsets[place]))
                place += 1
            elif number in special:
                end = found[-1][1] if found else 0
                found.append((end, end))
            else:
                return None
        return found


def _check_ids(ids: Sequence[int], size: int) -> None:
    """Raise :class:`DataError` for a token id that a vocabulary of ``size`` ids cannot have."""
    bad = next((number for number in ids if not 0 <= number < size), None)
    if bad is not None:
        raise DataError(
            f"token id {bad} is outside the tokenizer's vocabulary of {size}; give the tokenizer that the "
            "rows were tokenised with"
        )


def _spans_of(offsets: Any, num_tokens: int) -> np.ndarray:
    """The offsets of a row's tokens, int64 [T, 2]; raises :class:`DataError` where they are not so many."""
    try:
        spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    except (TypeError, ValueError):
        spans = None
    if spans is None or len(spans) != num_tokens:
        raise DataError(
            f"a row of {num_tokens} tokens has the offset_mapping {shown(offsets)}; it must have two numbers "
            "for each token: leave the column out, or tokenise the text again"
        )
    return spans


def spell(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, np.ndarray]:
    """A text that has these tokens, and the characters of each, int64 [T, 2]; special tokens have none.

    Read off the vocabulary's marks (``##``, ``Ġ``, ``▁``, ``<0x0A>``). A character whose bytes are several
    tokens is the last one's. Raises :class:`UsageError` for a vocabulary without marks,
    :class:`DataError` for ids that it does not have.
    """
    from chronomask.masking.word_marks import vocabulary_markers

    continuation, beginning = vocabulary_markers(tokenizer)
    if not continuation and not beginning:
        raise UsageError(
            f"the vocabulary of {tokenizer.name_or_path!r} does not mark where words begin, so rows cannot "
            "be spelled from it; keep the rows' text in a column and name it with text_column="
        )
    special = set(tokenizer.all_special_ids)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text: list[str] = []
    length, spans = 0, []
    for number, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if token is None:
            raise DataError(
                f"token id {number} is no entry of the tokenizer's vocabulary; give the tokenizer that the "
                "rows were tokenised with"
            )
        if number in special:
            added = decoder.decode(b" ", True)
            spans.append((length + len(added), length + len(added)))
        else:
            added = decoder.decode(_bytes_of(str(token), continuation, beginning))
            spans.append((length, length + len(added)))
        text.append(added)
        length += len(added)
    return "".join(text), np.asarray(spans, np.int64).reshape(-1, 2)


def _bytes_of(token: str, continuation: str, beginning: str) -> bytes:
    """What a token adds to a text, the space before its word included."""
    if continuation:
        inside = token.startswith(continuation)
        return (token.removeprefix(continuation) if inside else f" {token}").encode()
    if beginning == "▁":
        byte = _BYTE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
    table = _byte_of_letter()
    return b"".join(
        bytes([table[letter]]) if letter in table else letter.encode() for letter in token
    )


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + k): byte for k, byte in enumerate(others)}
