"""Rows from what people already have: tokenised features of a data set, one dictionary per row.

A collator may run in loader workers, so nothing here knows of schedules: it pads and carries rows
*unmasked*. Masking happens in the training process, on :func:`rows_of` the batch.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from chronomask.errors import DataError, UsageError
from chronomask.types import NO_CLASS, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RowCollator", "rows_of", "with_row_ids", "word_marks"]

BEGINS, ALONE = 1, 2
"""Marks of a token in :func:`word_marks`: begins a word; is a word by itself (punctuation)."""

COLUMNS = (
    "input_ids",
    "attention_mask",
    "special_tokens_mask",
    "word_ids",
    "token_class",
    "row_id",
)
"""Columns of a data set that :class:`RowCollator` reads; the others are left out."""

_EPOCH_STRIDE = 0x9E3779B1
"""How far apart in training order two visits of a row are said to be: more than any data set."""


class RowCollator:
    """Pads features to a batch of unmasked rows; safe in any number of loader workers.

    A feature has ``input_ids``, specials included, and ``row_id``, its number in the data set
    (:func:`with_row_ids` adds it). It may have ``attention_mask``; ``special_tokens_mask`` (1 = never
    masked; otherwise the tokenizer's special ids are never masked); ``word_ids``, one number per
    token as ``BatchEncoding.word_ids()`` gives it, None or −1 = never masked; ``token_class``, one
    class number per token, 0 = none. Without ``word_ids``, words are read off the vocabulary's marks
    (:func:`word_marks`).

    ``row_length``: pad every batch to this many tokens; None: to the longest row of the batch, then
    up to a multiple of ``pad_to_multiple_of``. Give ``row_length`` when rows differ in length and
    masks must not depend on which rows share a batch: the budget of ``ptw_faithful`` counts padding,
    and under other class weights a tie of random numbers may, rarely, fall otherwise.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        row_length: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> None:
        if row_length is not None and row_length < 1:
            raise UsageError(f"row_length is {row_length}; it must be 1 or more, or None")
        if pad_to_multiple_of < 1:
            raise UsageError(f"pad_to_multiple_of is {pad_to_multiple_of}; it must be 1 or more")
        pad_token_id: Any = tokenizer.pad_token_id
        if pad_token_id is None:
            raise UsageError(
                f"tokenizer {tokenizer.name_or_path!r} has no padding token; set tokenizer.pad_token"
            )
        self.row_length = row_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.pad_token_id = int(pad_token_id)
        self.special = np.zeros(len(tokenizer), bool)
        self.special[tokenizer.all_special_ids] = True
        self._tokenizer_name = tokenizer.name_or_path
        self._marks = _marks_or_none(tokenizer)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask`` int64 [B, T], ``word_id`` int32 [B, T], ``token_class``
        uint8 [B, T] as tensors, and ``row_id`` int64 [B] as a numpy array: it keys random numbers
        and stays on the host. Raises UsageError or DataError, naming the row.
        """
        rows = [np.asarray(feature["input_ids"], np.int64) for feature in features]
        length = self._padded_length(max(row.size for row in rows))
        shape = len(rows), length
        input_ids = np.full(shape, self.pad_token_id, np.int64)
        attention = np.zeros(shape, np.int64)
        for index, (row, feature) in enumerate(zip(rows, features, strict=True)):
            input_ids[index, : row.size] = row
            attention[index, : row.size] = feature.get("attention_mask", 1)
        if input_ids.min() < 0 or input_ids.max() >= self.special.size:
            bad = input_ids[(input_ids < 0) | (input_ids >= self.special.size)][0]
            raise DataError(
                f"token id {bad} is outside the tokenizer's vocabulary of {self.special.size}; "
                "tokenise the data with the tokenizer that masks it"
            )
        maskable = attention == 1
        if "special_tokens_mask" in features[0]:
            maskable &= _column(features, "special_tokens_mask", shape, 1, np.int64) == 0
        else:
            maskable &= ~self.special[input_ids]
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention,
            "word_id": self._word_id(features, input_ids, maskable),
            "token_class": self._token_class(features, shape),
        }
        tensors: dict[str, Any] = {k: torch.from_numpy(v) for k, v in batch.items()}
        return tensors | {"row_id": _row_ids(features)}

    def _padded_length(self, longest: int) -> int:
        if self.row_length is None:
            return -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        if longest > self.row_length:
            raise UsageError(
                f"a row has {longest} tokens, row_length is {self.row_length}; truncate rows when "
                "tokenising, or raise row_length"
            )
        return self.row_length

    def _word_id(
        self, features: Sequence[Mapping[str, Any]], input_ids: np.ndarray, maskable: np.ndarray
    ) -> np.ndarray:
        begins = np.ones(input_ids.shape, bool)
        if "word_ids" in features[0]:
            words = _column(features, "word_ids", input_ids.shape, -1, np.int64)
            maskable = maskable & (words >= 0)
            begins[:, 1:] = words[:, 1:] != words[:, :-1]
        elif self._marks is None:
            raise UsageError(
                f"cannot tell words apart in the vocabulary of {self._tokenizer_name!r}: it marks "
                "neither continuations nor word beginnings; add a 'word_ids' column "
                "(BatchEncoding.word_ids() of a fast tokenizer)"
            )
        else:
            marks = self._marks[input_ids]
            begins[:, 1:] = (marks[:, 1:] & BEGINS) > 0
            begins[:, 1:] |= (marks[:, :-1] & ALONE) > 0
        begins[:, 1:] |= ~maskable[:, :-1]
        word_id = np.cumsum(begins & maskable, axis=1, dtype=np.int32) - np.int32(1)
        return np.where(maskable, word_id, np.int32(-1))

    def _token_class(
        self, features: Sequence[Mapping[str, Any]], shape: tuple[int, int]
    ) -> np.ndarray:
        if "token_class" not in features[0]:
            return np.full(shape, NO_CLASS, np.uint8)
        return _column(features, "token_class", shape, NO_CLASS, np.uint8)


def rows_of(batch: Mapping[str, Any], epoch: int | Sequence[int] = 0) -> Rows:
    """A :class:`RowCollator` batch as :class:`Rows`; every row is one document.

    ``epoch`` (one for all, or one per row) is which visit of the data this is: the same row gets
    other masks in another epoch.
    Raises UsageError when the batch comes from another collator.
    """
    missing = [k for k in ("input_ids", "word_id", "token_class", "row_id") if k not in batch]
    if missing:
        raise UsageError(
            f"the batch has no {missing[0]!r} (it has {', '.join(sorted(batch))}): collate with "
            "chronomask.integrations.rows.RowCollator"
        )
    row_id = np.asarray(batch["row_id"], np.int64)
    num_rows, length = batch["input_ids"].shape
    epochs = np.broadcast_to(np.asarray(epoch, np.int64), (num_rows,))
    return Rows(
        input_ids=batch["input_ids"],
        word_id=batch["word_id"],
        token_class=batch["token_class"],
        row_id=row_id,
        epoch=epochs,
        cu_seqlens=torch.arange(
            0, num_rows * length + 1, length, dtype=torch.int32, device=batch["input_ids"].device
        ),
        # A row keeps its place among its neighbours, yet is rounded and drawn anew in every epoch.
        order=row_id + epochs * _EPOCH_STRIDE,
        attention_mask=batch.get("attention_mask"),
    )


def with_row_ids(dataset: Any) -> Any:
    """The data set with a ``row_id`` per row: its place in the data set, whatever order it is read in.

    A Hugging Face ``datasets.Dataset`` gets a column; any other sized, indexed data set of
    dictionaries is wrapped; one that has row ids is returned as it is. Raises UsageError for a stream:
    its rows have no place of their own.
    """
    columns = getattr(dataset, "column_names", None)
    if isinstance(columns, list):
        if "row_id" in columns:
            return dataset
        if hasattr(dataset, "add_column"):
            return dataset.add_column("row_id", list(range(len(dataset))))
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UsageError(
            f"{type(dataset).__name__} has no rows by number; give every row of the stream a "
            "'row_id' of its own, the same in every epoch and run"
        )
    return dataset if len(dataset) and "row_id" in dataset[0] else _Numbered(dataset)


class _Numbered(Dataset[dict[str, Any]]):
    """A map-style data set whose rows carry their index."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.dataset[index], "row_id": int(index)}


def word_marks(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """uint8 [V]: for each token id, :data:`BEGINS` and :data:`ALONE`, read off the vocabulary.

    WordPiece marks continuations (``##``); byte-level BPE and SentencePiece mark the space before a
    word (``Ġ``, ``▁``). Punctuation counts as a word by itself, and what follows it begins a word.
    The marks know only of spaces: languages written without them come out as long words, and
    non-ASCII punctuation of a byte-level vocabulary sticks to the word before it. Real word
    boundaries come from ``chronomask prepare``, which keeps character offsets.

    Raises UsageError for a vocabulary that marks neither.
    """
    marks = _marks_or_none(tokenizer)
    if marks is None:
        raise UsageError(
            f"the vocabulary of {tokenizer.name_or_path!r} marks neither continuations nor word "
            "beginnings; give 'word_ids' per token instead"
        )
    return marks


def _marks_or_none(tokenizer: PreTrainedTokenizerBase) -> np.ndarray | None:
    continuation, beginning = _markers(tokenizer)
    if not continuation and not beginning:
        return None
    marks = np.full(len(tokenizer), BEGINS, np.uint8)
    for token, number in tokenizer.get_vocab().items():
        if continuation:
            begins = not token.startswith(continuation)
            text = token.removeprefix(continuation)
        else:
            begins = token.startswith(beginning)
            text = token.removeprefix(beginning)
        alone = _is_punctuation(text, byte_level=beginning == "Ġ")
        marks[number] = (BEGINS if begins or alone else 0) | (ALONE if alone else 0)
    return marks


def _markers(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What a continuation starts with, and what a word beginning starts with; "" = no such mark."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "", ""
    parts = json.loads(backend.to_str())
    if parts["model"]["type"] == "WordPiece":
        return parts["model"]["continuing_subword_prefix"], ""
    before = json.dumps([parts["normalizer"], parts["pre_tokenizer"]], ensure_ascii=False)
    if '"ByteLevel"' in before:
        return "", "Ġ"
    return "", "▁" if "▁" in before else ""


def _is_punctuation(text: str, byte_level: bool) -> bool:
    """Only punctuation and symbols; beyond ASCII, letters of a byte-level vocabulary are bytes."""
    if not text or (byte_level and not text.isascii()):
        return False
    return all(unicodedata.category(character)[0] in "PS" for character in text)


def _column(
    features: Sequence[Mapping[str, Any]],
    name: str,
    shape: tuple[int, ...],
    padding: int,
    dtype: type,
) -> np.ndarray:
    """[B, T]: one number per token of every row; None counts as ``padding``."""
    out = np.full(shape, padding, dtype)
    for index, feature in enumerate(features):
        values = [padding if value is None else value for value in feature[name]]
        if len(values) != len(feature["input_ids"]):
            raise DataError(
                f"row {feature.get('row_id', index)}: {name} has {len(values)} values for "
                f"{len(feature['input_ids'])} tokens"
            )
        out[index, : len(values)] = values
    return out


def _row_ids(features: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if "row_id" not in features[0]:
        raise UsageError(
            f"rows have no 'row_id' (they have {', '.join(sorted(features[0]))}), so their masks "
            "cannot be told apart: wrap the data set in "
            "chronomask.integrations.rows.with_row_ids; with a Trainer of your own, set "
            "remove_unused_columns=False"
        )
    return np.array([feature["row_id"] for feature in features], np.int64)
