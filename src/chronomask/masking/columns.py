"""Columns of rows, as arrays of numbers; what cannot be read is refused, by the row and the column.

``features``: one dictionary per row, of columns by name. Letters: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from chronomask.errors import DataError, UsageError, shown

__all__ = [
    "COLUMNS",
    "TABLES_AS_ROWS",
    "check_columns",
    "describe",
    "is_table",
    "list_keys",
    "on_host",
    "read_column",
    "refuse_masked_rows",
    "row_ids",
    "token_ids",
    "whole_numbers",
]

COLUMNS = (
    "input_ids",
    "attention_mask",
    "special_tokens_mask",
    "word_ids",
    "token_class",
    "scores",
    "ngrams",
    "token_type_ids",
    "row_id",
)
"""Columns of a data set that :class:`RowCollator` reads; the others are left out."""

TABLES_AS_ROWS = "read the data set without its format, as dataset.with_format(None) gives it"
"""The way out for a data set of which each row is a table."""


def token_ids(feature: Mapping[str, Any], index: int) -> np.ndarray:
    """Integers [T]: the token ids of a row. Raises UsageError for what is no list of whole numbers."""
    try:
        ids = np.asarray(on_host(feature["input_ids"], "input_ids"))
        if ids.dtype.kind == "O" and ids.ndim:  # as pandas keeps them
            ids = np.asarray(ids.tolist())
    except (KeyError, TypeError, ValueError):
        ids = None  # no feature, no ids, or lists of different lengths inside a row
    if ids is not None and ids.ndim == 1 and (ids.dtype.kind in "iu" or not ids.size):
        return ids
    raise UsageError(_why_not_ids(feature, index, ids))


def _why_not_ids(feature: Any, index: int, ids: np.ndarray | None) -> str:
    """The sentence about a row whose token ids are not a flat list of whole numbers."""
    if not isinstance(feature, Mapping):
        way_out = f": {TABLES_AS_ROWS}" if is_table(feature) else ""
        return f"row {index} is not a feature: a dictionary with 'input_ids'{way_out}"
    if "input_ids" not in feature:
        return f"row {index} has no 'input_ids' (it has {list_keys(feature)})"
    row, given = feature.get("row_id", index), feature["input_ids"]
    if isinstance(given, int | np.integer):
        return (
            f"row {row} is the number {given}, not a list of token ids; a batch is a list of rows: "
            "give a single row as [ids]"
        )
    if ids is None or ids.ndim != 1:
        return f"row {row} is {describe(given)}, not a flat list of token ids"
    if ids.dtype.kind == "O":
        strange = [value for value in ids if not isinstance(value, int | np.integer)]
        value = strange[0] if strange else max(ids)  # a number too large for any id
        return f"row {row} holds {value!r} among its token ids, which are whole numbers"
    value = ids[0].item()
    return f"row {row} holds {ids.dtype} values, such as {value!r}; token ids are whole numbers"


def refuse_masked_rows(
    features: Sequence[Mapping[str, Any]], input_ids: np.ndarray, mask_token_id: int | None
) -> None:
    """Raise UsageError for a row of which a [MASK] has another token as its label; ``input_ids`` [B, T].

    Most other places have their own token as label then, or −100. A text that spells [MASK] may have labels
    too: of the whole text, its own ids again, −100 there, or a tag for every token.
    """
    if mask_token_id is None or not any("labels" in feature for feature in features):
        return
    for index in np.flatnonzero((input_ids == mask_token_id).any(1)).tolist():
        feature = features[index]
        labels = _numbers_of_tokens(feature.get("labels"), len(feature["input_ids"]))
        if labels is None:
            continue
        ids = input_ids[index, : labels.size]
        hidden, usual = ids == mask_token_id, (labels == -100) | (labels == ids)
        if not usual[hidden].all() and 2 * usual[~hidden].sum() > (~hidden).sum():
            raise UsageError(
                f"row {feature.get('row_id', index)} is masked already: it has labels, and [MASK] among its "
                "tokens; give the rows as they were before they were masked, without labels"
            )


def _numbers_of_tokens(values: Any, num: int) -> np.ndarray | None:
    """Integers [T] where these are whole numbers for ``num`` tokens; None for anything else."""
    try:
        numbers = np.asarray(on_host(values, "labels"))
    except ValueError:  # lists of different lengths
        return None
    return numbers if numbers.shape == (num,) and numbers.dtype.kind in "iu" else None


def check_columns(features: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError for a batch without rows, DataError where rows have different columns."""
    if not len(features):
        raise UsageError("the batch has no rows; give at least one")
    keys = features[0].keys()
    for index, feature in enumerate(features):
        if feature.keys() == keys:
            continue
        for name in COLUMNS:
            if (name in feature) != (name in keys):
                has, lacks = (0, index) if name in keys else (index, 0)
                raise DataError(f"row {lacks} of the batch has no {name!r}, which row {has} has")


def read_column(
    features: Sequence[Mapping[str, Any]],
    name: str,
    shape: tuple[int, ...],
    padding: int,
    dtype: type,
) -> np.ndarray:
    """[B, T]: one number per token of every row; None, and NaN among whole ones, count as ``padding``."""
    small, whole = dtype is np.uint8, np.issubdtype(dtype, np.integer)
    out = np.full(shape, padding, np.int64 if small else dtype)
    for index, feature in enumerate(features):
        row, num = feature.get("row_id", index), len(feature["input_ids"])
        values = on_host(feature[name], name)
        try:
            # None mostly stands at [CLS]: where it does, numpy need not find out that these are no numbers.
            if isinstance(values, list) and values and values[0] is not None:
                values = np.asarray(values)
            if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
                values = np.asarray([padding if value is None else value for value in values])
            if whole and values.dtype.kind == "f":  # as numpy and torch keep None among numbers
                values = np.where(np.isnan(values), padding, values)
            if whole and (at := _first_fraction(values)) is not None:
                raise DataError(
                    f"row {row}: {name} has the value {values.flat[at]} at token {at}; give whole numbers"
                )
            if len(values) == num:
                out[index, :num] = values
        except (TypeError, ValueError, OverflowError):
            raise DataError(
                f"row {row}: {name} is {shown(feature[name])}; give one number per token"
            ) from None
        if len(values) != num:
            raise DataError(f"row {row}: {name} has {len(values)} values for {num} tokens")
    if small and ((out < 0) | (out > 255)).any():
        index, at = np.argwhere((out < 0) | (out > 255))[0].tolist()
        raise DataError(
            f"row {features[index].get('row_id', index)}: {name} has the value {out[index, at]}; it may have "
            "0 to 255, and 0 means none"
        )
    return out.astype(dtype, copy=False)


def row_ids(features: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """int64 [B]: the features' own ``row_id``."""
    if "row_id" not in features[0]:
        raise UsageError(
            f"rows have no 'row_id' (they have {list_keys(features[0])}), so their masks cannot "
            "be distinguished: wrap the data set in chronomask.with_row_ids; with a Trainer of your "
            "own, set remove_unused_columns=False"
        )
    return whole_numbers("row_id", [feature["row_id"] for feature in features])


def whole_numbers(name: str, values: Any) -> np.ndarray:
    """int64 of one or several numbers; raises DataError for what is none, such as a text or a fraction."""
    way_out = "give whole numbers"
    if name == "row_id":
        way_out += ", or leave the column out and let chronomask.with_row_ids number the rows"
    said = values
    try:
        given = np.asarray(on_host(values, name))
        said = given.tolist()
        if given.dtype.kind == "O":
            given = np.asarray(given.tolist())
        if given.dtype.kind != "b" and _first_fraction(given) is None:
            return np.asarray(on_host(values, name), np.int64)
    except (TypeError, ValueError, OverflowError):
        pass  # no numbers at all
    raise DataError(f"{name} is {shown(said)}; {way_out}")


def _first_fraction(values: np.ndarray) -> int | None:
    """The place of the first of some numbers, counted through, that is no whole one; None for none."""
    if values.dtype.kind != "f":
        return None
    fractions = np.flatnonzero(~np.isfinite(values) | (values != np.trunc(values)))
    return int(fractions[0]) if fractions.size else None


def on_host(values: Any, name: str) -> Any:
    """A tensor as numpy array; anything else as it is. Raises UsageError for a tensor without dense values.

    ``name``: what a message calls it.
    """
    if isinstance(values, list):  # by far the most frequent, and told apart in no time
        return values
    if not isinstance(values, torch.Tensor):
        return values
    if values.is_nested:
        raise UsageError(
            f"{name} is a nested tensor; give a list of its rows: list(tensor.unbind())"
        )
    if values.layout != torch.strided:
        raise UsageError(f"{name} is a sparse tensor; give a dense one: tensor.to_dense()")
    if values.is_meta:
        raise UsageError(
            f"{name} is a tensor on the meta device, which has no values; give one that has"
        )
    values = values.detach().cpu()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


def is_table(row: Any) -> bool:
    """Whether a row is a table of its own, as some formats of a data set give it."""
    return type(row).__module__.split(".")[0] in ("pandas", "polars", "pyarrow")


def list_keys(mapping: Mapping[str, Any]) -> str:
    """The keys of a mapping, as a sentence lists them."""
    return ", ".join(sorted(map(str, mapping))) or "nothing"


def describe(given: Any) -> str:
    """A value of the wrong type, as a sentence names it."""
    if isinstance(given, list | tuple):
        return f"a list of {type(given[0]).__name__}" if given else "an empty list"
    if isinstance(given, str | int | float | None):
        return f"{type(given).__name__} {given!r}" if given is not None else "None"
    return f"a {type(given).__name__}"
