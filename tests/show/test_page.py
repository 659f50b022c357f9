"""What a reader of the pages sees: words, marks, and colours that everybody can tell apart."""

from __future__ import annotations

import re
import shutil
from html import unescape
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.show.prepared import as_text, look_into, write_data_page
from chronomask.show.show import inspect_text
from tests.support.sample_text import TEXT

DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
"""What is left of linear RGB (Machado, Oliveira and Fernandes, 2009)."""
PROTANOPIA = np.array(
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of a colour in hexadecimal sRGB."""
    values = np.array([int(colour[k : k + 2], 16) for k in (0, 2, 4)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, another: np.ndarray) -> float:
    """As WCAG 2 defines it."""
    low, high = sorted(float(colour @ [0.2126, 0.7152, 0.0722]) for colour in (one, another))
    return (high + 0.05) / (low + 0.05)


def lab(colour: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    xyz = (
        np.array(
            [
                [0.4124564, 0.3575761, 0.1804375],
                [0.2126729, 0.7151522, 0.072175],
                [0.0193339, 0.119192, 0.9503041],
            ]
        )
        @ colour.clip(0, 1)
        / [0.95047, 1, 1.08883]
    )
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_an_arrow_points_to_what_stands_in_for_a_word() -> None:
    """In text that runs from right to left, the substitute stands at the left of its word."""
    random = {"mask_replace_prob": 0.0, "random_replace_prob": 1.0}
    masking = {"ratio": {"kind": "constant", "base": 0.5}, **random}
    arabic = "\u0642\u0641\u0632 \u0627\u0644\u062b\u0639\u0644\u0628 \u0641\u0648\u0642 BERT 2024."
    picture = inspect_text(arabic, masking, progress=[0])
    html = picture._repr_html_()
    assert 'mark.random:dir(rtl) .instead::before { content: "←"' in html
    assert re.search(r"mark\.random, #\S+ mark\.random \.instead \{ unicode-bidi: isolate", html)
    text = str(picture)
    marks = re.findall(r".?\[[^\]]*→[^\]]*\].?", text.split("epochs, the first of them:")[1])
    assert marks
    for mark in marks:
        assert re.fullmatch(r"\u2066\[[^\u200e]+\u200e→\u200e[^\u200e]+\]\u2069", mark)
    english = str(inspect_text(TEXT, masking, progress=[0]))
    assert not re.search("[\u200e\u2066\u2069]", english)


def test_what_is_to_be_predicted_is_called_masked_and_not_hidden(tmp_path: Path) -> None:
    """Only a part of it is hidden: some is shown as another word, and some as it is."""
    picture = inspect_text(TEXT, {"ratio": {"kind": "constant", "base": 0.3}}, progress=[0])
    page = picture.save(tmp_path / "page.html").read_text(encoding="utf-8")
    for html in (page, picture._repr_html_()):
        assert "Masked, so to be predicted:" in words_of(html)
        assert "30.0 % masked" in words_of(html)
        assert "hidden" not in words_of(html)
    assert "share masked over training" in page
    assert str(picture).startswith("masked, to be predicted: [word] shown as [MASK]")
    assert "hidden" not in str(picture)


def test_a_note_is_a_sentence(tmp_path: Path) -> None:
    page = inspect_text("word " * 2000, progress=[0]).save(tmp_path / "page.html")
    notes = re.findall(r'role="note"><ul>\s*<li>(.*?)</li>', page.read_text(encoding="utf-8"))
    assert notes == ["Only the first 3,994 of 10,000 characters are shown (at most 4,000)."]


def test_text_says_its_language_where_it_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # the bundled tagger itself
    for text, language in (("A word of English.", "en"), ("\u0642\u0641\u0632.", "")):
        picture = inspect_text(text, progress=[0])
        page = picture.save(tmp_path / "page.html").read_text(encoding="utf-8")
        for html in (page, picture._repr_html_()):
            starts = re.findall(r'<(?:p|div) class="prose[^>]*>', html)
            assert starts
            assert all(f' lang="{language}"' in start for start in starts)


def test_every_column_of_a_page_has_a_heading(tiny_data: PreparedData, tmp_path: Path) -> None:
    """And every heading says whether it is a column's or a row's."""
    of_data = write_data_page(tmp_path, look_into(tiny_data)).read_text(encoding="utf-8")
    of_text = inspect_text(TEXT, progress=[0]).save(tmp_path / "a.html").read_text(encoding="utf-8")
    for page in (of_data, of_text):
        assert "<th scope" in page
        assert not re.search(r"<th(?! scope)\b|<th[^>]*></th>", page)
    assert '<th scope="col">pieces per word</th>' in of_data
    tables = re.findall(r"<table.*?</table>", of_data, re.DOTALL)
    assert len(tables) == 3
    for table in tables:
        head, *rows = [
            sum(
                int(wide or 1)
                for wide in re.findall(r'<t[dh]\b(?:[^>]*colspan="(\d)")?[^>]*>', row)
            )
            for row in re.findall(r"<tr.*?</tr>", table)
        ]
        assert set(rows) == {head}


def test_pages_write_per_cent_alike(tiny_data: PreparedData, tmp_path: Path) -> None:
    masking = {
        "ratio": {"kind": "uniform_rows", "high": {"kind": "linear", "start": 1.0, "end": 0.2}}
    }
    picture = inspect_text(TEXT, masking, progress=(0, 0.3))
    view = look_into(tiny_data)
    pages = (picture.save(tmp_path / "a.html"), write_data_page(tmp_path, view))
    shown = [words_of(page.read_text(encoding="utf-8")) for page in pages]
    for words in (*shown, str(picture), as_text(view)):
        assert re.search(r"\d %", words)
        assert not re.search(r"\d%", words)


def test_the_legend_of_data_has_no_names_of_colours(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    page = write_data_page(tmp_path, look_into(tiny_data)).read_text(encoding="utf-8")
    for group in ("content", "function"):
        assert f'<li class="{group}"><span class="swatch"></span>{group} words: ' in page
    assert not re.search("plum|teal", page, re.IGNORECASE)


def test_a_long_substitute_wraps() -> None:
    masking = {
        "ratio": {"kind": "constant", "base": 0.5},
        "random_replace_prob": 1.0,
        "mask_replace_prob": 0.0,
    }
    html = inspect_text("\u654f\u6377\u7684 \u68d5\u8272" * 9, masking, progress=[0])._repr_html_()
    assert 'class="instead">&nbsp;' in html
    assert "nowrap" not in html


def words_of(html: str) -> str:
    """The words of a page."""
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", body)))


def test_the_mask_is_written_as_the_tokenizer_writes_it(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer"))
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace("[MASK]", "<mask>"))
    masking = {"mask_replace_prob": {"kind": "linear", "start": 0.8, "end": 0.9}}
    picture = inspect_text(TEXT, masking, tokenizer=folder, progress=(0, 1))
    page = picture.save(tmp_path / "page.html").read_text(encoding="utf-8")
    for shown in (str(picture), unescape(page), unescape(picture._repr_html_())):
        assert "shown as <mask>" in shown
        assert "[MASK]" not in shown
    assert "masked: the model sees &lt;mask&gt;" in page
    assert re.search(r"shown as <mask>, as another at progress 0, 1: 80 %", str(picture))


def test_groups_of_words_are_told_without_colours(tmp_path: Path) -> None:
    """A masked word has the name of its class, and the legend has the classes of every group."""
    masking = {"ratio": {"kind": "constant", "base": 1.0}, "strategy": {"kind": "whole_word"}}
    picture = inspect_text(TEXT, masking, progress=[0])
    page = picture.save(tmp_path / "page.html").read_text(encoding="utf-8")
    for html in (page, picture._repr_html_()):
        marks = re.findall(r'<mark class="\w+ (\w+)" title="(\w+)[^>]*>(.*?)</mark>', html)
        assert {group for group, _, _ in marks} >= {"content", "function"}
        for group, name, inner in marks:
            assert f'<small dir="ltr">{name}</small>' in inner
            label = {"content": "content words", "function": "function words"}.get(
                group, "the rest"
            )
            assert name in re.findall(rf"{label}: ([A-Z, ]+)<", html)[0].split(", ")


def test_a_word_of_several_tokens_has_its_class_once(tiny_tokenizer: Path) -> None:
    whole = {"ratio": {"kind": "constant", "base": 1.0}, "strategy": {"kind": "whole_word"}}
    picture = inspect_text(TEXT, whole, tokenizer=tiny_tokenizer, progress=[0])
    words = picture.subject.rows.word_id[0]
    there = words[words >= 0]
    assert len(there) > len(set(there.tolist()))
    assert picture._repr_html_().count("<small") == len(set(there.tolist()))


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_colours_of_groups_differ_for_the_colour_blind(tmp_path: Path, kind: int) -> None:
    """Light, dark, and in a notebook: told apart, and legible on the card and under a word."""
    picture = inspect_text(TEXT, progress=[0])
    page = picture.save(tmp_path / "page.html").read_text(encoding="utf-8")
    found = {
        name: re.findall(rf"--{name}: #([0-9a-f]{{6}});", page)
        + re.findall(rf"--{name}: #([0-9a-f]{{6}});", picture._repr_html_())
        for name in ("content", "function", "other", "on-mark")
    }
    colours = {name: linear(values[kind]) for name, values in found.items()}
    on_mark, card = colours.pop("on-mark"), linear(("ffffff", "1d2127", "ffffff")[kind])
    for one, another in combinations(colours.values(), 2):
        for sight in (DEUTERANOPIA, PROTANOPIA):
            assert np.linalg.norm(lab(sight @ one) - lab(sight @ another)) > 13.5
    for colour in colours.values():
        assert contrast(colour, on_mark) > 4.5
        assert contrast(colour, card) > 4.5
