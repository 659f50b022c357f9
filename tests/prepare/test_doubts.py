"""What a preparation doubts of its text: one line each, on standard error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.prepare.config import ByteLevelBPE, PrepareConfig, StanzaTagger, WordPiece
from chronomask.prepare.doubts import doubt_validation
from chronomask.prepare.new_words import ExtendedFolder
from chronomask.prepare.pipeline import prepare
from chronomask.prepare.tokenizer import TokenizerFolder
from chronomask.prepare.words.unicode import scripts_of, unlikely_language
from chronomask.show.prepared import as_text, look_into
from tests.support.corpus import made_up_text

KOREAN = "위키백과는 전 세계 여러 언어로 만들어 나가는 자유 백과사전이다. (Wikipedia, 2001)"
TEXTS = {
    "ko": KOREAN,
    "en": "The naïve café was open; Σ and π were not.",
    "ru": "Я вышел из дома рано утром и сел в поезд.",
    "ja": "吾輩は猫である。名前はまだ無い。",
    "zh": "我昨天在图书馆看书。",
    "el": "Καλημέρα σας, τι κάνετε;",
    "th": "สวัสดีครับ",
    "sr": "Добро јутро, kako ste danas?",
}
SHARED = {("ja", "zh"), ("ko", "zh"), ("sr", "en"), ("sr", "ru")}
"""A language, and another whose letters it also has."""


def prepared(out: Path, texts: list[str], **changes: Any) -> PreparedData:
    source = out.parent / "text.txt"
    source.write_text("\n\n".join(texts), encoding="utf-8")
    common: dict[str, Any] = {"row_length": 16, "held_out": 0.0, "workers": 1, "progress": False}
    return prepare([source], out, **common | changes)


def test_a_file_that_is_named_twice_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "texts" / "a.txt"
    file.parent.mkdir()
    file.write_text("\n\n".join(TEXTS.values()), encoding="utf-8")
    common: dict[str, Any] = {"row_length": 16, "workers": 1, "progress": False, "tagger": "none"}
    once = prepare([file], tmp_path / "once", **common)
    assert "more than once" not in caplog.text
    twice = prepare([file.parent, file], tmp_path / "twice", **common)
    assert "1 file is named more than once, and all of the text is read as often (" in caplog.text
    assert twice.statistics["documents"] == 2 * once.statistics["documents"]


@pytest.mark.parametrize("language", TEXTS)
def test_a_language_is_doubted_by_its_letters_alone(language: str) -> None:
    for other, text in TEXTS.items():
        doubt = unlikely_language(language, [text, "123 !?"])
        assert (doubt is None) == (language == other or (language, other) in SHARED), (other, doubt)
    assert unlikely_language(language, ["123 ...", ""]) is None
    assert unlikely_language("xx", TEXTS.values()) is None


GERMAN = "Der Hund lief in den Garten, und die Katze war so alt wie das Haus. Er is(s)t nie. "
ENGLISH = "The dog ran to the garden, and the cat was as old as that house of theirs, which is by a lake. "


@pytest.mark.parametrize(("text", "is_doubted"), [(GERMAN, True), (ENGLISH, False)])
def test_english_is_told_from_its_neighbours_by_its_commonest_words(
    text: str, is_doubted: bool
) -> None:
    doubt = unlikely_language("en", [text] * 20)
    assert (doubt is not None) == is_doubted
    assert not doubt or doubt.endswith(" % of the words are such as 'the', 'of' and 'and'")
    assert unlikely_language("en", [text]) is None  # too little to tell
    assert unlikely_language("de", [text] * 20) is None  # of English alone the words are known


def test_scripts_are_named_by_their_letters() -> None:
    assert scripts_of(["aбB1 ", "é."]) == {"LATIN": 0.75, "CYRILLIC": 0.25}
    assert scripts_of([]) == {}


def test_korean_under_the_english_tagger(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cased = {"lowercase": False}
    prepared(tmp_path / "out", [f"{KOREAN} {k}" for k in range(30)], tokenizer=cased)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "text in 'en'" in line
    assert "of the letters are Hangul" in line
    assert "--set tagger=bands" in line
    caplog.clear()
    prepared(
        tmp_path / "bands", [f"{KOREAN} {k}" for k in range(30)], tagger="bands", tokenizer=cased
    )
    prepared(tmp_path / "english", [f"A sentence in English, number {k}." for k in range(30)])
    assert not caplog.records


@pytest.mark.parametrize("text", [KOREAN, "がぎぐ ですから", "किताब की दुकान में हूँ", "สวัสดีครับ"])
def test_letters_that_need_their_marks(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared(tmp_path / "out", [f"{text} {k}" for k in range(30)], tagger="none")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the tokenizer strips accents, which changes")
    assert line.endswith("--set tokenizer.lowercase=false")


def test_one_document_cannot_be_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "\n".join(f"line {k} of a file without a blank one" for k in range(40))
    data = prepared(tmp_path / "out", [text], tagger="none", held_out=0.2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("the text is one document")
    assert data.split("held_out").num_rows == 0
    caplog.clear()
    by_lines = prepared(
        tmp_path / "lines", [text], tagger="none", held_out=0.2, txt_documents="lines"
    )
    assert by_lines.split("held_out").num_rows > 0  # the way out that the line names
    assert not any("one document" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("held_out", "parts", "train", "documents", "said"),
    [
        (
            90_000,
            900,
            10_000,
            2,
            "the text is 2 documents, and 90 % of its tokens are held out: a document",
        ),
        (50_000, 500, 450_000, 40, None),
        (
            30_000,
            60,
            450_000,
            900,
            "30,000 tokens are held out: the losses of a validation are largely",
        ),
        (
            3_000,
            30,
            97_000,
            900,
            "3,000 tokens are held out: the losses of a validation are largely",
        ),
    ],
)
def test_what_is_held_out_may_be_too_much_or_too_little(
    caplog: pytest.LogCaptureFixture,
    held_out: int,
    parts: int,
    train: int,
    documents: int,
    said: str | None,
) -> None:
    doubt_validation(held_out, parts, train, documents, 0.05, may_split=True)
    assert [r.getMessage().startswith(said or "") for r in caplog.records] == [True] * bool(said)


def test_too_much_of_a_small_text_may_be_too_little(caplog: pytest.LogCaptureFixture) -> None:
    doubt_validation(10_000, 100, 40_000, 19, 0.005, may_split=True)
    share, number = (record.getMessage() for record in caplog.records)
    assert share.startswith("the text is 19 documents, and 20 % of its tokens are held out")
    assert number.startswith("10,000 tokens are held out: the losses of a validation are largely")
    assert "rest on 1,500 predictions at a fixed 15 %, and on 100 where they are fewest" in number


def test_a_given_tokenizer_has_no_size_to_raise() -> None:
    assert "tokenizer.vocab_size" in WordPiece().advise()
    assert "vocab_size" not in TokenizerFolder(path="x").advise()
    assert "training" not in ExtendedFolder(path="x").announce()


def test_letters_whose_marks_are_accents() -> None:
    texts = ["Ärger naïve Łódź ñandú Ελλάδα й ё", "漢字"]
    assert WordPiece().damage(texts) is None
    assert WordPiece().damage(["한국"]) is not None
    assert WordPiece(lowercase=False).damage(["한국"]) is None
    assert ByteLevelBPE().damage(["한국"]) is None
    assert WordPiece().damage([]) is None
    assert WordPiece().damage(texts, english=False) is not None
    assert WordPiece(lowercase=False).damage(texts, english=False) is None


def test_accents_count_in_text_that_is_not_english(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"bu kış şarkı söyleyen çocuk güneşli gün {k}" for k in range(30)]
    prepared(tmp_path / "out", texts)
    accents, tagger = [record.getMessage() for record in caplog.records]
    assert accents.startswith("the tokenizer strips accents, which changes 21 % of the letters")
    assert "text in 'en'" in tagger
    caplog.clear()
    prepared(tmp_path / "bands", texts, tagger="frequency_bands")  # made for any language
    (accents,) = [record.getMessage() for record in caplog.records]
    assert accents.startswith("the tokenizer strips accents")
    caplog.clear()
    prepared(tmp_path / "plain", ["der alte Mann ging mit dem Hund an den Fluss"] * 30)
    (tagger,) = [record.getMessage() for record in caplog.records]
    assert "text in 'en'" in tagger


def test_unknown_tokens_are_said_at_the_end_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["".join(chr(0x4E00 + 50 * k + j) for j in range(50)) for k in range(20)]
    few = prepared(tmp_path / "few", texts, tokenizer={"vocab_size": 500}, tagger="none")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("50.5 % of the characters are unknown")  # 495 of 1,000 are known
    assert "Raise the size with --set tokenizer.vocab_size=" in line
    assert few.unknown_share("train") == pytest.approx(0.505)
    assert "train 50.50 %; never masked" in as_text(look_into(few))
    caplog.clear()
    all_of_them = prepared(tmp_path / "all", texts, tokenizer={"vocab_size": 2000}, tagger="none")
    assert all_of_them.unknown_share("train") == 0.0
    assert not caplog.records


def test_unknown_text_is_counted_in_characters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A word that is too long for the tokenizer is one token, and much text."""
    texts = [" ".join([*made_up_text(1, seed=k)[0].split()[:40], "ab" * 600]) for k in range(20)]
    for tagger in ("none", "bands"):
        data = prepared(tmp_path / tagger, texts, tokenizer={"vocab_size": 500}, tagger=tagger)
        share = 1200 * 20 / sum(map(len, texts))
        assert data.unknown_share() == data.unknown_share("train") == pytest.approx(share)
        assert data.statistics["splits"]["train"]["unknown_tokens"] == 20
        assert f"{100 * share:.1f} % of the characters are unknown" in caplog.text
        assert "or 1,000 where the text has many, is unknown at any size" in caplog.text
        caplog.clear()


def test_unknown_tokens_that_are_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["".join(chr(0x4E00 + 50 * k + j) for j in range(50)) for k in range(20)]
    data = prepared(
        tmp_path / "out", texts, tokenizer={"vocab_size": 2000}, tagger="none", held_out=0.2
    )
    assert data.unknown_share("train") == 0.0
    assert data.unknown_share("held_out") == 1.0
    *_, line = [record.getMessage() for record in caplog.records]
    assert f"{data.unknown_share():.1%}".replace("%", " %") in line
    assert line.endswith("of characters that the training text lacks: give more text")


def named(text: str) -> Any:
    return PrepareConfig.parse({"sources": ["x"], "tagger": text}).tagger


def test_taggers_have_names() -> None:
    kinds = [named(name).kind for name in ("english", "none", "column", "bands")]
    assert kinds == ["english", "none", "column", "frequency_bands"]
    assert named("spacy:xx_pipeline").name == "xx_pipeline"
    assert named("stanza:ko") == StanzaTagger(language="ko")
    assert named("stanza:ko/gsd") == StanzaTagger(language="ko", package="gsd")
    further = PrepareConfig.parse_with(
        {"sources": ["x"], "tagger": "stanza:ko/gsd"}, ["tagger.package=kaist"]
    )
    assert further.tagger == StanzaTagger(language="ko", package="kaist")
    with pytest.raises(UsageError, match=r"'englsh'.*english"):
        named("englsh")
    ways_out = {
        "ar": "publishes none that tags it.* are stanza:ar, .* in a preparation bands",
        "sv": "spacy download sv_core_news_sm`.* are stanza:sv, .* in a preparation bands",
        "zh": "spacy download zh_core_web_sm`",
    }
    for language, way_out in ways_out.items():
        with pytest.raises(
            UsageError, match=f"no spaCy pipeline for '{language}' is installed; .*{way_out}"
        ):
            named(f"spacy:{language}").label()


def test_only_the_folder_of_a_pipeline_is_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts lie in folders named by their language."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tr").mkdir()
    with pytest.raises(UsageError, match="no spaCy pipeline for 'tr' is installed"):
        named("spacy:tr").label()
    with pytest.raises(
        UsageError, match=r"\./tr is not the folder of a spaCy pipeline: .*meta.json"
    ):
        named("spacy:./tr").label()
    (tmp_path / "tr" / "meta.json").write_text('{"lang": "tr", "name": "x", "version": "0"}')
    with pytest.raises(DataError, match=r"spaCy cannot load the pipeline 'tr': .*config.cfg"):
        named("spacy:tr").label()
