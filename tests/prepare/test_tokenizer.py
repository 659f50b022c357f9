"""Tokenizers are trained the same every time, and given ones are taken or refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from chronomask.data.manifest import file_sha256
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import ByteLevelBPE, TokenizerFolder, Unigram, WordPiece
from chronomask.prepare.tokenizer import (
    SPECIALS,
    build_tokenizer,
    load_backend,
    open_saved,
    train_wordpiece,
)
from chronomask.prepare.unigram import train_unigram
from tests.support.corpus import made_up_text
from tests.support.processes import python_path

SAMPLE = made_up_text(60)


def test_wordpiece_is_as_berts(tmp_path: Path) -> None:
    saved = build_tokenizer(WordPiece(vocab_size=300), SAMPLE, 64, tmp_path / "tokenizer")
    assert (saved.pad_id, saved.cls_id, saved.sep_id, saved.mask_id) == (0, 2, 3, 4)
    assert saved.special_ids == (0, 1, 2, 3, 4)
    assert saved.vocab_size <= 300
    assert saved.sha256 == file_sha256(tmp_path / "tokenizer" / "tokenizer.json")
    tokenizer = AutoTokenizer.from_pretrained(str(saved.folder))
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == 64
    ids = tokenizer("Bá CÓ").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ba co"
    assert (ids[0], ids[-1]) == (2, 3)


def test_cased_wordpiece_keeps_capitals_and_accents() -> None:
    backend = train_wordpiece(WordPiece(vocab_size=300, lowercase=False), [*SAMPLE, "Ábc ábc"])
    assert (
        "".join(backend.encode("Ábc", add_special_tokens=False).tokens).replace("##", "") == "Ábc"
    )


def test_bytes_know_every_text(tmp_path: Path) -> None:
    saved = build_tokenizer(ByteLevelBPE(vocab_size=300), SAMPLE, 64, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(saved.folder))
    text = "Tout à fait: 漢字 👍\n\ttabs"
    ids = tokenizer(text).input_ids
    assert (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    )
    assert tokenizer.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (saved.cls_id, saved.sep_id)


@pytest.mark.parametrize("kind", ["WordPiece", "ByteLevelBPE", "Unigram"])
def test_training_is_the_same_in_every_process(kind: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chronomask.prepare import config, tokenizer\n"
        "from tests.support.corpus import made_up_text\n"
        f"choice = config.{kind}(vocab_size=400)\n"
        "saved = tokenizer.build_tokenizer(choice, made_up_text(60), 64, Path(sys.argv[1]))\n"
        "print(saved.sha256)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(seed))],
            env={"PYTHONPATH": python_path(), "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in range(2)
    ]  # fmt: skip
    choice = {"WordPiece": WordPiece, "ByteLevelBPE": ByteLevelBPE, "Unigram": Unigram}[kind]
    here = build_tokenizer(choice(vocab_size=400), SAMPLE, 64, tmp_path / "here")
    assert told[0] == told[1] == here.sha256 + "\n"


def test_unigram_keeps_the_likeliest_pieces(tmp_path: Path) -> None:
    saved = build_tokenizer(Unigram(vocab_size=300), SAMPLE, 64, tmp_path / "tokenizer")
    assert (saved.pad_id, saved.cls_id, saved.sep_id, saved.mask_id) == (0, 2, 3, 4)
    assert saved.special_ids == (0, 1, 2, 3, 4)
    assert 100 < saved.vocab_size <= 300
    tokenizer = AutoTokenizer.from_pretrained(str(saved.folder))
    text = SAMPLE[0].replace("N", "n")  # too rare a letter for the share of characters that is kept
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (2, 3)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids
    assert len(ids) < len(text) / 2
    assert tokenizer.unk_token_id in tokenizer("漢").input_ids


def test_unigram_pieces_are_sentencepieces_own() -> None:
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in SAMPLE for line in text.splitlines()]),
        model_writer=written, model_type="unigram", vocab_size=296, hard_vocab_limit=False,
        normalization_rule_name="identity", num_threads=1, pad_id=-1, bos_id=-1, eos_id=-1,
        unk_id=0, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ours = train_unigram(Unigram(vocab_size=300), SAMPLE, list(SPECIALS.values()))
    known = [text for text in SAMPLE if "[UNK]" not in ours.encode(text).tokens]
    assert len(known) > 20
    for text in known:
        assert ours.encode(text).tokens == theirs.encode(text, out_type=str)


def test_unigram_of_too_little_text() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_unigram(Unigram(), [" \n "], ["[PAD]", "[UNK]"])
    alphabet = "".join(chr(0x4E00 + k) for k in range(500))
    with pytest.raises(DataError, match=r"no Unigram tokenizer of 120 ids.*vocab_size"):
        train_unigram(Unigram(vocab_size=120), [alphabet], ["[PAD]", "[UNK]"])


def test_a_given_folder_is_used_as_it_is(tiny_tokenizer: Path, tmp_path: Path) -> None:
    given = open_saved(tiny_tokenizer)
    saved = build_tokenizer(TokenizerFolder(path=str(tiny_tokenizer)), [], 64, tmp_path / "copy")
    assert saved.special_ids == given.special_ids
    text = "Baco di fu."
    assert (
        load_backend(saved.folder).encode(text).ids == load_backend(tiny_tokenizer).encode(text).ids
    )


def copied(tokenizer: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_folders_that_are_no_tokenizer(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        build_tokenizer(TokenizerFolder(path=str(folder)), [], 64, tmp_path / "out")

    with pytest.raises(UsageError, match="does not exist"):
        build(tmp_path / "nowhere")
    slow = copied(tiny_tokenizer, tmp_path / "slow")
    (slow / "tokenizer.json").rename(slow / "vocab.txt")
    with pytest.raises(UsageError, match=r"has no tokenizer\.json: only fast"):
        build(slow)
    broken = copied(tiny_tokenizer, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be opened"):
        build(broken)
    unmasked = copied(tiny_tokenizer, tmp_path / "unmasked")
    values = json.loads((unmasked / "tokenizer_config.json").read_text())
    del values["mask_token"]
    (unmasked / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="has no mask token"):
        build(unmasked)


def test_remote_code_of_a_folder_is_not_run(tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = copied(tiny_tokenizer, tmp_path / "remote")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    build_tokenizer(TokenizerFolder(path=str(folder)), [], 64, tmp_path / "out")
    assert not mark.exists()


def test_a_sample_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_wordpiece(WordPiece(), [" \n "])
