"""Formats of Hugging Face data sets: what they hide, and rows that are tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from chronomask.errors import UsageError
from chronomask.integrations.order import KeyedLoader, with_row_ids
from chronomask.masking.rows import RowCollator
from tests.support.recording_trainer import trainer_of

NAMES = ["input_ids", "word_ids"]


def test_row_ids_that_a_format_hides_are_shown_again(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    numbered = datasets.Dataset.from_list([{**row, "row_id": 90 - k} for k, row in enumerate(rows)])
    forms: list[dict[str, Any]] = [{"type": "numpy"}, {"type": "torch", "dtype": torch.int32}]
    for form in forms:
        hidden = numbered.with_format(columns=NAMES, **form)
        shown = with_row_ids(hidden)
        assert sorted(shown[1]) == [*NAMES[:1], "row_id", *NAMES[1:]]
        assert int(shown[1]["row_id"]) == 89
        assert shown[1]["input_ids"].dtype == hidden[1]["input_ids"].dtype
        assert sorted(hidden[1]) == NAMES  # the given one is as it was
    every = numbered.with_format("torch", columns=NAMES, output_all_columns=True)
    assert with_row_ids(every) is every
    hidden = numbered.with_format("torch", columns=["input_ids"])
    loader = KeyedLoader(hidden, batch_size=32, collate_fn=RowCollator(tokenizer))
    assert sorted(next(iter(loader))["row_id"].tolist()) == list(range(59, 91))
    given: Any = hidden
    trainer_of(tokenizer, given, tmp_path, {"ratio": 0.3}, max_steps=1).train()


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_tokens_of_no_word_are_so_in_every_format(
    tokenizer: PreTrainedTokenizerFast, form: str
) -> None:
    """A format that knows no None has NaN in its place."""
    plain = [
        {"input_ids": [2, 20, 21, 22, 3], "word_ids": [None, 0, 0, 1, None]},
        {"input_ids": [2, 22, 3], "word_ids": [None, 0, None]},
    ]
    data = with_row_ids(datasets.Dataset.from_list(plain).with_format(form))
    expected = RowCollator(tokenizer)([{**row, "row_id": k} for k, row in enumerate(plain)])
    found = RowCollator(tokenizer)([data[0], data[1]])
    assert found["word_id"].tolist() == expected["word_id"].tolist()
    assert (expected["word_id"] == -1).sum() == 6  # specials and padding


def test_rows_that_are_tables_are_refused_with_a_way_out(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    plain = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    tables = plain.with_format("arrow")
    with pytest.raises(UsageError, match=r"of type Table.*dataset\.with_format\(None\)"):
        with_row_ids(tables)
    with_row_ids(tables.with_format(None))
    for form in ("arrow", "pandas"):
        stream = with_row_ids(plain.to_iterable_dataset().with_format(form))
        with pytest.raises(UsageError, match=r"is a table.*dataset\.with_format\(None\)"):
            next(iter(stream))
    with pytest.raises(UsageError, match=r"not a feature.*dataset\.with_format\(None\)"):
        RowCollator(tokenizer)([plain.with_format("pandas")[0]])
