"""Tokenizers are trained the same every time, and given ones are taken or refused."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from chronomask.data.manifest import file_sha256
from chronomask.errors import DataError, UsageError
from chronomask.model.open import open_tokenizer
from chronomask.prepare import trained_tokenizer as module
from chronomask.prepare.config import ByteLevelBPE, TokenizerFolder, Unigram, WordPiece
from chronomask.prepare.encoding import load_backend
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.read.sources import are_as_noted
from chronomask.prepare.tokenizer import SavedTokenizer, TokenizerChoice, open_saved
from chronomask.vocabulary import Vocabulary
from tests.support.corpus import made_up_text
from tests.support.processes import python_path
from tests.support.reading import tiny_config

SAMPLE = made_up_text(60)


def saved_as(choice: TokenizerChoice, folder: Path) -> SavedTokenizer:
    choice.save(SAMPLE, 64, folder)
    return open_saved(folder)


@pytest.mark.parametrize(("length", "longest"), [(90, 100), (300, 1000)])
def test_words_of_a_text_without_spaces_are_split(length: int, longest: int) -> None:
    words = re.findall("[a-z]+", " ".join(SAMPLE))
    runs = ["".join(words[k : k + 80])[:length] for k in range(0, len(words) - 80, 40)]
    backend = WordPiece(vocab_size=300).train([*SAMPLE, *runs])
    assert json.loads(backend.to_str())["model"]["max_input_chars_per_word"] == longest
    for run in runs:
        assert "[UNK]" not in backend.encode(run, add_special_tokens=False).tokens


def test_a_few_long_words_leave_a_tokenizer_as_it_is() -> None:
    backend = WordPiece(vocab_size=300).train([*(SAMPLE * 20), "a" * 101])
    assert json.loads(backend.to_str())["model"]["max_input_chars_per_word"] == 100


def test_wordpiece_is_as_berts(tmp_path: Path) -> None:
    saved = saved_as(WordPiece(vocab_size=300), tmp_path / "tokenizer")
    assert (saved.pad_id, saved.cls_id, saved.sep_id) == (0, 2, 3)
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
    backend = WordPiece(vocab_size=300, lowercase=False).train([*SAMPLE, "Ábc ábc"])
    assert (
        "".join(backend.encode("Ábc", add_special_tokens=False).tokens).replace("##", "") == "Ábc"
    )


def test_bytes_know_every_text(tmp_path: Path) -> None:
    saved = saved_as(ByteLevelBPE(vocab_size=300), tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(saved.folder))
    text = "Tout à fait: 漢字 👍\n\ttabs"
    ids = tokenizer(text).input_ids
    assert (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    )
    assert tokenizer.unk_token_id not in ids
    assert (ids[0], ids[-1]) == (saved.cls_id, saved.sep_id)


def test_training_is_the_same_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chronomask.prepare import config, tokenizer\n"
        "from tests.support.corpus import made_up_text\n"
        "for kind in ('WordPiece', 'ByteLevelBPE', 'Unigram'):\n"
        "    folder = Path(sys.argv[1]) / kind\n"
        "    getattr(config, kind)(vocab_size=400).save(made_up_text(60), 64, folder)\n"
        "    print(tokenizer.open_saved(folder).sha256)"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(seed))],
            env={"PYTHONPATH": python_path(), "PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for seed in range(2)
    ]  # fmt: skip
    here = [
        saved_as(choice(vocab_size=400), tmp_path / "here" / choice.__name__).sha256
        for choice in (WordPiece, ByteLevelBPE, Unigram)
    ]
    assert told[0] == told[1] == here


def test_unigram_keeps_the_likeliest_pieces(tmp_path: Path) -> None:
    saved = saved_as(Unigram(vocab_size=300), tmp_path / "tokenizer")
    assert (saved.pad_id, saved.cls_id, saved.sep_id) == (0, 2, 3)
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
    ours = Unigram(vocab_size=300).train(SAMPLE)
    known = [text for text in SAMPLE if "[UNK]" not in ours.encode(text).tokens]
    assert len(known) > 20
    for text in known:
        tokens = ours.encode(text, add_special_tokens=False).tokens
        assert tokens == theirs.encode(text, out_type=str)


def test_unigram_takes_all_white_space_for_spaces() -> None:
    """Tabs and line ends part words as spaces do, and none of them is unknown."""
    backend = Unigram(vocab_size=300).train(SAMPLE)
    words = SAMPLE[0].replace("N", "n").split()[:8]
    with_spaces = backend.encode(" ".join(words), add_special_tokens=False)
    assert "[UNK]" not in with_spaces.tokens
    for between in ("\n", "\t", "\r\n", "\n\n  ", "\u2028"):
        text = between.join(words)
        encoding = backend.encode(text, add_special_tokens=False)
        assert encoding.tokens == with_spaces.tokens
        spelled = [text[begin:end].strip() for begin, end in encoding.offsets]
        assert spelled == [token.removeprefix("▁") for token in encoding.tokens]


def test_unigram_learns_from_lines_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """sentencepiece leaves long ones out; cut at spaces, they train nearly what short lines do."""
    lines = [line for text in SAMPLE for line in text.splitlines() if line.strip()]
    short = Unigram(vocab_size=300).train(lines)
    monkeypatch.setattr(module, "_LONGEST_LINE", 400)
    assert len(" ".join(lines)) > 4000
    long = Unigram(vocab_size=300).train([" ".join(lines)])
    assert len(long.get_vocab().keys() & short.get_vocab().keys()) > 250
    without_spaces = "".join(lines).replace(" ", "")
    assert Unigram(vocab_size=200).train([without_spaces]).get_vocab_size() > 100


def test_unigram_of_too_little_text() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        Unigram().train([" \n "])
    alphabet = "".join(chr(0x4E00 + k) for k in range(500))
    with pytest.raises(DataError, match=r"no Unigram tokenizer of 120 ids") as refused:
        Unigram(vocab_size=120).train([alphabet])
    assert "--character_coverage" not in str(refused.value)  # an option of sentencepiece's own
    least = re.search(r"tokenizer\.vocab_size=(\d+)", str(refused.value))
    assert least is not None
    Unigram(vocab_size=int(least[1])).train([alphabet])
    with pytest.raises(DataError, match="no Unigram tokenizer"):
        Unigram(vocab_size=int(least[1]) - 1).train([alphabet])
    with pytest.raises(DataError, match="no character beside white space and '▁'"):
        Unigram(vocab_size=120).train(["▁▁▁"])


def test_a_given_folder_is_used_as_it_is(tiny_tokenizer: Path, tmp_path: Path) -> None:
    given = open_saved(tiny_tokenizer)
    saved = saved_as(TokenizerFolder(path=str(tiny_tokenizer)), tmp_path / "copy")
    assert saved.special_ids == given.special_ids
    text = "Baco di fu."
    assert (
        load_backend(saved.folder).encode(text).ids == load_backend(tiny_tokenizer).encode(text).ids
    )


def test_other_settings_of_a_given_tokenizer_are_noticed(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    folder = copied(tiny_tokenizer, tmp_path / "given")
    choice = TokenizerFolder(path=str(folder))
    before = choice.state()
    assert choice.state() == before
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text() + " ")
    assert choice.state() != before
    assert are_as_noted(before, before)
    assert not are_as_noted(choice.state(), before)
    # What an older version noted of it says nothing of its settings.
    old = [{key: value for key, value in entry.items() if key != "settings"} for entry in before]
    assert are_as_noted(choice.state(), old)
    assert not are_as_noted(choice.state(), [])


def copied(tokenizer: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("config", [None, '{"tokenizer_class": "BertTokenizer"}'])
def test_the_advice_for_a_vocabulary_alone_makes_a_tokenizer(
    config: str | None, tmp_path: Path
) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UsageError) as refused:
        TokenizerFolder(path=str(tmp_path)).folder()
    advised = re.search(r"(\w+)\.from_pretrained\('(.+?)'\)\.save_pretrained", str(refused.value))
    assert advised is not None
    opener, folder = advised.groups()
    getattr(transformers, opener).from_pretrained(folder).save_pretrained(folder)
    assert TokenizerFolder(path=str(tmp_path)).folder() == tmp_path
    assert open_tokenizer(tmp_path)("river")["input_ids"] == [2, 5, 3]


@pytest.mark.parametrize(
    ("entry", "setting"),
    [("Şehir", "do_lower_case=False"), ("şehir", "strip_accents=False"), ("river", "")],
)
@pytest.mark.parametrize("config", [None, '{"tokenizer_class": "BertTokenizer"}'])
def test_the_advice_for_a_vocabulary_keeps_its_entries(
    config: str | None, entry: str, setting: str, tmp_path: Path
) -> None:
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", entry]
    (tmp_path / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(UsageError) as refused:
        TokenizerFolder(path=str(tmp_path)).folder()
    advised = re.search(
        r"\w+Tokenizer\.from_pretrained.*save_pretrained\('.+?'\)", str(refused.value)
    )
    assert advised is not None
    assert ("=False" in advised[0]) == bool(setting)
    assert setting in advised[0]
    names = {"BertTokenizer": transformers.BertTokenizer, "AutoTokenizer": AutoTokenizer}
    eval(advised[0], names)
    assert open_tokenizer(tmp_path)(entry)["input_ids"] == [2, 5, 3]


def test_folders_that_are_no_tokenizer(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        TokenizerFolder(path=str(folder)).save([], 64, tmp_path / "out")

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
    with pytest.raises(UsageError, match="has no mask token") as refused:
        build(unmasked)
    tokenizer = AutoTokenizer.from_pretrained(str(unmasked))
    way_out = str(refused.value).partition(" token, ")[2]
    with pytest.raises(UsageError, match="has no mask token") as again:  # by any other command too
        Vocabulary.from_tokenizer(tokenizer)
    assert str(again.value).partition(" token, ")[2] == way_out
    change = re.search(r"add_special_tokens\((.*?)\)", way_out)
    assert change is not None
    tokenizer.add_special_tokens(ast.literal_eval(change[1]))
    tokenizer.save_pretrained(str(unmasked))
    build(unmasked)


@pytest.mark.parametrize(("role", "other"), [("pad", "sep"), ("pad", "unk"), ("mask", "pad")])
def test_padding_and_mask_are_tokens_of_their_own(
    tiny_tokenizer: Path, tmp_path: Path, role: str, other: str
) -> None:
    """As where someone has written ``tokenizer.pad_token = tokenizer.eos_token``."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_tokenizer))
    setattr(tokenizer, f"{role}_token", getattr(tokenizer, f"{other}_token"))
    tokenizer.save_pretrained(str(tmp_path / "shared"))
    choice = TokenizerFolder(path=str(tmp_path / "shared"))
    with pytest.raises(UsageError, match=f"as its {role} token and as its {other}") as refused:
        choice.check()
    change = re.search(r"add_special_tokens\((.*?)\)", str(refused.value))
    assert change is not None
    tokenizer.add_special_tokens(ast.literal_eval(change[1]))
    tokenizer.save_pretrained(str(tmp_path / "shared"))
    choice.check()


def test_a_tokenizer_that_does_not_do_is_refused_before_text_is_read(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_tokenizer))
    tokenizer.mask_token = None
    tokenizer.save_pretrained(str(tmp_path / "maskless"))
    (tmp_path / "a.txt").write_text("some text")
    config = tiny_config(tmp_path / "a.txt").replace(
        [f"tokenizer={{kind: folder, path: {tmp_path / 'maskless'}}}"]
    )
    with pytest.raises(UsageError, match="has no mask token"):
        prepare(config, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_remote_code_of_a_folder_is_not_run(tiny_tokenizer: Path, tmp_path: Path) -> None:
    folder = copied(tiny_tokenizer, tmp_path / "remote")
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    TokenizerFolder(path=str(folder)).save([], 64, tmp_path / "out")
    assert not mark.exists()


def test_a_sample_without_words_is_refused() -> None:
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        WordPiece().train([" \n "])


IDEOGRAPHS = [chr(0x4E00 + k) for k in range(3000)]


@given(
    st.integers(100, 400),
    st.lists(st.text("aAbcdé漢字中,.! \u0301ßfiﬁ0123", max_size=30), max_size=8),
    st.integers(0, 300),
)
def test_a_wordpiece_has_no_more_ids_than_asked(size: int, texts: list[str], letters: int) -> None:
    words = "".join(chr(0x400 + k) + chr(0x400 + 2 * k % 300) + " " for k in range(letters))
    sample = ["a", words, *texts, *IDEOGRAPHS[:letters]]
    assert WordPiece(vocab_size=size).train(sample).get_vocab_size() <= size


def test_a_wordpiece_knows_as_many_characters_as_it_has_room_for() -> None:
    text = "".join(IDEOGRAPHS)
    roomy = WordPiece(vocab_size=8000).train([text])
    assert roomy.get_vocab_size() == 3005
    assert "[UNK]" not in roomy.encode(text).tokens
    frequent = [*IDEOGRAPHS, *IDEOGRAPHS[:495]]
    narrow = WordPiece(vocab_size=500).train(["".join(frequent)])
    assert set(narrow.get_vocab()) >= set(IDEOGRAPHS[:495])
    assert narrow.get_vocab_size() == 500


def test_rare_characters_beyond_the_first_thousand_are_left_out() -> None:
    often, rare = IDEOGRAPHS[:1500], IDEOGRAPHS[1500:1510]
    sample = ["".join(often)] * 20 + ["".join(rare)]
    assert not set(rare) & set(
        WordPiece(vocab_size=8000, character_coverage=0.999).train(sample).get_vocab()
    )
    assert set(rare) <= set(
        WordPiece(vocab_size=8000, character_coverage=1.0).train(sample).get_vocab()
    )


@pytest.mark.parametrize(
    "choice", [WordPiece(vocab_size=300), ByteLevelBPE(vocab_size=400), Unigram(vocab_size=300)]
)
def test_a_mask_stands_where_a_word_stood(choice: TokenizerChoice, tmp_path: Path) -> None:
    saved = saved_as(choice, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(saved.folder))
    before, word, after = SAMPLE[1].split()[:2], SAMPLE[1].split()[2], SAMPLE[1].split()[3:6]
    masked = tokenizer(" ".join([*before, "[MASK]", *after])).input_ids
    answer = tokenizer(" " + word, add_special_tokens=False).input_ids
    place = masked.index(tokenizer.mask_token_id)
    filled = [*masked[:place], *answer, *masked[place + 1 :]]
    assert filled == tokenizer(" ".join([*before, word, *after])).input_ids
    decoded = tokenizer.decode(filled, skip_special_tokens=True)
    assert decoded.lower() == " ".join([*before, word, *after]).lower()


def test_a_model_of_the_hub_gives_its_tokenizer(
    tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tiny_tokenizer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    choice = TokenizerFolder(path="owner/model")
    choice.check()
    assert saved_as(choice, tmp_path / "copy").sha256 == open_saved(tiny_tokenizer).sha256
    assert {name for name, _ in asked} == {"owner/model"}
    assert not any("safetensors" in pattern for _, patterns in asked for pattern in patterns)

    def offline(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UsageError, match=r"owner/model is not a local folder.*OSError: no network$"
    ):
        choice.check()
