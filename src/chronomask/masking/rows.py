"""Rows from what people already have: features, collated batches, tensors, lists of token ids.

``features`` (one dictionary per row, of any length) become a *batch* (padded tensors that know their
words) in :class:`RowCollator`; a batch, or anything else that holds token ids, becomes
:class:`~chronomask.types.Rows` in :func:`as_rows`. A collator may run in loader workers, ahead of time,
so nothing here knows of schedules: rows are carried *unmasked*, and masked in the training process.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chronomask.errors import DataError, UsageError
from chronomask.masking.columns import (
    COLUMNS,
    check_columns,
    describe,
    list_keys,
    on_host,
    read_column,
    refuse_masked_rows,
    row_ids,
    token_ids,
    whole_numbers,
)
from chronomask.masking.positions import check_attention, refuse_positions
from chronomask.masking.word_marks import ALONE, BEGINS, read_marks
from chronomask.types import NO_CLASS, Rows, send
from chronomask.vocabulary import check_padding, special_ids, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["RowCollator", "as_rows", "number_of_tokens"]


class RowCollator:
    """Pads features to a batch of unmasked rows; safe in any number of loader workers.

    A feature has ``input_ids``, specials included, and ``row_id``, its number in the data set
    (:func:`~chronomask.integrations.order.with_row_ids` adds it). It may have ``attention_mask``, 1 for a
    token and 0 for padding;
    ``special_tokens_mask`` (1 = never masked; otherwise the tokenizer's special ids are never masked);
    ``word_ids``, one number per token as ``BatchEncoding.word_ids()`` gives it, None or −1 = never
    masked; ``token_class``, one class number per token, 0 = none; ``scores``, how hard each token is,
    for content ``scores``; ``ngrams``, how many words the collocation has that begins at a token, for
    strategy ``pmi``; ``token_type_ids``, which segment of the text a token is of, as tokenizers count
    them in pairs of texts. Without ``word_ids``, words are read off the vocabulary's marks
    (:func:`~chronomask.masking.word_marks.word_marks`).

    ``row_length``: pad every batch to this many tokens; None: to the longest row of the batch, then
    up to a multiple of ``pad_to_multiple_of``. Give ``row_length`` when rows differ in length and
    masks must not depend on which rows share a batch: under class weights a tie of random numbers may,
    rarely, fall otherwise in rows of another length.

    Raises UsageError for a tokenizer without a padding token of its own and for lengths below 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        row_length: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> None:
        """Look up once which of the tokenizer's ids are padding, special, or begin a word."""
        if row_length is not None and row_length < 1:
            raise UsageError(f"row_length is {row_length}; it must be 1 or more, or None")
        if pad_to_multiple_of < 1:
            raise UsageError(f"pad_to_multiple_of is {pad_to_multiple_of}; it must be 1 or more")
        pad_token_id: Any = tokenizer.pad_token_id
        if pad_token_id is None:
            raise UsageError(
                f"tokenizer {tokenizer.name_or_path!r} has no padding token; give it one with "
                "tokenizer.add_special_tokens({'pad_token': '<pad>'})"
            )
        check_padding(tokenizer)
        self.row_length = row_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.pad_token_id = int(pad_token_id)
        self.mask_token_id: Any = tokenizer.mask_token_id
        self.special = np.zeros(vocabulary_size(tokenizer), bool)
        self.special[sorted(special_ids(tokenizer))] = True
        self._tokenizer_name = tokenizer.name_or_path
        self._marks = read_marks(tokenizer)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """``input_ids``, ``attention_mask`` int64 [B, T], ``word_id`` int32 [B, T] as tensors, and
        ``row_id`` int64 [B] as a numpy array: it keys random numbers and stays on the host. Where the
        features have them, also ``token_class`` and ``ngrams`` uint8 [B, T], ``scores`` float32 [B, T] and
        ``token_type_ids`` int64 [B, T], 0 in padding. Raises UsageError or DataError, naming the row, also
        for one that is masked already: that has ``labels``, and [MASK] among its tokens.
        """
        batch: dict[str, Any] = {k: torch.from_numpy(v) for k, v in self.pad(features).items()}
        return batch | {"row_id": row_ids(features)}

    def pad(self, features: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """What a call gives, as numpy arrays and without ``row_id``, which the rows need not have."""
        rows = [token_ids(feature, index) for index, feature in enumerate(features)]
        check_columns(features)
        for index, feature in enumerate(features):
            refuse_positions(feature, index)
        length = self._padded_length(max(row.size for row in rows))
        shape = len(rows), length
        input_ids = np.full(shape, self.pad_token_id, np.int64)
        for index, row in enumerate(rows):
            input_ids[index, : row.size] = row
        if input_ids.min() < 0 or input_ids.max() >= self.special.size:
            bad = input_ids[(input_ids < 0) | (input_ids >= self.special.size)][0]
            raise DataError(
                f"token id {bad} is outside the tokenizer's vocabulary of {self.special.size}; "
                "tokenise the data with the tokenizer that masks it"
            )
        refuse_masked_rows(features, input_ids, self.mask_token_id)
        attention = self._attention(features, rows, shape)
        maskable = attention == 1
        if "special_tokens_mask" in features[0]:
            maskable &= read_column(features, "special_tokens_mask", shape, 1, np.int64) == 0
        else:
            maskable &= ~self.special[input_ids]
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention,
            "word_id": self._word_id(features, input_ids, maskable),
        }
        if "token_class" in features[0]:
            batch["token_class"] = read_column(features, "token_class", shape, NO_CLASS, np.uint8)
        if "scores" in features[0]:
            batch["scores"] = read_column(features, "scores", shape, 0, np.float32)
        if "ngrams" in features[0]:
            batch["ngrams"] = read_column(features, "ngrams", shape, 0, np.uint8)
        if "token_type_ids" in features[0]:
            batch["token_type_ids"] = read_column(features, "token_type_ids", shape, 0, np.int64)
        return batch

    def _padded_length(self, longest: int) -> int:
        if not longest:
            raise UsageError("the rows of the batch have no tokens")
        if self.row_length is None:
            return -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        if longest > self.row_length:
            raise UsageError(
                f"a row has {longest} tokens, row_length is {self.row_length}; truncate rows when "
                "tokenising, or raise row_length"
            )
        return self.row_length

    def _attention(
        self,
        features: Sequence[Mapping[str, Any]],
        rows: Sequence[np.ndarray],
        shape: tuple[int, int],
    ) -> np.ndarray:
        """int64 [B, T]: the features' own attention mask, else 1 up to the end of every row."""
        if "attention_mask" in features[0]:
            mask = read_column(features, "attention_mask", shape, 0, np.float64)
            check_attention(mask, features)
            return mask.astype(np.int64)
        lengths = np.array([row.size for row in rows])
        return (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)

    def _word_id(
        self, features: Sequence[Mapping[str, Any]], input_ids: np.ndarray, maskable: np.ndarray
    ) -> np.ndarray:
        """int32 [B, T]: words of a row counted from 0, −1 where a token must never be masked."""
        begins = np.ones(input_ids.shape, bool)
        if "word_ids" in features[0]:
            words = read_column(features, "word_ids", input_ids.shape, -1, np.int64)
            maskable = maskable & (words >= 0)
            begins[:, 1:] = words[:, 1:] != words[:, :-1]
        elif self._marks is None:
            raise UsageError(
                f"cannot find words in the vocabulary of {self._tokenizer_name!r}: it marks "
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


def as_rows(
    given: Any,
    *,
    epoch: int | Sequence[int] | np.ndarray | None = None,
    progress: float | None = None,
    collate: RowCollator | None = None,
    classes: bool = False,
) -> Rows:
    """:class:`Rows` of anything that holds token ids; every row is one document.

    ``given``: Rows, which stay as they are; a :class:`RowCollator` batch; and, if ``collate`` says
    what the tokenizer's ids mean, any other batch with ``input_ids`` [B, T] (and the columns that
    RowCollator reads), a tensor or array of token ids [B, T], a list of lists of ids, or a list of
    features. Tensors and arrays stay what they are and where they are; lists become CPU tensors.
    What a tensor or array ends with in padding tokens counts as padding.

    ``epoch`` (one for all rows, or one per row) says which visit of the data this is, for the same
    row gets other masks in another epoch: the batch's own column ``epoch`` if None, else made from
    ``progress``, else 0. Rows without a ``row_id`` are known by a hash of their tokens. So masks of
    rows that bring neither are a pure function of seed, tokens and progress: the same at the same
    progress, as a validation wants, and equal for two equal rows of a batch.

    ``classes``: whether the tokens' classes are asked for, so that rows without ``token_class`` are refused;
    else their tokens have none.

    Raises UsageError for anything else, and for columns that place tokens otherwise
    (:func:`~chronomask.masking.positions.refuse_positions`); DataError for token ids that the tokenizer
    does not have.
    """
    if isinstance(given, Rows):
        return given
    if isinstance(given, Mapping):
        refuse_positions(given)
    collated = isinstance(given, Mapping) and "word_id" in given
    batch = given if collated else _collate(given, collate)
    missing = [name for name in ("input_ids", "row_id") if name not in batch]
    if missing:
        raise UsageError(
            f"the batch has no {missing[0]!r} (it has {list_keys(batch)}): collate with "
            "chronomask.RowCollator"
        )
    if classes and "token_class" not in batch:
        raise UsageError(
            "masking weighs tokens by their classes, and the rows have no 'token_class' (they have "
            f"{list_keys(batch)}): add the column with chronomask.add_classes, or choose content 'none'"
        )
    if epoch is None:
        epoch = batch.get("epoch")
    if epoch is None:
        epoch = 0 if progress is None else _epoch_of(progress)
    num_rows, length = batch["input_ids"].shape
    bounds = np.arange(0, num_rows * length + 1, length, dtype=np.int32)
    on_device = isinstance(batch["input_ids"], torch.Tensor)
    types = batch.get("token_type_ids")
    return Rows(
        input_ids=batch["input_ids"],
        word_id=batch["word_id"],
        token_class=batch["token_class"] if "token_class" in batch else _no_classes(batch),
        row_id=_one_per_row("row_id", batch["row_id"], num_rows),
        epoch=_one_per_row("epoch", epoch, num_rows),
        cu_seqlens=send(bounds, batch["input_ids"].device) if on_device else bounds,
        attention_mask=batch.get("attention_mask"),
        scores=batch.get("scores"),
        ngrams=batch.get("ngrams"),
        token_type_ids=types if types is not None and types.any() else None,
    )


def _one_per_row(name: str, values: Any, num_rows: int) -> np.ndarray:
    """int64 [B] of whole numbers, one per row, or of one ``epoch`` for all; raises DataError for others."""
    numbers = whole_numbers(name, values)
    if name == "epoch" and numbers.size == 1:
        return np.broadcast_to(numbers.reshape(()), (num_rows,))
    if numbers.shape != (num_rows,):
        raise DataError(
            f"{name} has the shape {list(numbers.shape)}, and the batch has {num_rows} rows: give one number "
            "per row"
        )
    return numbers


def _no_classes(batch: Mapping[str, Any]) -> Any:
    """uint8 [B, T] of the kind and on the device of the token ids."""
    ids = batch["input_ids"]
    if isinstance(ids, torch.Tensor):
        return torch.full_like(ids, NO_CLASS, dtype=torch.uint8)
    return np.full_like(ids, NO_CLASS, np.uint8)


def _collate(given: Any, collate: RowCollator | None) -> Mapping[str, Any]:
    """A batch as :class:`RowCollator` makes it, of the kind and on the device of ``given``."""
    features, ids = _features_of(given)
    rows = [token_ids(feature, index) for index, feature in enumerate(features)]
    if collate is None:
        raise UsageError(
            "this masker knows no tokenizer, so it cannot distinguish words, specials or "
            "padding: make it with Masker.for_tokenizer, or collate with chronomask.RowCollator"
        )
    if features and "attention_mask" not in features[0]:
        features = [
            {**feature, "attention_mask": _inside_padding(row, collate.pad_token_id)}
            for feature, row in zip(features, rows, strict=True)
        ]
    batch: dict[str, Any] = dict(collate.pad(features))
    row_id = row_ids(features) if "row_id" in features[0] else _content_numbers(batch)
    if not isinstance(ids, np.ndarray):
        device = ids.device if isinstance(ids, torch.Tensor) else "cpu"
        batch = {name: send(value, device) for name, value in batch.items()}
    epoch = {"epoch": given["epoch"]} if isinstance(given, Mapping) and "epoch" in given else {}
    return batch | {"row_id": row_id} | epoch


def _features_of(given: Any) -> tuple[Sequence[Mapping[str, Any]], Any]:
    """The rows of ``given`` as features, and what held their token ids."""
    if isinstance(given, Mapping):
        return _rows_of_columns(given), given.get("input_ids")
    if isinstance(given, torch.Tensor | np.ndarray):
        return _rows_of_columns({"input_ids": given}), given
    if not isinstance(given, list | tuple) or any(isinstance(row, str) for row in given):
        raise UsageError(
            f"cannot mask {describe(given)}: give rows of a loader, a batch with 'input_ids', a "
            "tensor of token ids [B, T], or a list of lists of token ids; text must be tokenised "
            "first, as tokenizer(texts) does"
        )
    if any(isinstance(row, Mapping) for row in given):
        return given, None
    return [{"input_ids": row} for row in given], None


def _rows_of_columns(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary per row, of a dictionary of columns."""
    if "input_ids" not in batch:
        raise UsageError(f"the batch has no 'input_ids' (it has {list_keys(batch)})")
    columns = {name: on_host(batch[name], name) for name in COLUMNS if name in batch}
    for name, values in columns.items():
        dimensions = 1 if name == "row_id" else 2
        if isinstance(values, np.ndarray) and values.dtype.kind == "O" and values.ndim:
            columns[name] = values.tolist()  # rows of differing lengths, among others
        elif isinstance(values, np.ndarray) and values.ndim != dimensions:
            way_out = "give a single row as [1, T]"
            if values.ndim > dimensions:
                way_out = "give one value per token"
            if name == "attention_mask" and values.ndim > dimensions:
                way_out += ", 0 for padding and else 1; which tokens see each other is the model's own to say"
            shape = "[B]" if name == "row_id" else "[B, T]"
            raise UsageError(
                f"{name} has the shape {list(values.shape)}, a batch of rows has {shape}: {way_out}"
            )
        if not hasattr(values, "__len__"):
            raise UsageError(
                f"{name} is {describe(values)}, a batch of rows has one value for each row"
            )
        if len(values) != len(columns["input_ids"]):
            raise UsageError(
                f"{name} has {len(values)} rows, input_ids has {len(columns['input_ids'])}"
            )
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _inside_padding(ids: np.ndarray, pad_token_id: int) -> np.ndarray:
    """int64 [T]: 0 for the padding tokens that a row begins or ends with, else 1."""
    real = np.flatnonzero(ids != pad_token_id)
    inside = np.zeros(ids.size, np.int64)
    if real.size:
        inside[real[0] : real[-1] + 1] = 1
    return inside


def _content_numbers(batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """int64 [B]: a number for each row, made of its tokens without the padding."""
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return np.array([number_of_tokens(ids[there == 1]) for ids, there in rows], np.int64)


def number_of_tokens(ids: Any) -> int:
    """A number in [0, 2⁶³) for a row without one of its own: a hash of its tokens, the same everywhere."""
    return _number_of(np.asarray(ids).astype("<i8").tobytes())


def _epoch_of(progress: float) -> int:
    """A number for each progress; of 0.0 and −0.0 the same."""
    return _number_of(struct.pack("<d", progress + 0.0))


def _number_of(content: bytes) -> int:
    """63 bits of a hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
