"""Columns of rows: what cannot be read as it is meant is refused, through every door."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.integrations.order import KeyedLoader, with_row_ids
from chronomask.integrations.workers import MaskedLoader
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator
from tests.support.recording_trainer import LINEAR, trainer_of
from tests.support.worded_rows import make_rows, make_tokenizer

IDS = [[2, 20, 21, 22, 3], [2, 23, 24, 3, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
NUMBERS = torch.tensor([[2, 20, 21, 22, 3]] * 2)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    return [{"input_ids": row["input_ids"]} for row in make_rows(tokenizer, 16)]


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ([[1, 1, 1, 1, 1], [255, 255, 255, 255, 0]], "of row 8 has 255 at token 0; give 1 for each"),
        ([[1, 1, 1, 1, 1], [0.0, 0.0, 0.0, 0.0, -10000.0]], "of row 8 has -10000 at token 4"),
        ([[1, 1, 1, 1, 1], [0.0, 0.0, 0.0, 0.0, float("-inf")]], "of row 8 has -inf at token 4"),
        ([[1, 0.5, 1, 1, 1], MASK[1]], "of row 7 has 0.5 at token 1; give 1 for each token and 0"),
        ([[2, 1, 1, 1, 1], MASK[1]], "of row 7 has 2 at token 0; give 1 for each"),
        ([[1, 1, 2, 2, 3], MASK[1]], "of row 7 has 2 at token 2, as where texts are numbered.*every text"),
    ],
)  # fmt: skip
def test_an_attention_mask_has_no_other_values_than_0_and_1(
    tokenizer: PreTrainedTokenizerFast, mask: Any, sentence: str
) -> None:
    masker = Masker.for_tokenizer(tokenizer, ratio=1.0)
    features = [
        {"input_ids": ids, "attention_mask": own, "row_id": number}
        for ids, own, number in zip(IDS, mask, (7, 8), strict=True)
    ]
    batch = {"input_ids": torch.tensor(IDS), "attention_mask": torch.tensor(mask)}
    for door in (
        lambda: masker(batch | {"row_id": np.array([7, 8])}, 0.5),
        lambda: masker(features, 0.5),
        lambda: RowCollator(tokenizer)(features),
        lambda: next(iter(KeyedLoader(features, batch_size=2, collate_fn=RowCollator(tokenizer)))),
    ):
        with pytest.raises(ChronomaskError, match=sentence) as refused:
            door()
        assert isinstance(refused.value, UsageError if "texts" in sentence else DataError)


@pytest.mark.parametrize("kind", [bool, float, np.float16, np.uint8, torch.bfloat16])
def test_an_attention_mask_of_truth_values_or_fractions_is_one(
    tokenizer: PreTrainedTokenizerFast, kind: Any
) -> None:
    masker = Masker.for_tokenizer(tokenizer, ratio=1.0)
    ids = torch.tensor(IDS)
    expected = masker({"input_ids": ids, "attention_mask": MASK}, 0.5)
    mask = torch.tensor(MASK).to(kind) if isinstance(kind, torch.dtype) else np.array(MASK, kind)
    masked = masker({"input_ids": ids, "attention_mask": mask}, 0.5)
    assert torch.equal(masked.labels, expected.labels)
    assert masked.num_predicted == 5


def premasked(tokenizer: PreTrainedTokenizerFast, rows: list[Any]) -> list[dict[str, Any]]:
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    batches = [collate([row]) for row in rows]
    return [{name: b[name][0].tolist() for name in ("input_ids", "labels")} for b in batches]


def test_rows_that_are_masked_already_are_refused_at_every_door(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    masked, collate = premasked(tokenizer, rows), RowCollator(tokenizer)
    masker = Masker.for_tokenizer(tokenizer)
    loader = MaskedLoader(masked, masker, batch_size=16, num_steps=1, collate_fn=collate)
    trainer = trainer_of(tokenizer, masked, tmp_path, LINEAR, max_steps=1)
    for door in (
        lambda: next(iter(KeyedLoader(masked, batch_size=16, collate_fn=collate))),
        lambda: next(iter(DataLoader(with_row_ids(masked), batch_size=16, collate_fn=collate))),
        lambda: next(iter(loader)),
        lambda: masker(masked, 0.5),
        trainer.train,
        trainer.evaluate,
    ):
        with pytest.raises(UsageError, match=r"row \d+ is masked already: it has labels"):
            door()


def test_labels_of_rows_that_are_not_masked_are_left_out(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    masker = Masker.for_tokenizer(tokenizer)
    expected = masker(rows, 0.5)
    copies = [{**row, "labels": list(row["input_ids"])} for row in rows]
    sentences = [{**row, "labels": 1} for row in rows]
    for given in (copies, sentences):
        assert torch.equal(masker(given, 0.5).labels, expected.labels)
    shows = {"input_ids": [2, 20, tokenizer.mask_token_id, 22, 3]}  # a [MASK] of the text's own
    expected = masker([shows], 0.5)
    tags, copied = [-100, 3, 1, 4, -100], [*shows["input_ids"]]
    of_texts = [1, None, "positive", torch.tensor(1), np.array(1), [0.0, 1.0], [[1], [1, 2]]]
    for labels in (copied, tags, [-100] * 5, [None] * 5, ["O"] * 5, [0, 1, 9], *of_texts):
        assert torch.equal(masker([shows | {"labels": labels}], 0.5).labels, expected.labels)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.tensor(row) for row in IDS], layout=torch.jagged)


def batch(**columns: Any) -> dict[str, Any]:
    return {"input_ids": NUMBERS, **columns}


UNREADABLE = {
    "fractions as row ids": (batch(row_id=np.array([0.1, 0.2])), r"row_id is \[0.1, 0.2\]; give whole"),
    "truth values as row ids": (batch(row_id=[True, False]), r"row_id is \[True, False\]; give"),
    "a fraction among objects": (batch(row_id=np.array([1, 0.5], object)), "row_id is .*give whole"),
    "a fraction as epoch": (batch(epoch=1.5), "epoch is 1.5; give whole numbers$"),
    "an epoch that is no number": (batch(epoch=float("nan")), "epoch is nan"),
    "too many epochs": (batch(epoch=[1, 2, 3]), r"epoch has the shape \[3\], and the batch has 2 rows"),
    "numbers of rows in lists": ([{"input_ids": [2, 3], "row_id": [1]}], r"row_id has the shape \[1, 1\]"),
    "fractions as words": (
        [{"input_ids": [2, 3], "word_ids": [0.2, 0.7]}],
        "word_ids has the value 0.2 at token 0",
    ),
    "fractions as classes": (batch(token_class=NUMBERS + 0.5), "token_class has the value 2.5"),
    "an id that is none": (
        [{"input_ids": np.array([2, None, 3], object)}],
        "row 0 holds None among its token ids",
    ),
    "a sparse tensor": (NUMBERS.to_sparse(), r"input_ids is a sparse tensor; .*to_dense\(\)"),
    "a sparse mask": (batch(attention_mask=NUMBERS.to_sparse()), "attention_mask is a sparse"),
    "a tensor without values": (NUMBERS.to("meta"), "input_ids is a tensor on the meta device"),
    "a column of one number": ({"input_ids": 5}, "input_ids is int 5, a batch of rows has one value for"),
    "positions in all": (batch(position_ids=torch.tensor(1)), "position_ids is tensor.*give one number"),
    "ragged positions": (batch(position_ids=[[0, [1]], [0]]), r"position_ids is \[\[0"),
    "texts as positions": (batch(seq_idx=[["a"], ["b"]]), "seq_idx is .*leave the column out"),
    "bounds that are text": (batch(cu_seqlens="abc"), "cu_seqlens is 'abc'; give one number"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "sentence"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_one_sentence(
    tokenizer: PreTrainedTokenizerFast, given: Any, sentence: str
) -> None:
    with pytest.raises(ChronomaskError, match=sentence):
        Masker.for_tokenizer(tokenizer)(given, 0.5)


def test_ways_out_of_odd_tensors_work(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker.for_tokenizer(tokenizer)
    with pytest.raises(UsageError, match=re.escape("list(tensor.unbind())")):
        masker(nested(), 0.5)
    expected = masker(IDS, 0.5).labels
    assert torch.equal(masker(list(nested().unbind()), 0.5).labels, expected)
    assert torch.equal(masker(torch.tensor(IDS).to_sparse().to_dense(), 0.5).labels, expected)


def test_arrays_of_objects_are_read_as_lists(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker.for_tokenizer(tokenizer)
    lists = [[2, 20, 21, 3], [2, 22, 3]]
    expected = masker(lists, 0.5).labels
    ragged = np.empty(2, object)
    ragged[:] = lists
    masked = masker(ragged, 0.5)
    assert isinstance(masked.labels, np.ndarray)
    assert (masked.labels == expected.numpy()).all()
    rows = [{"input_ids": np.array(ids, object)} for ids in lists]
    assert torch.equal(masker(rows, 0.5).labels, expected)
    words = [{"input_ids": lists[0], "word_ids": np.array([None, 0, 0, None], object)}]
    assert masker.rows_of(words, 0.5).word_id.tolist() == [[-1, 0, 0, -1]]
