"""Which tokens make a word, for tokenizers of every kind: the pieces that ``within_word_l2r`` hides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from chronomask.errors import UsageError
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Score,
    Sentences,
    _Copies,
    encode_sentences,
)
from chronomask.evaluate.subject import find_subject
from chronomask.evaluate.tasks import make_tasks
from chronomask.evaluate.tasks.blimp import BlimpTask
from tests.support.tiny_models import FAR_FROM_UNIFORM, SIZES
from tests.support.tiny_tokenizer import wordpiece

SPECIALS = {
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
LETTERS = "abcdefghijklmnopqrstuvwxyzNT.,!'0123456789"
TEXTS = ["two engineers measured the bridge", "nobody waved, at 19 o'clock!", "the  end"]
WORDS = [
    ["two", "engineers", "measured", "the", "bridge"],
    ["nobody", "waved", ",", "at", "19", "o", "'", "clock", "!"],
    ["the", "end"],
]


def bpe(space: str, merges: Sequence[tuple[str, str]], more: str = "") -> PreTrainedTokenizerFast:
    """A BPE of all letters and these merges; ``space`` stands for a space in its vocabulary."""
    joined = [a + b for a, b in merges]
    tokens = dict.fromkeys([*SPECIALS.values(), space, *LETTERS, *more, *joined])
    vocabulary = {token: k for k, token in enumerate(tokens)}
    raw = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>"))
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, **SPECIALS)


def merges(space: str) -> list[tuple[str, str]]:
    """Some words whole, some in pieces."""
    return [("t", "h"), ("th", "e"), (space, "the"), ("t", "w"), ("tw", "o"), ("e", "d")]


def gemma() -> PreTrainedTokenizerFast:
    """Spaces become a mark before anything is split, so that nothing is split."""
    tokenizer = bpe("▁", merges("▁"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    """As Gemma's, with a mark before the first word as well."""
    tokenizer = bpe("▁", merges("▁"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return tokenizer


def whole_bytes() -> PreTrainedTokenizerFast:
    """Bytes that no pattern splits before."""
    tokenizer = bpe("Ġ", merges("Ġ"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    return tokenizer


def unmarked() -> PreTrainedTokenizerFast:
    """Spaces are tokens like any other."""
    return bpe(" ", merges(" "))


def words_of(tokenizer: Any, text: str, score: Score = "within_word_l2r") -> list[str]:
    """The text of each word, without the marks of spaces."""
    sentences, _ = encode_sentences(tokenizer, [text], 64, score)
    found: dict[int, str] = {}
    for number, word in zip(sentences.ids.tolist(), sentences.word.tolist(), strict=True):
        if word >= 0:
            token = tokenizer.convert_ids_to_tokens(number)
            found[word] = found.get(word, "") + token.strip("▁Ġ").removeprefix("##")
    return [word for word in found.values() if word]


@pytest.mark.parametrize("make", [gemma, llama, whole_bytes])
@pytest.mark.parametrize(("text", "words"), list(zip(TEXTS, WORDS, strict=True)))
def test_a_sentence_is_not_one_word(make: Any, text: str, words: list[str]) -> None:
    assert len(set(make()(TEXTS[0]).word_ids())) == 2  # what the tokenizer says: one, and none
    assert words_of(make(), text) == words


def test_words_of_a_tokenizer_that_knows_them_are_its_own() -> None:
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), "two", "##ed", "the"]
    metaspace, gpt = bpe("▁", merges("▁")), bpe("Ġ", merges("Ġ"))
    metaspace.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    gpt.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for tokenizer in (wordpiece(pieces), metaspace, gpt):
        for text in [*TEXTS, "a\u00a0b c"]:
            own = [-1 if word is None else word for word in tokenizer(text).word_ids()]
            sentences, _ = encode_sentences(tokenizer, [text], 64, "within_word_l2r")
            assert sentences.word.tolist() == own


def test_words_are_numbered_apart_from_text_to_text() -> None:
    """One text that shows what the tokenizer is changes how all are read: a method for all of them."""
    sentences, _ = encode_sentences(gemma(), ["bridge!", TEXTS[0]], 64, "within_word_l2r")
    first = sentences.word[: sentences.bounds[1]]
    assert np.unique(first).size == 3  # none, the word, the mark
    assert not set(first[first >= 0]) & set(sentences.word[sentences.bounds[1] :])


def test_a_word_ends_where_its_sentence_does() -> None:
    """In sentences of one word of the same number, without special tokens around it."""
    sentences = Sentences(np.array([5, 6]), np.array([0, 0]), np.array([0, 1, 2]))
    assert _Copies.of(sentences, "within_word_l2r").end.tolist() == [1, 2]


def test_without_marks_the_score_is_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match=r"marks none.*--set blimp\.score=original"):
        words_of(unmarked(), TEXTS[0])
    sentences, _ = encode_sentences(unmarked(), [TEXTS[0]], 64, "original")
    assert (sentences.word >= 0).sum() == sentences.num_scored.sum() > 5


@pytest.mark.parametrize("text", ["我们昨天看见了他的书", "แมวตัวนี้กินปลา", "わたしはねこです"])
def test_scripts_without_spaces_are_refused_where_nothing_parts_them(text: str) -> None:
    tokenizer = bpe("▁", [], more="".join(sorted(set(text))))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(UsageError, match=r"without spaces.*score=original"):
        words_of(tokenizer, text)
    assert words_of(tokenizer, text, "original")
    # Where ideographs are parted, as BERT's tokenizers do, there is nothing to refuse.
    if text[0] == "我":
        assert words_of(wordpiece(text), text) == list(text)


def test_one_long_word_is_no_reason_to_refuse() -> None:
    assert words_of(llama(), "internationalisation") == ["internationalisation"]


def test_blimp_masks_the_pieces_of_a_word_alone(tmp_path: Path) -> None:
    """Against a loop over masked copies, with the words written down here."""
    tokenizer = llama()
    tokenizer.save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), **SIZES, **FAR_FROM_UNIFORM, pad_token_id=0)
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    pair = {"sentence_good": TEXTS[0], "sentence_bad": "bridge the measured engineers two"}
    pair |= {"field": "syntax", "linguistics_term": "order", "UID": "order"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "order.jsonl").write_text(json.dumps(pair))
    model = find_subject(str(tmp_path / "model"))
    task = BlimpTask(PseudoLikelihood())
    task.check(model, tmp_path / "data")
    found = task.run(model, tmp_path / "data", 0, False)
    opened = model.masked_lm()
    expected = [score(opened, tokenizer, pair[key]) for key in ("sentence_good", "sentence_bad")]
    assert found.examples["margin"][0] == pytest.approx(expected[0] - expected[1], abs=2e-4)


def score(model: Any, tokenizer: Any, text: str) -> float:
    """Σ log p of each token with it and the rest of its word masked; a word begins with a mark."""
    ids = tokenizer(text)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    total = 0.0
    for k in range(1, len(ids) - 1):
        end = k + 1
        while not tokens[end].startswith("▁") and tokens[end] != "</s>":
            end += 1
        masked = [tokenizer.mask_token_id if k <= at < end else own for at, own in enumerate(ids)]
        with torch.no_grad():
            logits = model(torch.tensor([masked])).logits[0, k]
        total += torch.log_softmax(logits.double(), -1)[ids[k]].item()
    return total


def test_the_way_out_works_from_the_command_line(tmp_path: Path) -> None:
    unmarked().save_pretrained(tmp_path / "model")
    config = BertConfig(vocab_size=len(unmarked()), **SIZES, **FAR_FROM_UNIFORM, pad_token_id=0)
    BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXTS[0])
    tasks = make_tasks(["pseudo_perplexity"], ["pseudo_perplexity.score=within_word_l2r"])
    with pytest.raises(UsageError, match=r"--set pseudo_perplexity\.score=original") as refused:
        evaluate(tmp_path / "model", tasks, tmp_path, 1, tmp_path / "out", progress=False)
    way_out = str(refused.value).partition("--set ")[2].partition(",")[0]
    tasks = make_tasks(["pseudo_perplexity"], [way_out])
    (result,) = evaluate(tmp_path / "model", tasks, tmp_path, 1, tmp_path / "out", progress=False)
    assert result.recipe["score"] == "original"


def test_a_special_token_that_a_text_spells_is_not_predicted() -> None:
    """As text in HTML spells some: pieces of it are predicted, and the token itself never is."""
    pieces = [
        ("<unk>", 0.0),
        *((f"▁{word}", -1.0) for word in ("see", "end")),
        ("▁", -2.0),
        ("</s>", -3.0),
    ]
    raw = Tokenizer(models.Unigram([*pieces, *((letter, -4.0) for letter in "<>/s")], unk_id=0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    looked_up = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>")
    cut = bpe("_", [], more="<>/")
    cut.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for tokenizer, least in ((looked_up, 2), (cut, 9)):
        sentences, _ = encode_sentences(tokenizer, ["see </s> end"], 64, "original")
        assert (sentences.ids[sentences.word >= 0] != tokenizer.eos_token_id).all()
        assert sentences.num_scored >= least
