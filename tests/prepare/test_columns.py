"""Words and classes that the sources bring: from list columns and CoNLL-U to rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.data.folder import PreparedData
from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.prepare.config import ColumnTagger, PrepareConfig
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.read.left_out import Skipped
from chronomask.prepare.read.sources import find_sources
from chronomask.prepare.words.tagger import split_long
from chronomask.types import UPOS_CLASSES, Document, TaggedWords
from tests.support.reading import read as read_sources

RECORDS = [
    {"words": ["Anna", "lives", "in", "New York", "."], "tags": ["PER", "O", "O", "LOC", None]},
    {"words": ["", "Ber\nlin", " ", "grows"], "tags": ["X", "LOC", "X", "O"]},
]


def conllu(*sentences: str) -> str:
    """Sentences of "form/tag" words; ``~`` before a word: no space before it; ``#`` lines as they are."""
    out = []
    for sentence in sentences:
        lines, words = [], [w for w in sentence.split(" ") if not w.startswith("#")]
        lines += [w.replace("_", " ") for w in sentence.split(" ") if w.startswith("#")]
        number = 0
        for k, word in enumerate(words):
            form, tag = word.lstrip("~").rsplit("/", 1)
            after = k + 1 < len(words) and words[k + 1].startswith("~")
            misc = "SpaceAfter=No" if after else "_"
            if tag.isdecimal():  # a multiword token over that many words
                lines.append(f"{number + 1}-{number + int(tag)}\t{form}" + "\t_" * 7 + f"\t{misc}")
            else:
                number += 1
                lines.append(f"{number}\t{form}\t_\t{tag}" + "\t_" * 5 + f"\t{misc}")
        out.append("\n".join(lines) + "\n\n")
    return "".join(out)


def test_conllu_without_universal_tags(tmp_path: Path) -> None:
    file = tmp_path / "x.conllu"
    file.write_text(conllu("Der/NOUN Hund/_ bellt/VERB"))
    (document,) = read(file)[0]
    assert spelled(document) == [("Der", "NOUN"), ("Hund", ""), ("bellt", "VERB")]
    common: dict[str, Any] = {"row_length": 8, "workers": 1, "held_out": 0.0, "progress": False}
    by_hand = prepare([file], tmp_path / "tags", tagger="column", **common)
    assert "VERB" in by_hand.class_names
    file.write_text(conllu("Der/ART Hund/NN bellt/VVFIN"))
    with pytest.raises(
        DataError, match=r"x.conllu:1: 'ART' is not a universal .* X, _; .*tags_key=xpos"
    ):
        read(file)
    plain = prepare([file], tmp_path / "plain", tagger="none", **common)
    assert plain.statistics["words"] == 3


def read(file: Path, **tagger: Any) -> tuple[list[Document], Skipped]:
    return read_sources(file, tagger={"kind": "column"} | tagger)


def spelled(document: Document) -> list[tuple[str, str]]:
    words = document.words
    assert words is not None
    return [
        (document.text[a:b], tag)
        for a, b, tag in zip(words.starts, words.ends, words.tags, strict=True)
    ]


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), file)
    else:
        file.write_text("\n".join(json.dumps(record) for record in records))
    return file


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_words_are_joined_by_spaces(tmp_path: Path, name: str) -> None:
    documents, skipped = read(write(tmp_path / name, RECORDS))
    assert [d.text for d in documents] == ["Anna lives in New York .", "Ber lin grows"]
    assert spelled(documents[0]) == [
        ("Anna", "PER"), ("lives", "O"), ("in", "O"), ("New York", "LOC"), (".", ""),
    ]  # fmt: skip
    assert spelled(documents[1]) == [("Ber lin", "LOC"), ("grows", "O")]
    assert not skipped.counts


def test_records_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    bad = [
        {"words": ["a"], "tags": ["X", "Y"]},
        {"words": "a b", "tags": ["X", "Y"]},
        {"words": ["a", 1], "tags": ["X", "Y"]},
        {"words": ["a", "b"], "tags": ["X", 2]},
        {"words": ["a"], "tags": ["X\ud800"]},
    ]
    documents, skipped = read(write(tmp_path / "a.jsonl", [*RECORDS, *bad]))
    assert len(documents) == 2
    assert skipped.counts == {
        "not as many tags as words": 1,
        "no list of words and of tags": 1,
        "words that are not text": 1,
        "tags that are not text": 1,
        "lone surrogate in a tag": 1,
    }


@pytest.mark.parametrize(
    ("name", "records", "tagger", "message"),
    [
        ("a.jsonl", RECORDS, {"words_key": "word"}, "no field 'word'; did you mean 'words'.*words_key"),
        ("a.parquet", RECORDS, {"tags_key": "tag"}, "no field 'tag'; did you mean 'tags'.*tags_key"),
        ("a.parquet", [{"words": "a", "tags": ["X"]}], {}, "'words' is string, not lists of text"),
        ("a.parquet", [{"words": ["a"], "tags": [1]}], {}, "'tags' is list.*int64.*not lists of text"),
    ],
)  # fmt: skip
def test_missing_and_strange_columns_are_refused(
    tmp_path: Path, name: str, records: list[dict[str, Any]], tagger: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, records), **tagger)


def test_sources_without_words_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"has no words with tags.*\.jsonl, \.parquet, \.conllu"):
        read(tmp_path / "a.txt")
    values = {"sources": [{"kind": "installed_packages"}], "tagger": {"kind": "column"}}
    packages = PrepareConfig.parse(values)
    with pytest.raises(UsageError, match="source installed_packages has no words with tags"):
        find_sources(packages.sources, packages.fields(), Skipped())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("upos", ["PRON", "VERB"]),
        ("xpos", ["PRP", ""]),
        ("lemma", ["I", "go"]),
        ("feats", ["", "Tense=Pres|Number=Sing"]),
        ("deprel", ["nsubj", "root"]),
        ("form", ["I", "go"]),
    ],
)
def test_any_column_of_conllu_gives_the_tags(tmp_path: Path, key: str, expected: list[str]) -> None:
    file = tmp_path / "a.conllu"
    file.write_text(
        "1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_\n"
        "2\tgo\tgo\tVERB\t_\tTense=Pres|Number=Sing\t0\troot\t_\t_\n\n"
    )
    (document,) = read(file, tags_key=key)[0]
    assert spelled(document) == list(zip(["I", "go"], expected, strict=True))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tags_key": "ner"}, "a.conllu: CoNLL-U has no column 'ner' of tags.*tags_key.*xpos"),
        ({"words_key": "lemma"}, "a.conllu: CoNLL-U has no column 'lemma' of words.*words, form"),
    ],
)
def test_other_columns_of_conllu_are_refused(
    tmp_path: Path, keys: dict[str, str], message: str
) -> None:
    file = tmp_path / "a.conllu"
    file.write_text(conllu("I/PRON"))
    with pytest.raises(DataError, match=message):
        read(file, **keys)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_sentence_of_conllu_is_a_document(tmp_path: Path, compressed: bool) -> None:
    text = conllu("I/PRON ca/AUX ~n't/PART go/VERB ~./PUNCT", "Yes/INTJ ~!/PUNCT")
    file = tmp_path / ("a.conllu.gz" if compressed else "a.conllu")
    file.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    documents, _ = read(file)
    assert [d.text for d in documents] == ["I can't go.", "Yes!"]
    assert spelled(documents[0])[1:3] == [("ca", "AUX"), ("n't", "PART")]
    assert [d.id for d in documents] == [f"{file}:0", f"{file}:1"]


def test_newdoc_joins_sentences(tmp_path: Path) -> None:
    file = tmp_path / "a.conllu"
    file.write_text(
        conllu("#_newdoc Hi/INTJ ~!/PUNCT", "Go/VERB ~./PUNCT", "#_newdoc_id_=_b End/NOUN")
    )
    documents, _ = read(file)
    assert [d.text for d in documents] == ["Hi! Go.", "End"]
    assert spelled(documents[0])[2:] == [("Go", "VERB"), (".", "PUNCT")]


def test_multiword_tokens_are_written_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "a.conllu"
    file.write_text(
        conllu("do/AUX don't/2 do/AUX n't/PART", "loin/ADV du/2 de/ADP le/DET parc/NOUN")
    )
    documents, _ = read(file)
    assert [d.text for d in documents] == ["do don't", "loin du parc"]
    assert spelled(documents[0]) == [("do", "AUX"), ("do", "AUX"), ("n't", "PART")]
    assert spelled(documents[1]) == [("loin", "ADV"), ("du", "ADP"), ("parc", "NOUN")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1\tonly\n\n", "2 tab-separated columns"),
        (
            conllu("a/NOUN").replace("NOUN", "NUON").encode(),
            "'NUON' is not a universal part-of-speech tag",
        ),
        (conllu("a/NOUN").replace("a", "\xff").encode("latin-1"), "is not UTF-8"),
    ],
)
def test_malformed_conllu_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.conllu").write_bytes(text)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.conllu")


def prepared(file: Path, out: Path, *overrides: str, **tagger: Any) -> PreparedData:
    config = PrepareConfig.parse(
        {
            "sources": [str(file)],
            "tagger": {"kind": "column", **tagger},
            "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 320},
            "row_length": 32,
            "held_out": 0.0,
            "part_characters": 1000,
            "workers": 1,
        }
    )
    return prepare(config.replace(overrides), out, progress=False)


def words_of(data: PreparedData) -> list[tuple[str, str]]:
    """Every word of the rows, and its class."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer_path))
    split = data.split("train")
    rows = split.read(np.arange(split.num_rows))
    found = []
    for ids, words, classes in zip(rows.input_ids, rows.word_id, rows.token_class, strict=True):
        for word in range(words.max() + 1):
            at = words == word
            name = data.class_names[int(classes[at][0])]
            found.append((tokenizer.decode(ids[at]).strip(), name))
    return found


def test_the_rows_have_the_columns_words_and_classes(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", RECORDS)
    data = prepared(file, tmp_path / "out", "packing.kind=documents")
    assert data.class_names == ("none", "LOC", "O", "PER")
    assert data.manifest.tagger == "column (tags)"
    assert data.statistics["words"] == 7
    assert sorted(words_of(data)) == sorted(
        [
            ("Anna", "PER"), ("lives", "O"), ("in", "O"), ("New York", "LOC"), (".", "none"),
            ("Ber lin", "LOC"), ("grows", "O"),
        ]
    )  # fmt: skip


def test_another_text_is_refused_and_the_way_out_shows_rows(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "a.jsonl", RECORDS), tmp_path / "out")
    command = ["inspect", "--data", str(data.path)]
    refused = CliRunner().invoke(app, [*command, "Anna grows."])
    assert "leave the text out, and rows of the prepared data are shown" in str(refused.exception)
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    assert shown.exit_code == 0
    assert "shown as [MASK]" in shown.output


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    records = [
        {"words": [f"w{k * j % 17}" for j in range(40)], "tags": [f"t{j % 7}" for j in range(40)]}
        for k in range(100)
    ]
    file = write(tmp_path / "a.parquet", records)
    one = prepared(file, tmp_path / "one")
    two = prepared(file, tmp_path / "two", "workers=2")
    for path in sorted(one.path.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (two.path / path.relative_to(one.path)).read_bytes()
    assert one.class_names == ("none", *(f"t{k}" for k in range(7)))


def test_conllu_has_all_universal_classes(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(conllu("The/DET dog/NOUN barks/VERB ~./PUNCT"))
    data = prepared(tmp_path / "a.conllu", tmp_path / "out")
    assert data.class_names == UPOS_CLASSES
    assert words_of(data) == [("The", "DET"), ("dog", "NOUN"), ("barks", "VERB"), (".", "PUNCT")]


def test_conllu_is_plain_text_to_another_tagger(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(conllu("The/DET dog/NOUN barks/VERB ~./PUNCT"))
    data = prepared(tmp_path / "a.conllu", tmp_path / "out", "tagger.kind=none")
    assert data.class_names == ("none",)


def test_class_names_are_those_of_the_config() -> None:
    chosen = ColumnTagger(class_names=("PER", "LOC", "ORG"))
    assert chosen.classes_of({"LOC": 2, "": 5}) == ("none", "PER", "LOC", "ORG")
    with pytest.raises(DataError, match="3 words have the tag 'PRE'; did you mean 'PER'"):
        chosen.classes_of({"PRE": 3})


def test_too_many_tags_are_refused() -> None:
    tags = {f"t{k:02d}": 1 for k in range(62)}
    assert len(ColumnTagger().classes_of(tags)) == 63
    with pytest.raises(DataError, match="'tags' has 63 different tags"):
        ColumnTagger().classes_of(tags | {"more": 1})


@pytest.mark.parametrize("names", [["a", "a"], ["none"], [""], [f"t{k}" for k in range(63)]])
def test_class_names_that_cannot_be(names: list[str]) -> None:
    with pytest.raises(ChronomaskError, match="class names"):
        PrepareConfig.parse({"sources": ["x"], "tagger": {"kind": "column", "class_names": names}})


@given(st.lists(st.text("ab", min_size=1, max_size=9), min_size=1), st.integers(1, 12))
def test_words_follow_a_text_that_is_cut(words: list[str], limit: int) -> None:
    ends = np.cumsum([len(w) + 1 for w in words]) - 1
    starts = ends - [len(w) for w in words]
    tagged = TaggedWords(starts.tolist(), ends.tolist(), ["X"] * len(words))
    text = " ".join(words)
    (spans,) = ColumnTagger().given([Document("d", text, words=tagged)], ("none", "X"))
    covered = []
    for offset, piece in split_long(text, limit):
        inside = spans.between(offset, offset + len(piece))
        assert (inside.starts < inside.ends).all()
        covered += [k for a, b in zip(inside.starts, inside.ends, strict=True)
                    for k in range(offset + a, offset + b)]  # fmt: skip
    assert covered == [k for k, character in enumerate(text) if character != " "]


def test_tags_with_control_characters_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 words have the tag 'N\\n', which holds a control"):
        ColumnTagger().classes_of({"N\n": 3, "V": 5})
