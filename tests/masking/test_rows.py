"""What holds token ids becomes rows: words, specials, padding, row ids, and clear refusals."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
)

from chronomask.errors import DataError, UsageError
from chronomask.integrations.order import KeyedLoader
from chronomask.masking.columns import COLUMNS
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.masking.rows import RowCollator, as_rows
from chronomask.masking.word_marks import word_marks
from chronomask.types import UPOS_CLASSES, MaskedBatch
from tests.support.worded_rows import TEXT, make_rows, make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Any]]:
    return make_rows(tokenizer, 32)


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


@pytest.mark.parametrize(
    ("takes", "words"), [("lstrip", [0, 1, 1]), ("rstrip", [0, 0, 1]), ("", [0, 0, 0])]
)
def test_an_added_token_that_takes_a_space_has_a_mark_less(takes: str, words: list[int]) -> None:
    tokenizer = vocabulary_of(["Ġthe", "wave"], pre_tokenizers.ByteLevel())
    tokenizer.add_tokens([AddedToken("virus", lstrip=takes == "lstrip", rstrip=takes == "rstrip")])
    assert word_id_of(tokenizer, ["Ġthe", "virus", "wave"]) == words


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
    torch_rows = as_rows(batch, epoch=3)
    masked = masker(torch_rows, 0.25)
    other = masker(as_rows(batch, epoch=4), 0.25)
    assert not torch.equal(masked.labels, other.labels)
    first = masker(as_rows(batch, epoch=0), 0.25)
    assert torch.equal(masker(as_rows(batch), 0.25).labels, first.labels)
    halves = [
        masker(as_rows({k: v[s] for k, v in batch.items()}, epoch=3), 0.25).input_ids
        for s in (slice(0, 16), slice(16, 32))
    ]
    assert torch.equal(torch.cat(halves), masked.input_ids)


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
        as_rows({"input_ids": torch.zeros(1, 2, dtype=torch.int64)})
    with pytest.raises(UsageError, match="row_length is 0"):
        RowCollator(tokenizer, row_length=0)
    with pytest.raises(UsageError, match="pad_to_multiple_of is 0"):
        RowCollator(tokenizer, pad_to_multiple_of=0)


def labels_of(masked: MaskedBatch) -> list[list[int]]:
    """The labels row by row, without what is padding at the end of a row."""
    assert masked.attention_mask is not None
    lengths = np.asarray(masked.attention_mask).sum(1).tolist()
    return [row[:n] for row, n in zip(np.asarray(masked.labels).tolist(), lengths, strict=True)]


def test_whatever_holds_the_same_ids_gets_the_same_masks(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    masker = Masker.for_tokenizer(tokenizer, seed=5)
    ids = [row["input_ids"] for row in rows]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    tensor = batch["input_ids"]
    forms = {
        "lists": ids,
        "tuples": tuple(map(tuple, ids)),
        "arrays of rows": [np.array(row, np.uint16) for row in ids],
        "a tensor": tensor,
        "an int32 tensor": tensor.int(),
        "an array": tensor.numpy(),
        "the tokenizer's batch": batch,
        "a dictionary": {"input_ids": tensor, "attention_mask": batch["attention_mask"]},
        "a dictionary of lists": {"input_ids": ids},
        "features": [{"input_ids": row} for row in ids],
        "a collated batch": DataCollatorWithPadding(tokenizer)([{"input_ids": r} for r in ids]),
    }
    expected = labels_of(masker(ids, 0.4))
    assert sum(label != -100 for row in expected for label in row) > 40
    for name, given in forms.items():
        masked = masker(given, progress=0.4)
        assert labels_of(masked) == expected, name
        assert isinstance(masked.labels, np.ndarray) == (name == "an array"), name
        assert torch.equal(masked.inputs()["attention_mask"], batch["attention_mask"]), name
    texts = masker(tokenizer(TEXT), progress=0.4)
    assert texts.inputs()["input_ids"].shape == texts.labels.shape


def test_masks_are_a_function_of_seed_tokens_and_progress_alone(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    ids = [row["input_ids"] for row in rows]
    ids = [row for k, row in enumerate(ids) if row not in ids[:k]]
    masker = Masker.for_tokenizer(tokenizer, seed=5)
    whole = labels_of(masker(ids, 0.4))
    assert [labels_of(masker([row], 0.4))[0] for row in ids] == whole
    assert labels_of(masker(ids[::-1], 0.4)) == whole[::-1]
    padded = [row + [tokenizer.pad_token_id] * 9 for row in ids[:4]]
    assert labels_of(masker(padded, 0.4)) == whole[:4]
    again = Masker.for_tokenizer(tokenizer, seed=5)
    again(ids, 0.7)
    assert labels_of(again(ids, 0.4)) == whole
    ratio = {"kind": "constant", "base": 0.4}
    constant = Masker.for_tokenizer(tokenizer, ratio=ratio, seed=5)
    at = [labels_of(constant(ids, progress)) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert len({str(labels) for labels in at}) == 5
    assert labels_of(constant(ids, -0.0)) == at[0]
    other = Masker.for_tokenizer(tokenizer, ratio=ratio, seed=6)
    assert labels_of(other(ids, 0.0)) != at[0]
    counts = np.array([[sum(x != -100 for x in row) for row in labels] for labels in at])
    maskable = sum(len(row) - 2 for row in ids)
    assert counts.sum(1) == pytest.approx(0.4 * maskable, rel=0.05)


def test_columns_of_a_batch_mean_what_they_mean_to_the_collator(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    content = {"kind": "fixed", "weights": {"VERB": 0.0, "NOUN": 3.0}}
    masker = Masker.for_tokenizer(tokenizer, content=content, class_names=UPOS_CLASSES, seed=5)
    features = [dict(row, row_id=100 - k) for k, row in enumerate(rows)]
    for feature in features:
        feature["special_tokens_mask"] = [1, 1, *[0] * (len(feature["input_ids"]) - 2)]
    collated = RowCollator(tokenizer)(features)
    expected = masker(as_rows(collated, epoch=3), 0.4)
    columns = {name: [f[name] for f in features] for name in features[0]}
    for given in (collated, columns, {k: columns[k] for k in reversed(COLUMNS) if k in columns}):
        masked = masker({**given, "epoch": 3}, 0.4)
        assert torch.equal(masked.labels, expected.labels)
        assert torch.equal(masked.input_ids, expected.input_ids)
    assert not torch.equal(masker({**columns, "epoch": 4}, 0.4).labels, expected.labels)
    each = [3 if k < 16 else 4 for k in range(32)]
    assert torch.equal(masker({**columns, "epoch": each}, 0.4).labels[:16], expected.labels[:16])
    by_progress = masker(columns, 0.4).labels
    assert torch.equal(by_progress, masker(features, 0.4).labels)
    assert not torch.equal(by_progress, masker({**columns, "row_id": [0] * 32}, 0.4).labels)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["whole_word", "span"])
def test_tensors_stay_on_their_device(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], strategy: str
) -> None:
    masker = Masker.for_tokenizer(tokenizer, strategy={"kind": strategy}, seed=5).to("cuda")
    batch = tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt")
    expected = masker(batch, 0.4)
    columns = dict(batch.to("cuda")) | {"row_id": torch.arange(32), "epoch": torch.tensor(1)}
    for given in (batch.to("cuda"), batch["input_ids"].cuda()):
        masked = masker(given, 0.4)
        assert masked.inputs()["input_ids"].is_cuda
        assert masked.inputs()["attention_mask"].is_cuda
        assert torch.equal(masked.labels.cpu(), expected.labels)
    numbered = {name: column.cuda() for name, column in columns.items()}
    host = {name: column.cpu() for name, column in columns.items()}
    assert torch.equal(masker(numbered, 0.4).labels.cpu(), masker(host, 0.4).labels)


def test_padding_on_the_left_is_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    pad = tokenizer.pad_token_id
    ids = tokenizer(TEXT[0])["input_ids"]
    masked = Masker.for_tokenizer(tokenizer)(torch.tensor([[pad, pad, *ids, pad]]), 0.5)
    assert masked.inputs()["attention_mask"].tolist() == [[0, 0, *[1] * len(ids), 0]]


WRONG = {
    "a text": ("The cat sat.", "cannot mask str 'The cat sat.': give rows of a loader"),
    "texts": (["The cat sat."], "text must be tokenised first"),
    "None": (None, "cannot mask None"),
    "a number": (0.5, "cannot mask float 0.5"),
    "an object": (object(), "cannot mask a object"),
    "one row": ([2, 5, 3], r"row 0 is the number 2, .* give a single row as \[ids\]"),
    "a row of a tensor": (
        torch.tensor([2, 5, 3]),
        r"shape \[3\], .* give a single row as \[1, T\]",
    ),
    "attention between tokens": (
        {"input_ids": torch.full((1, 3), 5), "attention_mask": torch.ones(1, 1, 3, 3)},
        r"shape \[1, 1, 3, 3\], .* one value per token, 0 for padding and else 1",
    ),
    "embeddings": (torch.zeros(2, 3, 4), r"shape \[2, 3, 4\], a batch of rows has \[B, T\]"),
    "floats": (torch.zeros(2, 3), "row 0 holds float32 values, such as 0.0; token ids are whole"),
    "truth values": (np.ones((2, 3), bool), "row 0 holds bool values"),
    "a list of floats": ([[2, 5, 3], [2.5]], "row 1 holds float64 values, such as 2.5"),
    "a deeper list": ([[[2], [5, 6]]], "row 0 is .*, not a flat list of token ids"),
    "features without ids": ([{"labels": [1]}], r"row 0 has no 'input_ids' \(it has labels\)"),
    "features and lists": ([{"input_ids": [2, 3]}, [2, 3]], "row 1 is not a feature"),
    "a batch without ids": ({"labels": [[1]]}, r"no 'input_ids' \(it has labels\)"),
    "no rows": ([], "the batch has no rows"),
    "an empty tensor": (torch.zeros(0, 8, dtype=torch.int64), "the batch has no rows"),
    "rows without tokens": ([[], []], "the rows of the batch have no tokens"),
    "columns that differ": (
        {"input_ids": [[2, 5, 3]], "attention_mask": torch.ones(2, 3)},
        "attention_mask has 2 rows, input_ids has 1",
    ),
}
UNREADABLE = {
    "an id too large": (torch.tensor([[2, 9999, 3]]), "token id 9999 is outside the tokenizer's"),
    "a negative id": ([[0, -1, 3]], "token id -1 is outside"),
    "a column too short": ([{"input_ids": [2, 3], "word_ids": [0]}], "word_ids has 1 values for 2"),
    "a row's number that is text": (
        [{"input_ids": [2], "row_id": "a-b"}],
        r"row_id is \['a-b'\]; give",
    ),
    "no row's number": ([{"input_ids": [2], "row_id": None}], r"row_id is \[None\]; give whole"),
    "an epoch that is text": ({"input_ids": [[2, 3]], "epoch": "x"}, "epoch is 'x'; give whole"),
    "words that are text": (
        [{"input_ids": [2, 3], "word_ids": ["a", "b"]}],
        r"row 0: word_ids is \['a', 'b'\]; give one number per token",
    ),
    "no words": ([{"input_ids": [2, 3], "word_ids": None}], "row 0: word_ids is None; give one"),
    "no specials": ([{"input_ids": [2], "special_tokens_mask": None}], "_mask is None; give one"),
    "a class below 0": (
        [{"input_ids": [2, 5], "token_class": [-100, 1], "row_id": 7}],
        "row 7: token_class has the value -100; it may have 0 to 255, and 0 means none",
    ),
    "a class of an array": (
        {"input_ids": np.array([[2, 5]]), "token_class": np.array([[0, 257]])},
        "row 0: token_class has the value 257",
    ),
    "a long collocation": ([{"input_ids": [2, 5], "ngrams": [0, 300]}], "ngrams has the value 300"),
    "columns missing": (
        [{"input_ids": [2, 3], "word_ids": [0, 0]}, {"input_ids": [2, 3]}],
        "row 1 of the batch has no 'word_ids', which row 0 has",
    ),
}


@pytest.mark.parametrize(("given", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_types_get_one_sentence(
    tokenizer: PreTrainedTokenizerFast, given: Any, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        Masker.for_tokenizer(tokenizer)(given, 0.5)
    assert "\n" not in str(refused.value)
    if given is not None and not isinstance(given, list | tuple) and hasattr(given, "__len__"):
        bare = Masker({}, Vocabulary.from_tokenizer(tokenizer))
        with pytest.raises(UsageError, match="knows no tokenizer|" + sentence):
            bare(given, 0.5)


@pytest.mark.parametrize(("given", "sentence"), UNREADABLE.values(), ids=UNREADABLE)
def test_ids_that_mean_nothing_are_refused(
    tokenizer: PreTrainedTokenizerFast, given: Any, sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        Masker.for_tokenizer(tokenizer)(given, 0.5)


def test_a_masker_refuses_what_it_would_mask_wrongly(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    masker = Masker.for_tokenizer(tokenizer)
    hides = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    with pytest.raises(UsageError, match="masked already"):
        masker(hides([{"input_ids": row["input_ids"]} for row in rows]), 0.5)
    with pytest.raises(UsageError, match=r"progress is '0\.5'; give a number"):
        masker([[2, 5, 3]], "0.5")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match=r"progress is \[0.5\]"):
        masker([[2, 5, 3]], [0.5])  # pyright: ignore[reportArgumentType]
    for several in (np.array([0.5]), np.array([0.5, 0.6]), torch.tensor([0.5, 0.6]), 0.5j):
        with pytest.raises(UsageError, match=r"progress is .*0\.5"):
            masker([[2, 5, 3]], several)  # pyright: ignore[reportArgumentType]
    classes = {"input_ids": [[2, 5, 3]], "token_class": [[0, 7, 0]]}
    masker(classes, 0.5)  # classes that nothing asks for may be there
    with pytest.raises(UsageError, match="the names of the classes are given as class_names"):
        Masker.for_tokenizer(tokenizer, content="ptw", classes=("none", "A", "B"))
    few = Masker.for_tokenizer(tokenizer, content={"kind": "ptw"}, class_names=("none", "A", "B"))
    with pytest.raises(UsageError, match=r"token class 7, this masker knows 0 to 2 \(none, A, B\)"):
        few(classes, 0.5)
    unpadded = make_tokenizer()
    unpadded.pad_token = None
    with pytest.raises(UsageError, match="no padding token"):
        Masker.for_tokenizer(unpadded)([[2, 5, 3]], 0.5)


@pytest.mark.parametrize("content", ["ptw", {"kind": "fixed", "weights": {"NOUN": 0.0}}])
def test_content_by_class_refuses_rows_without_classes(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], content: Any
) -> None:
    masker = Masker.for_tokenizer(tokenizer, content=content, class_names=UPOS_CLASSES)
    misspelt = [
        {"input_ids": row["input_ids"], "token_classes": row["token_class"], "row_id": k}
        for k, row in enumerate(rows)
    ]
    ids = [row["input_ids"] for row in rows]
    for given in (RowCollator(tokenizer)(misspelt), misspelt, ids, {"input_ids": ids}):
        with pytest.raises(
            UsageError, match=r"no 'token_class' \(they have .*chronomask\.add_classes"
        ):
            masker(given, 0.5)
    assert not masker.rows_of(misspelt, 0.5, uniform=True).token_class.any()
    assert "token_class" not in RowCollator(tokenizer)(misspelt)
    plain = Masker.for_tokenizer(tokenizer, content="token_accuracy", class_names=UPOS_CLASSES)
    assert plain(misspelt, 0.5).num_predicted


def test_a_strategy_of_turns_refuses_rows_without_an_epoch(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]
) -> None:
    strategy = {"kind": "explored", "epochs": 4, "strategy": {"kind": "token"}}
    masker = Masker.for_tokenizer(tokenizer, ratio=0.25, strategy=strategy)
    batch = RowCollator(tokenizer)([dict(row, row_id=k) for k, row in enumerate(rows)])
    for given in (batch, batch["input_ids"], [row["input_ids"] for row in rows]):
        with pytest.raises(UsageError, match=r"in turns over 4 epochs.*chronomask\.KeyedLoader"):
            masker(given, 0.5)
    times = sum((masker({**batch, "epoch": k}, k / 4).labels >= 0).int() for k in range(4))
    assert torch.equal(times > 0, batch["word_id"] >= 0)
    loader = KeyedLoader(rows, batch_size=32, collate_fn=RowCollator(tokenizer))
    assert all(masker(each, 0.0).num_predicted for each in loader)


def test_a_masker_with_its_tokenizer_can_be_sent_elsewhere(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    masker = Masker.for_tokenizer(tokenizer, seed=3)
    expected = masker([[2, 5, 6, 7, 3]], 0.0).labels
    assert torch.equal(pickle.loads(pickle.dumps(masker))([[2, 5, 6, 7, 3]], 0.0).labels, expected)
