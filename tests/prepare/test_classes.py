"""Rows that somebody else tokenised get the words and classes that a preparation gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chronomask.errors import DataError, UsageError
from chronomask.integrations.order import with_row_ids
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator
from chronomask.prepare.classes import add_classes, spell
from chronomask.prepare.config import PrepareConfig
from chronomask.prepare.encoding import load_backend
from chronomask.prepare.rows.annotate import Annotator
from chronomask.prepare.words.unicode import UnicodeWords
from chronomask.types import UPOS_CLASSES
from tests.support.corpus import made_up_text

TEXTS = [
    "The naïve café was open, wasn't it?", "She bought 3.5 kilos of well-known apples.",
    "  Two  spaces (and\nlines).", "漢字 и кириллица 👍🏽!", "",
]  # fmt: skip
KINDS = ["wordpiece", "byte_level_bpe", "unigram"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("tokenizer") / request.param
    options = {"kind": request.param, "vocab_size": 700}
    choice = PrepareConfig.parse({"sources": ["x"], "tokenizer": options}).tokenizer
    choice.save([*made_up_text(50), *TEXTS * 3], 128, out)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(folder))


def prepared(folder: Path, text: str, tagger: str) -> tuple[list[int], list[int], list[int]]:
    """Ids, word numbers and classes that a preparation gives a text."""
    finder = PrepareConfig.parse({"sources": ["x"], "tagger": tagger}).tagger.open()
    batches = list(Annotator(load_backend(folder), [0, 1, 2, 3, 4], finder).annotate([text]))
    ids = [number for batch in batches for number in batch.ids.tolist()]
    marks = np.asarray([mark for batch in batches for mark in batch.annotation.tolist()], np.int64)
    special = marks >= 128
    words = np.where(special, -1, np.cumsum((marks & 64 > 0) & ~special) - 1)
    return ids, words.tolist(), np.where(special, 0, marks & 63).tolist()


@pytest.mark.parametrize("tagger", ["english", "none"])
@pytest.mark.parametrize("has_offsets", [True, False])
def test_rows_of_a_text_are_as_prepared(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tagger: str, has_offsets: bool
) -> None:
    def encode(batch: Any) -> Any:
        return tokenizer(batch["text"], return_offsets_mapping=has_offsets)

    rows = datasets.Dataset.from_dict({"text": TEXTS}).map(encode, batched=True)
    marked = add_classes(rows, tokenizer, tagger)
    for row, text in zip(marked, TEXTS, strict=True):
        ids, words, classes = prepared(folder, text, tagger)
        assert row["input_ids"][1:-1] == ids
        assert row["word_ids"] == [-1, *words, -1]
        assert row["token_class"] == [0, *classes, 0]
    names = marked.features["token_class"].feature.names
    assert names == (list(UPOS_CLASSES) if tagger == "english" else ["none"])


def test_rows_without_a_text_are_spelled(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "She bought kilos of apples, and they were good."
    ids, words, classes = prepared(folder, text, "english")
    together = [2, *ids, 3, *ids, 3]
    (row,) = add_classes([{"input_ids": together}], tokenizer)
    number = max(words) + 1
    again = [word + number if word >= 0 else -1 for word in words]
    assert row["word_ids"] == [-1, *words, -1, *again, -1]
    same = np.asarray(row["token_class"][1 : len(ids) + 1]) == np.asarray(classes)
    assert same.mean() > 0.8  # without capitals, where the tokenizer has none
    assert set(row["token_class"]) <= set(range(18))


@given(st.lists(st.sampled_from([*"abcé漢и👍! ,", "naïve", "\n"]), max_size=12))
def test_spelled_tokens_are_the_text(
    folder: Path, tokenizer: PreTrainedTokenizerFast, parts: list[str]
) -> None:
    ids = tokenizer("".join(parts), add_special_tokens=False).input_ids
    text, spans = spell(ids, tokenizer)
    assert spans.shape == (len(ids), 2)
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    if tokenizer.unk_token_id not in ids:
        decoded = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        assert "".join(text.split()) == "".join(decoded.split())


def test_a_masker_takes_them_in_every_shape(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = datasets.Dataset.from_list(
        [{"input_ids": tokenizer(text).input_ids} for text in TEXTS[:2]]
    )
    both = add_classes(datasets.DatasetDict({"train": rows, "test": rows}), tokenizer)
    assert isinstance(both, datasets.DatasetDict)
    names = both["train"].features["token_class"].feature.names
    weights = {"kind": "fixed", "weights": {"NOUN": 1.0, "VERB": 0.0}}
    masker = Masker.for_tokenizer(
        tokenizer,
        ratio={"kind": "constant", "base": 0.3},
        content=weights,
        strategy={"kind": "whole_word"},
        class_names=names,
        seed=0,
    )
    batch = masker(RowCollator(tokenizer)(list(with_row_ids(both["train"]))), progress=0.0)
    assert batch.num_predicted > 0
    stream = add_classes(rows.to_iterable_dataset(), tokenizer, "none")
    assert [row["word_ids"] for row in stream] == [
        row["word_ids"] for row in add_classes(rows, tokenizer, "none")
    ]
    shared = add_classes(rows, tokenizer, "english", num_proc=2)
    assert shared["token_class"] == both["test"]["token_class"]


def test_what_cannot_be_tagged(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UsageError, match=r"no input_ids \(it has text\)"):
        add_classes([{"text": "a"}], tokenizer, "none")
    with pytest.raises(DataError, match=r"column 'text' of a row, .*: '\\ud83d' is half of a char"):
        add_classes([{"text": "a \ud83d", "input_ids": [2, 5, 3]}], tokenizer, "none")
    with pytest.raises(UsageError, match=r"'englsh'.*english"):
        add_classes([], tokenizer, "englsh")
    for name in ("bands", "column"):  # told before any row is read
        with pytest.raises(
            UsageError, match=r"needs a preparation .*; rows of your own take english, "
        ):
            add_classes([], tokenizer, name)

    class Slow:
        is_fast = False

    with pytest.raises(UsageError, match="slow tokenizer"):
        add_classes([], Slow(), "none")  # type: ignore[arg-type]
    assert UnicodeWords().tag([""])[0].starts.size == 0


def test_rows_that_are_not_the_tokenizers(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    for bad in (size, -1, 10**6):
        for row in ({}, {"text": "a", "offset_mapping": [(0, 1)]}):
            with pytest.raises(DataError, match=f"token id {bad} is outside the tokenizer's"):
                add_classes([{"input_ids": [bad], **row}], tokenizer, "none")
    short = {"input_ids": [5, 6], "text": "a b", "offset_mapping": [(0, 1)]}
    with pytest.raises(DataError, match=r"a row of 2 tokens has the offset_mapping .* leave the"):
        add_classes([short], tokenizer, "none")
    for ids in (None, ["a"], 5):
        with pytest.raises(UsageError, match=r"input_ids are .* must be a list of whole numbers"):
            add_classes([{"input_ids": ids}], tokenizer, "none")
    with pytest.raises(UsageError, match=r"a row is \[5, 6\]; give dictionaries"):
        add_classes([[5, 6]], tokenizer, "none")
    batch = tokenizer(["some text"])
    with pytest.raises(UsageError, match=r"Dataset\.from_dict\(dict\(batch\)\)"):
        add_classes(batch, tokenizer, "none")
    marked = add_classes(datasets.Dataset.from_dict(dict(batch)), tokenizer, "none")
    assert "word_ids" in marked.column_names


def test_an_id_without_an_entry_spells_nothing() -> None:
    """Ids may have holes, which transformers gives the text None."""
    model = models.WordPiece({"[PAD]": 0, "[UNK]": 1, "a": 2, "##b": 9}, unk_token="[UNK]")
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="[PAD]")
    with pytest.raises(DataError, match="token id 5 is no entry"):
        spell([2, 5], made)
