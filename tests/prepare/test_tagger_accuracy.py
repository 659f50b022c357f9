"""The bundled English tagger and the command that measures it."""

import gzip
import json
import lzma
import os
import re
from pathlib import Path

import pytest

from chronomask.errors import DataError, UsageError
from chronomask.prepare.words.english.accuracy import (
    bundled_folder,
    load_tagger,
    main,
    read_conllu,
    tagger_accuracy,
)
from chronomask.types import UPOS


def line(token_id, word, tag, misc="_"):
    return "\t".join([token_id, word, "_", tag, "_", "_", "_", "_", "_", misc])


SAMPLE = "\n".join(
    [
        "# newdoc id = one",
        "# text = I can't stay.",
        line("1", "I", "PRON"),
        line("2-3", "can't", "_"),
        line("2", "ca", "AUX"),
        line("3", "n't", "PART"),
        line("4", "stay", "VERB", "SpaceAfter=No"),
        line("5", ".", "PUNCT"),
        "",
        "# text = Go!",
        line("1", "Go", "VERB", "Typo=No|SpaceAfter=No"),
        line("1.1", "away", "ADV"),
        line("2", "!", "PUNCT"),
        "",
        "",
    ]
)


@pytest.fixture(scope="module")
def tagger():
    return load_tagger()


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.conllu"
    path.write_text(SAMPLE, encoding="utf-8")
    return path


def test_words_spaces_and_tags_are_read(sample):
    first, second = read_conllu(sample)
    assert first.words == ("I", "ca", "n't", "stay", ".")
    assert first.spaces == (True, False, True, False, True)
    assert first.tags == ("PRON", "AUX", "PART", "VERB", "PUNCT")
    assert first.starts_document
    assert second.words == ("Go", "!")
    assert second.spaces == (False, True)
    assert not second.starts_document


def test_multiword_token_without_space_after(tmp_path):
    path = tmp_path / "x.conllu"
    rows = [line("1-2", "don't", "_", "SpaceAfter=No"), line("1", "do", "AUX")]
    rows += [line("2", "n't", "PART"), line("3", "!", "PUNCT")]
    path.write_text("\n".join(rows) + "\n\n", encoding="utf-8")
    assert next(read_conllu(path)).spaces == (False, False, True)


def test_gzip_reads_like_plain_text(sample, tmp_path):
    packed = tmp_path / "sample.conllu.gz"
    packed.write_bytes(gzip.compress(sample.read_bytes()))
    assert list(read_conllu(packed)) == list(read_conllu(sample))


def test_files_are_read_by_the_rule_of_all_text_files(sample, tmp_path):
    packed = tmp_path / "sample.conllu.xz"
    packed.write_bytes(lzma.compress(sample.read_bytes()))
    marked = tmp_path / "marked.conllu"
    marked.write_bytes(b"\xef\xbb\xbf" + sample.read_bytes())
    assert list(read_conllu(packed)) == list(read_conllu(marked)) == list(read_conllu(sample))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no sentence"),
        ("just prose\n\n", ":1: 1 tab-separated columns"),
        (line("1", "a", "NOUNS") + "\n\n", "'NOUNS' is not a universal part-of-speech tag"),
        (line("2", "a", "DET") + "\n\n", "word id '2', expected 1"),
        (line("3-2", "a", "_") + "\n\n", "'3-2' is not a range"),
        (line("1", "a", "DET") + "\n", "ends inside a sentence"),
        (line("2-3", "du", "_") + "\n" + line("1", "a", "DET") + "\n\n", "the next word is 1"),
        (
            "\n".join(line(str(k), "_a"[k // 3], "DET") for k in (1, 2, 3)) + "\n\n",
            "2 of 3 words are '_': this treebank comes without its text",
        ),
    ],
)
def test_malformed_text_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.conllu"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(message)):
        list(read_conllu(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("short.conllu.gz", gzip.compress(SAMPLE.encode(), mtime=0)[:-9], "damaged or cut short"),
        ("plain.conllu.gz", SAMPLE.encode(), "damaged or cut short"),
        ("latin.conllu", b"# caf\xe9\n", "not UTF-8"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_conllu(path))


def test_accuracy_counts_by_hand(sample):
    import spacy
    from spacy.language import Language

    @Language.component("chronomask_test_all_verbs")
    def all_verbs(doc):
        for token in doc:
            token.pos_ = "VERB"
        return doc

    nlp = spacy.blank("en")
    nlp.add_pipe("chronomask_test_all_verbs")
    result = tagger_accuracy(read_conllu(sample), nlp, "all verbs")
    assert (result.num_sentences, result.num_words, result.num_correct) == (2, 7, 2)
    assert result.accuracy == pytest.approx(2 / 7)
    verb, noun = result.per_tag["VERB"], result.per_tag["NOUN"]
    assert (verb.recall, verb.precision) == (1.0, pytest.approx(2 / 7))
    assert (noun.recall, noun.precision) == (None, None)


def test_bundled_tagger_tags_plain_text(tagger):
    doc = tagger("The old man looked at Mary because she didn't feed him in 1999.")
    tags = {token.text: token.pos_ for token in doc}
    assert set(tags.values()) <= set(UPOS)
    expected = {"The": "DET", "old": "ADJ", "man": "NOUN", "looked": "VERB", "at": "ADP"}
    expected |= {"Mary": "PROPN", "because": "SCONJ", "she": "PRON", "did": "AUX", "n't": "PART"}
    expected |= {"feed": "VERB", "him": "PRON", "1999": "NUM", ".": "PUNCT"}
    assert {word: tags[word] for word in expected} == expected


def test_bundled_tagger_is_deterministic(tagger):
    texts = ["A short text.", "Another one, which is longer, follows.", ""]
    again = load_tagger()
    for first, second in zip(tagger.pipe(texts), again.pipe(texts), strict=True):
        assert [t.pos_ for t in first] == [t.pos_ for t in second]


def test_bundled_tagger_knows_all_tags_and_nothing_else(tagger):
    labels = tagger.get_pipe("morphologizer").labels
    assert sorted(labels) == [f"POS={tag}" for tag in UPOS]


def test_bundled_folder_is_small_without_pickle_and_paths():
    files = [path for path in bundled_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert {"LICENSE", "README.md", "config.cfg", "meta.json"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".bin"}]
    pickled = {bytes([0x80, protocol]) for protocol in range(2, 6)}
    assert not [path for path in files if path.read_bytes()[:2] in pickled]
    config = (bundled_folder() / "config.cfg").read_text(encoding="utf-8")
    assert "train = null" in config
    assert "dev = null" in config


def test_command_prints_a_table_and_json(sample, capsys):
    assert main([str(sample)]) == 0
    table = capsys.readouterr().out
    assert "UPOS accuracy" in table
    assert "PROPN" in table
    assert main([str(sample), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["num_words"] == 7
    assert values["upos_accuracy"] == values["num_correct"] / 7
    assert set(values["per_tag"]) == set(UPOS)


def test_command_refuses_a_missing_file(tmp_path, capsys):
    assert main([str(tmp_path / "none.conllu")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_command_refuses_a_malformed_file(tmp_path, capsys):
    path = tmp_path / "bad.conllu"
    path.write_text("prose\n", encoding="utf-8")
    assert main([str(path)]) == 2
    assert "bad.conllu:1" in capsys.readouterr().err


def test_unknown_tagger_is_refused_with_the_nearest_name(sample, capsys):
    with pytest.raises(UsageError, match="did you mean 'english_tagger'"):
        load_tagger("englsh_tagger")
    assert main([str(sample), "--tagger", "no_such_pipeline"]) == 2
    assert "no_such_pipeline" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    "CHRONOMASK_EWT" not in os.environ, reason="CHRONOMASK_EWT names no UD_English-EWT folder"
)
def test_accuracy_on_the_treebank(tagger):
    (test_part,) = Path(os.environ["CHRONOMASK_EWT"]).glob("*-ud-test.conllu*")
    assert tagger_accuracy(read_conllu(test_part), tagger).accuracy >= 0.93
