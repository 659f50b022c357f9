"""A tokenizer's ids may have holes: every size is one more than the largest id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.masking.masker import Masker
from chronomask.masking.rows import RowCollator
from chronomask.masking.word_marks import word_marks
from chronomask.model.build import build_model
from chronomask.model.config import FromConfig
from chronomask.prepare.config import TokenizerFolder
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.tokenizer import open_saved
from chronomask.vocabulary import Vocabulary, vocabulary_size

LARGEST = 70_000


def with_holes(tokenizer: Path, folder: Path, largest: int = LARGEST) -> Path:
    """A copy whose ordinary ids are moved up, so that the last one is ``largest``."""
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    values = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = values["model"]["vocab"]
    special = {token["content"] for token in values["added_tokens"]}
    up = largest - max(vocabulary.values())
    moved = {t: number if t in special else number + up for t, number in vocabulary.items()}
    values["model"]["vocab"] = moved
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def holed(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_holes(tiny_tokenizer, tmp_path_factory.mktemp("holes") / "tokenizer")


def test_sizes_are_one_more_than_the_largest_id(holed: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(holed))
    assert len(tokenizer) < 1000
    assert vocabulary_size(tokenizer) == LARGEST + 1
    assert vocabulary_size(Tokenizer.from_file(str(holed / "tokenizer.json"))) == LARGEST + 1
    assert open_saved(holed).vocab_size == LARGEST + 1
    assert RowCollator(tokenizer).special.size == LARGEST + 1
    assert word_marks(tokenizer).size == LARGEST + 1


def test_random_replacements_are_tokens_that_exist(holed: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(holed))
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    existing = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    assert set(vocabulary.ordinary_ids.tolist()) == existing
    config = {
        "ratio": {"kind": "constant", "base": 0.9},
        "mask_replace_prob": 0.0,
        "random_replace_prob": 1.0,
    }
    masker = Masker(config, vocabulary, ("none",), seed=0)
    rows = [{"input_ids": [LARGEST - k for k in range(60)], "row_id": 0}]
    shown = masker(RowCollator(tokenizer)(rows), progress=0.0).input_ids
    assert set(np.asarray(shown).ravel().tolist()) <= existing
    assert len(set(np.asarray(shown).ravel().tolist())) > 30


def test_rows_and_model_of_such_a_tokenizer(holed: Path, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("\n\n".join(f"Baco di fu {k}." for k in range(40)))
    data = prepare(
        [source], tmp_path / "out", tokenizer={"kind": "folder", "path": str(holed)},
        tagger="none", workers=1, row_length=16, held_out=0.0, progress=False,
    )  # fmt: skip
    assert data.vocab_size == LARGEST + 1
    ids = PreparedData.open(data.path).split("train").read_raw(np.arange(2))[0]
    assert ids.dtype == np.uint32
    assert 1 << 16 < ids.max() <= LARGEST
    tokenizer = AutoTokenizer.from_pretrained(str(data.tokenizer_path))
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    model = build_model(
        FromConfig(model_type="bert", overrides=sizes), tokenizer, row_length=16, seed=0, attention="row",
    )  # fmt: skip
    assert model.config.vocab_size == LARGEST + 1


def test_ids_beyond_any_model_are_refused_before_work(tiny_tokenizer: Path, tmp_path: Path) -> None:
    far = with_holes(tiny_tokenizer, tmp_path / "far", largest=1 << 31)
    with pytest.raises(UsageError, match=r"far gives the token .* the id 2,147,483,648"):
        TokenizerFolder(path=str(far)).save([], 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("role", ["sep", "unk", "mask"])
def test_padding_of_another_role_is_refused_wherever_rows_are_made_or_masked(
    tiny_tokenizer: Path, role: str
) -> None:
    """The ends of texts would be padding; what the refusal advises is taken."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_tokenizer))
    tokenizer.pad_token = getattr(tokenizer, f"{role}_token")
    for use in (RowCollator, Masker.for_tokenizer):
        with pytest.raises(UsageError, match=f"as its pad token and as its {role} token; give it"):
            use(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert RowCollator(tokenizer).pad_token_id == tokenizer.pad_token_id
    Masker.for_tokenizer(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(UsageError, match="no padding token; give it one with") as refused:
        RowCollator(tokenizer)
    assert "add_special_tokens({'pad_token': '<pad>'})" in str(refused.value)


@pytest.mark.parametrize("declared", [None, "[MASK]"])
def test_unknown_text_is_never_masked_whatever_the_tokenizers_files_say(
    declared: str | None, tmp_path: Path
) -> None:
    """``declared``: what they name as the unknown token, while the vocabulary has [UNK] for such text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s"]
    BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    values = json.loads(file.read_text())
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": declared}
    file.write_text(json.dumps(values))
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["added_tokens"] = [t for t in whole["added_tokens"] if t["content"] != "[UNK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("the zebra cats").input_ids
    assert 1 in ids
    assert 1 not in tokenizer.all_special_ids
    assert 1 in open_saved(tmp_path).special_ids
    assert 1 not in Vocabulary.from_tokenizer(tokenizer).ordinary_ids
    (words_of,) = RowCollator(tokenizer).pad([{"input_ids": ids}])["word_id"].tolist()
    assert [word for word, number in zip(words_of, ids, strict=True) if number == 1] == [-1]
