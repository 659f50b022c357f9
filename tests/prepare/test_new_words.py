"""Words of a text as new tokens: which are chosen, and what opens afterwards, for every kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
    pipeline,
)

from chronomask.adapt import extend_vocabulary
from chronomask.errors import DataError, UsageError
from chronomask.model.extend import extend_model
from chronomask.model.open import open_tokenizer
from chronomask.prepare.config import ExtendedFolder
from chronomask.prepare.encoding import load_backend
from chronomask.prepare.new_words import NEW_WORDS, choose_words
from tests.support.corpus import made_up_text
from tests.support.odd_tokenizers import MADE
from tests.support.tiny_models import FAR_FROM_UNIFORM, SIZES, save_tiny

# Letters that every tokenizer of MADE knows as characters, the unigram ones too.
WORDS = ["fadecaben", "ceboga", "gnofé", "fadecabendo"]
TEXT = "fadecaben bade (fadecaben), ceboga; gnofé fadecabens fadecabendo. " * 12
PLAIN = "a bad dog ended; no egg faded."


def save(made: Tokenizer, folder: Path) -> Path:
    """A tokenizer folder; the special tokens are no entries of the model, and have ids after it."""
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token=None,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token=AddedToken("[MASK]", lstrip=True),
    ).save_pretrained(folder)
    return folder


def roberta(folder: Path) -> Path:
    """One whose class builds its tokenizer anew from the entries."""
    model = json.loads(MADE["bytes"]().to_str())["model"]
    names = ["<s>", "<pad>", "</s>", "<unk>", *model["vocab"], "<mask>"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    vocabulary: Any = {name: k for k, name in enumerate(names)}
    RobertaTokenizerFast(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


KINDS: dict[str, Callable[[Path], Path]] = {
    name: lambda folder, make=make: save(make(), folder)
    for name, make in MADE.items()
    if name != "bpe with bytes"
} | {"roberta": roberta}


def extended(folder: Path, texts: list[str], out: Path, **changes: Any) -> Any:
    choice = ExtendedFolder(path=str(folder), **changes)
    choice.check()
    choice.save(texts, 64, out)
    return AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("kind", KINDS)
def test_words_become_one_token_each(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "old")
    old: Any = AutoTokenizer.from_pretrained(folder)
    new = extended(folder, [TEXT, PLAIN], tmp_path / "new", new_words=50, min_count=10)

    told = json.loads((tmp_path / "new" / NEW_WORDS).read_text())
    added = set(new.get_vocab()) - set(old.get_vocab())
    assert added == set(told["words"])
    assert old.get_vocab().items() <= new.get_vocab().items()
    first = max(old.get_vocab().values()) + 1
    assert sorted(new.get_vocab()[token] for token in added) == [
        first + k for k in range(len(added))
    ]
    assert told["tokens_per_word"]["after"] < told["tokens_per_word"]["before"]

    # In other surroundings too; what offsets point at is the word as it is written.
    text = "dead fadecaben, ceboga gnofé fadecabendo"
    encoded = new(text, return_offsets_mapping=True, add_special_tokens=False)
    spelled = [text[start:end].strip() for start, end in encoded["offset_mapping"]]
    assert [spelled.count(word) for word in WORDS] == [1, 1, 1, 1]
    assert new(PLAIN)["input_ids"] == old(PLAIN)["input_ids"]
    ids = new(text)["input_ids"]
    assert new.decode(ids).replace(" ,", ",") == old.decode(old(text)["input_ids"]).replace(
        " ,", ","
    )
    # A special token that a text spells is text for whoever prepares, as it was before.
    spelling = f"a {old.mask_token} b"
    before, after = (load_backend(tmp_path / name).encode(spelling) for name in ("old", "new"))
    assert after.ids == before.ids
    assert old.mask_token_id not in after.ids


def test_a_model_and_its_tokenizer_in_one_call(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = tmp_path / "old"
    save_tiny(folder, tiny_tokenizer)
    written = "so codipestration, " * 5
    done = extend_vocabulary(folder, [written], tmp_path / "new", new_words=1, min_count=5)
    assert (done.num, done.after < done.before) == (1, True)
    new = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert "codipestration" in new.tokenize("Codipestration.")
    AutoModelForMaskedLM.from_pretrained(tmp_path / "new")
    with pytest.raises(UsageError, match="exists already"):
        extend_vocabulary(folder, [written], tmp_path / "new")
    with pytest.raises(UsageError, match="new_words is 0"):
        extend_vocabulary(folder, [written], tmp_path / "more", new_words=0)
    with pytest.raises(DataError, match=r"occurs 10 times.*lower number .* min_count= in Python"):
        extend_vocabulary(folder, ["books.txt"], tmp_path / "more")  # a text, as any string
    with pytest.raises(UsageError, match=r"texts is 'books\.txt': give a list of texts"):
        extend_vocabulary(folder, "books.txt", tmp_path / "more")


def test_the_dearest_words_come_first(tmp_path: Path) -> None:
    backend = MADE["wordpiece cased"]()
    counts = {"fadecaben": 4, "ceboga": 9, "gnofé": 3, "☃☃": 99, "a": 99}
    chosen = choose_words(backend, counts, 9, 3)
    gains = [new.count * (len(new.pieces) - 1) for new in chosen]
    assert gains == sorted(gains, reverse=True)
    assert {new.token for new in chosen} == {"fadecaben", "ceboga", "gnofé"}  # known, and in pieces
    assert choose_words(backend, counts, 2, 4) == chosen[:2]
    assert choose_words(backend, dict(reversed(counts.items())), 9, 3) == chosen


def test_a_word_of_characters_that_are_left_out_is_no_new_word() -> None:
    """BPE without an unknown token gives nothing at all for a character that it does not have."""
    backend = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    chosen = choose_words(backend, {"xyz": 9, "ca": 9, "aba": 9}, 9, 3)
    assert [(new.token, new.pieces) for new in chosen] == [("aba", ("ab", "a"))]


def test_what_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    folder = KINDS["wordpiece cased"](tmp_path / "old")
    with pytest.raises(DataError, match=r"no word of the text .* occurs 10 times.*--min-count"):
        extended(folder, ["a fadecaben"], tmp_path / "new")
    llama = save(MADE["bpe with bytes"](), tmp_path / "llama")
    with pytest.raises(UsageError, match="cuts no words before it looks for pieces"):
        ExtendedFolder(path=str(llama)).check()
    with pytest.raises(UsageError, match="does not exist"):
        ExtendedFolder(path=str(tmp_path / "gone")).check()
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"] |= {"type": "WordLevel"}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="its model is WordLevel"):
        ExtendedFolder(path=str(folder)).check()


@pytest.mark.parametrize("kind", ["wordpiece cased", "roberta", "unigram with bytes"])
def test_a_model_is_extended_with_its_tokenizer(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path / "old")
    old: Any = open_tokenizer(folder)
    config = AutoConfig.for_model(
        "bert", vocab_size=max(old.get_vocab().values()) + 4, **SIZES, **FAR_FROM_UNIFORM
    )
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    new = extended(folder, [TEXT], tmp_path / "new", new_words=3)
    extend_model(folder, tmp_path / "new", tmp_path / "model", "# card\n")

    model, before = (AutoModelForMaskedLM.from_pretrained(tmp_path / f) for f in ("model", "old"))
    assert model.config.vocab_size >= max(new.get_vocab().values()) + 1
    words = json.loads((tmp_path / "new" / NEW_WORDS).read_text())["words"]
    rows = model.get_input_embeddings().weight
    for token, own in words.items():
        mean = rows[old.convert_tokens_to_ids(own["pieces"])].mean(0)
        torch.testing.assert_close(rows[new.convert_tokens_to_ids(token)], mean, rtol=0, atol=0)
    ids = torch.tensor([old(made_up_text(1)[0], truncation=True, max_length=60)["input_ids"]])
    with torch.no_grad():
        losses = [float(each(input_ids=ids, labels=ids).loss) for each in (before, model)]
    assert abs(losses[1] - losses[0]) < 0.1  # nats
    fill: Any = pipeline("fill-mask", model=str(tmp_path / "model"), top_k=len(new.get_vocab()))
    found = {answer["token_str"].strip(): answer for answer in fill(f"a bad {new.mask_token} dog")}
    assert "fadecaben" in found
    assert found["fadecaben"]["sequence"].count("fadecaben") == 1
