"""Features become rows: words, specials, padding, row ids, and clear refusals."""

from __future__ import annotations

import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from chronomask.errors import DataError, UsageError
from chronomask.integrations.rows import RowCollator, rows_of, with_row_ids, word_marks
from chronomask.masking.masker import Masker, MaskingConfig, Vocabulary


def vocabulary_of(tokens: list[str], pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    numbers = {token: k for k, token in enumerate([*specials, *tokens])}
    raw = Tokenizer(models.BPE(vocab=numbers, merges=[], unk_token="<unk>"))
    if pre_tokenizer is not None:
        raw.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        unk_token="<unk>",
    )


def word_id_of(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> list[int]:
    ids = tokenizer.convert_tokens_to_ids(tokens)
    return RowCollator(tokenizer)([{"input_ids": ids, "row_id": 0}])["word_id"][0].tolist()


def test_wordpiece_words_are_those_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    numbered = [dict(row, row_id=k) for k, row in enumerate(rows)]
    bare = [{"input_ids": r["input_ids"], "row_id": r["row_id"]} for r in numbered]
    collate = RowCollator(tokenizer)
    given, derived = collate(numbered), collate(bare)
    assert torch.equal(given["word_id"], derived["word_id"])
    assert given["word_id"].max() > 5


@pytest.mark.parametrize(
    ("marker", "pre_tokenizer"),
    [
        ("Ġ", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        ("▁", pre_tokenizers.Metaspace()),
    ],
)
def test_leading_space_marks_begin_words(marker: str, pre_tokenizer: Any) -> None:
    words = ["un", "believ", "able", f"{marker}things", ",", f"{marker}do", "n", "'t", "!", "ok"]
    tokenizer = vocabulary_of(words, pre_tokenizer)
    got = word_id_of(tokenizer, ["<s>", *words, "</s>"])
    assert got == [-1, 0, 0, 0, 1, 2, 3, 3, 3, 4, 5, -1]


def test_a_vocabulary_without_marks_asks_for_word_ids() -> None:
    tokenizer = vocabulary_of(["a", "b"], None)
    with pytest.raises(UsageError, match="word_ids"):
        word_marks(tokenizer)
    with pytest.raises(UsageError, match="word_ids"):
        word_id_of(tokenizer, ["a", "b"])
    feature = {"input_ids": [5, 6, 6], "word_ids": [None, 4, 4], "row_id": 0}
    assert RowCollator(tokenizer)([feature])["word_id"].tolist() == [[-1, 0, 0]]


def test_padding_and_specials_are_never_maskable(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    features = [dict(row, row_id=k) for k, row in enumerate(rows[:8])]
    batch = RowCollator(tokenizer, pad_to_multiple_of=16)(features)
    assert batch["input_ids"].shape[1] % 16 == 0
    longest = max(len(row["input_ids"]) for row in rows[:8])
    assert batch["attention_mask"].sum(1).max() == longest
    maskable = batch["word_id"] >= 0
    special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    assert torch.equal(maskable, ~special & (batch["attention_mask"] == 1))
    own_mask = [
        dict(f, special_tokens_mask=[1] + [0] * (len(f["input_ids"]) - 1)) for f in features
    ]
    again = RowCollator(tokenizer)(
        [{k: v for k, v in f.items() if k != "word_ids"} for f in own_mask]
    )
    assert (again["word_id"][:, 0] == -1).all()
    assert ((again["word_id"] >= 0).sum(1) == again["attention_mask"].sum(1) - 1).all()


def test_numpy_and_torch_rows_get_the_same_masks(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    batch = RowCollator(tokenizer)([dict(row, row_id=k) for k, row in enumerate(rows)])
    masker = Masker(MaskingConfig(), Vocabulary.from_tokenizer(tokenizer))
    torch_rows = rows_of(batch, epoch=3)
    masked = masker(torch_rows, 0.25)
    other = masker(rows_of(batch, epoch=4), 0.25)
    assert not torch.equal(masked.labels, other.labels)
    halves = [
        masker(rows_of({k: v[s] for k, v in batch.items()}, epoch=3), 0.25).input_ids
        for s in (slice(0, 16), slice(16, 32))
    ]
    assert torch.equal(torch.cat(halves), masked.input_ids)


def test_row_ids_are_places_whatever_the_data_set(rows: list[dict[str, Any]]) -> None:
    column = datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows])
    numbered = with_row_ids(column)
    assert numbered["row_id"][:] == list(range(len(rows)))
    assert with_row_ids(numbered) is numbered
    plain = with_row_ids(rows)
    assert len(plain) == len(rows)
    assert plain[7]["row_id"] == 7
    assert with_row_ids(plain) is plain

    class Stream(IterableDataset[dict[str, Any]]):
        def __iter__(self) -> Any:
            return iter(rows)

    with pytest.raises(UsageError, match="stream"):
        with_row_ids(Stream())


def test_the_collator_can_be_sent_to_spawned_workers(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    collate = RowCollator(tokenizer, row_length=32)
    features = [dict(row, row_id=k) for k, row in enumerate(rows)]
    copied = pickle.loads(pickle.dumps(collate))(features)
    assert all(np.array_equal(copied[k], v) for k, v in collate(features).items())


def test_refusals_name_the_way_out(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    row = dict(rows[0], row_id=0)
    with pytest.raises(UsageError, match="with_row_ids"):
        RowCollator(tokenizer)([rows[0]])
    with pytest.raises(UsageError, match="truncate"):
        RowCollator(tokenizer, row_length=3)([row])
    with pytest.raises(DataError, match="vocabulary"):
        RowCollator(tokenizer)([{"input_ids": [10_000], "row_id": 0}])
    with pytest.raises(DataError, match="row 0: token_class has 1 values"):
        RowCollator(tokenizer)([dict(row, token_class=[1])])
    with pytest.raises(UsageError, match="RowCollator"):
        rows_of({"input_ids": torch.zeros(1, 2)})
    with pytest.raises(UsageError, match="row_length is 0"):
        RowCollator(tokenizer, row_length=0)
    with pytest.raises(UsageError, match="pad_to_multiple_of is 0"):
        RowCollator(tokenizer, pad_to_multiple_of=0)
