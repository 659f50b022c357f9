"""A folder's tokenizer.json decides the tokens, whatever class of transformers the folder names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from chronomask.evaluate.subject import find_subject
from chronomask.model.build import build_model
from chronomask.model.config import FromCheckpoint
from chronomask.model.export import export
from chronomask.model.open import open_tokenizer
from chronomask.prepare.tokenizer import TokenizerFolder
from chronomask.show.subject import of_text
from chronomask.storage import files_sha256

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
TEXT = "Äpfel und Über ☃"


def word_piece(**normalizer: bool) -> Tokenizer:
    words = ["Äpfel", "apfel", "äpfel", "und", "Über", "uber", "über"]
    vocab = {token: number for number, token in enumerate([*BERT, *words])}
    made: Any = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(**normalizer)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(BERT)
    return made


def unigram(scheme: str = "always") -> Tokenizer:
    entries = [*ROBERTA, "▁Äpfel", "Äpfel", "▁und", "▁Über", "▁"]
    made: Any = Tokenizer(models.Unigram([(token, -1.0) for token in entries], 1))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.add_special_tokens(ROBERTA)
    return made


def byte_level(*, prefix: bool) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*ROBERTA, *letters, "Ġu", "Ġun"])}
    made: Any = Tokenizer(models.BPE(vocab, [("Ġ", "u"), ("Ġu", "n")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    made.add_special_tokens(ROBERTA)
    return made


def save(made: Tokenizer, folder: Path, name: str, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": name} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def bert(vocab_size: int) -> BertForMaskedLM:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
        )
    )


def ids(opened: PreTrainedTokenizerBase) -> list[int]:
    return opened(TEXT, add_special_tokens=False)["input_ids"]


def ids_of_file(made: Tokenizer) -> list[int]:
    return made.encode(TEXT, add_special_tokens=False).ids


CASES = {
    "bert": (word_piece(lowercase=False), "BertTokenizerFast"),
    "bert keeps accents": (word_piece(lowercase=True, strip_accents=False), "BertTokenizer"),
    "electra": (word_piece(lowercase=False), "ElectraTokenizerFast"),
    "roberta": (byte_level(prefix=True), "RobertaTokenizerFast"),
    "xlm-roberta": (unigram(), "XLMRobertaTokenizerFast"),
    "xlm-roberta adds no space": (unigram("never"), "XLMRobertaTokenizer"),
}


@pytest.mark.parametrize(("made", "name"), CASES.values(), ids=CASES)
def test_the_files_tokens_are_those_of_every_copy(
    made: Tokenizer, name: str, tmp_path: Path
) -> None:
    folder = save(made, tmp_path / "given", name)
    expected = ids_of_file(made)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    assert ids(theirs) != expected  # else the case shows nothing
    opened = open_tokenizer(folder)
    assert ids(opened) == expected
    assert opened.special_tokens_map == theirs.special_tokens_map
    assert opened.model_input_names == theirs.model_input_names
    framed = opened(TEXT)["input_ids"]
    assert (framed[0], framed[-1]) == (opened.cls_token_id, opened.sep_token_id)
    TokenizerFolder(path=str(folder)).save([], 32, tmp_path / "data")
    export(bert(len(opened)), open_tokenizer(tmp_path / "data"), tmp_path / "transformers", "")
    for copy in (tmp_path / "data", tmp_path / "transformers"):
        for again in (AutoTokenizer.from_pretrained(copy), open_tokenizer(copy)):
            assert ids(again) == expected
            assert again(TEXT)["input_ids"] == framed
            assert again.model_input_names == opened.model_input_names


def test_a_space_that_the_file_adds_is_in_no_offset(tmp_path: Path) -> None:
    opened = open_tokenizer(save(byte_level(prefix=True), tmp_path, "RobertaTokenizerFast"))
    found: Any = opened("un", return_offsets_mapping=True)
    assert found.tokens() == ["<s>", "Ġun", "</s>"]
    assert found["offset_mapping"][1] == (0, 2)


@pytest.mark.parametrize(
    ("made", "name", "settings"),
    [
        (word_piece(lowercase=False), "BertTokenizerFast", {"do_lower_case": True}),
        (word_piece(lowercase=True), "BertTokenizerFast", {"strip_accents": False}),
        (byte_level(prefix=True), "RobertaTokenizerFast", {"add_prefix_space": False}),
        (byte_level(prefix=False), "RobertaTokenizerFast", {"add_prefix_space": True}),
    ],
    ids=["lower case", "accents", "no prefix", "prefix"],
)
def test_a_setting_stands_above_the_file_and_is_told(
    made: Tokenizer,
    name: str,
    settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = save(made, tmp_path / "given", name, **settings)
    theirs = ids(AutoTokenizer.from_pretrained(folder))
    assert theirs != ids_of_file(made)
    opened = open_tokenizer(folder)
    assert ids(opened) == theirs
    (setting,) = settings
    assert [setting in line for line in caplog.messages] == [True]
    shown = of_text(TEXT, folder, None, needs_classes=False)
    assert shown.rows.input_ids[0].tolist() == ids(opened)
    # As the line says, the file's own is had by taking it out.
    save(made, folder, name)
    assert ids(open_tokenizer(folder)) == ids_of_file(made)


def test_a_setting_of_one_part_leaves_the_others_to_the_file(tmp_path: Path) -> None:
    made: Any = word_piece(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = save(made, tmp_path, "BertTokenizerFast", do_lower_case=True)
    found = open_tokenizer(folder)("Über-und UND", add_special_tokens=False).tokens()
    assert found == ["[UNK]", "und"]


def test_a_setting_that_a_file_of_another_kind_does_not_have_is_not_asked(tmp_path: Path) -> None:
    made: Any = word_piece()
    made.normalizer = normalizers.NFC()
    folder = save(made, tmp_path, "BertTokenizerFast", do_lower_case=True)  # as a class writes it
    assert ids(open_tokenizer(folder)) == ids_of_file(made)


@pytest.mark.parametrize(
    ("made", "name", "settings"),
    [
        (word_piece(lowercase=True), "BertTokenizerFast", {}),
        (
            word_piece(lowercase=False, strip_accents=False),
            "BertTokenizer",
            {"do_lower_case": False},
        ),
        (byte_level(prefix=False), "RobertaTokenizerFast", {}),
    ],
    ids=["uncased", "cased", "byte level"],
)
def test_a_class_that_has_the_files_tokens_stays(
    made: Tokenizer,
    name: str,
    settings: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = open_tokenizer(save(made, tmp_path, name, **settings))
    assert type(opened).__name__ == name.removesuffix("Fast")
    assert not caplog.messages


def test_added_tokens_are_the_files(tmp_path: Path) -> None:
    made = word_piece(lowercase=True)
    made.add_tokens([AddedToken("UND", single_word=True, normalized=False)])
    settings = {"added_tokens_decoder": {"0": {"content": "[PAD]", "special": True}}}
    opened = open_tokenizer(save(made, tmp_path, "BertTokenizerFast", **settings))
    assert opened("und UND", add_special_tokens=False).tokens() == ["und", "UND"]


def test_it_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(word_piece(lowercase=False), tmp_path, "BertTokenizerFast")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            open_tokenizer(folder)
    (line,) = caplog.messages
    assert line.startswith(f"{folder}: tokenizer.json is used as it is")
    assert line.endswith("BertTokenizer would use another normalizer")


def test_data_of_an_earlier_version_fits_its_checkpoint(tmp_path: Path) -> None:
    folder = save(word_piece(lowercase=False), tmp_path / "model", "BertTokenizerFast")
    earlier: Any = AutoTokenizer.from_pretrained(folder)
    earlier.save_pretrained(tmp_path / "tokenizer")
    bert(len(earlier)).save_pretrained(folder)
    opened = open_tokenizer(tmp_path / "tokenizer")
    assert ids(opened) == ids(earlier)
    build_model(FromCheckpoint(path=str(folder)), opened, row_length=8, seed=0, attention="row")


def test_results_that_were_made_with_the_class_s_tokens_are_those_of_another_setup(
    tmp_path: Path,
) -> None:
    """Its files are the same, and what is made of them is not."""
    ours = save(word_piece(lowercase=False), tmp_path / "ours", "BertTokenizer")
    theirs = save(word_piece(lowercase=True), tmp_path / "theirs", "BertTokenizer")
    for folder, is_the_class in ((ours, False), (theirs, True)):
        bert(12).save_pretrained(folder)
        files = [
            folder / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
        ]
        found = find_subject(str(folder)).setup_sha256
        assert (found == files_sha256(files)) == is_the_class
