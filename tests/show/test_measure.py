"""What the picture shows is what the masker gives; its numbers are counted right."""

from pathlib import Path

import numpy as np
import pytest

from chronomask.config import Config
from chronomask.data.folder import PreparedData
from chronomask.masking.config import MaskingConfig
from chronomask.runs.read import read_run
from chronomask.show.measure import EPOCHS, Shown, count_masked, statistics, word_pieces
from chronomask.show.request import NamedMasking
from chronomask.show.subject import Subject, of_rows, of_text, shorten
from chronomask.show.view import classes_shown, look, masker_at, tokens_of
from chronomask.types import UPOS_CLASSES, Rows
from tests.support.sample_text import TEXT


def config_of(**values: object) -> MaskingConfig:
    return MaskingConfig.parse(values)


PTW = config_of(content={"kind": "ptw", "strength": 1.0})


def small_rows() -> Rows:
    """One row: special, a word of two tokens (class 1), a word of one (2), one of one (2)."""
    return Rows(
        np.array([[9, 1, 2, 3, 4]]),
        np.array([[-1, 0, 0, 1, 2]], np.int32),
        np.array([[0, 1, 1, 2, 2]], np.uint8),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        np.array([0, 5], np.int32),
    )


def test_statistics_by_hand() -> None:
    counts = np.array([[0, 4, 4, 1, 0]])
    found = statistics(small_rows(), counts, epochs=5, num_classes=3)
    assert found.achieved == pytest.approx(9 / 20)
    assert found.class_in_text == pytest.approx([0, 0.5, 0.5])
    assert found.class_in_masked == pytest.approx([0, 8 / 9, 1 / 9])
    assert found.multi_in_text == pytest.approx(1 / 3)
    assert found.multi_in_masked == pytest.approx(4 / 5)
    nothing = statistics(small_rows(), counts * 0, epochs=5, num_classes=3)
    assert nothing.achieved == 0
    assert np.isnan(nothing.class_in_masked).all()
    assert np.isnan(nothing.multi_in_masked)
    assert word_pieces(small_rows().word_id).tolist() == [[0, 2, 2, 1, 1]]


@pytest.mark.parametrize("source", ["words", "tokenizer", "rows"])
def test_marks_are_the_maskers_positions(source: str, tiny_data: PreparedData) -> None:
    subject = {
        "words": lambda: of_text(TEXT, None, None),
        "tokenizer": lambda: of_text(TEXT, tiny_data.tokenizer_path, None),
        "rows": lambda: of_rows(tiny_data, 2),
    }[source]()
    view = look(NamedMasking("a", PTW), subject, (0.0, 0.5), 3, None)
    for moment in view.moments:
        masker, _ = masker_at(PTW, subject, moment.progress, 3, None)
        batch = masker(subject.rows, moment.progress)
        assert np.array_equal(np.flatnonzero(moment.shown), batch.positions)
        drawn = [t for row in range(subject.rows.num_rows) for t in tokens_of(subject, row, moment)]
        assert sum(t.shown is not Shown.PLAIN for t in drawn) == batch.num_predicted
        hidden = (batch.input_ids == subject.vocabulary.mask_token_id) & (batch.labels >= 0)
        assert sum(t.shown is Shown.HIDDEN for t in drawn) == hidden.sum()
        random = [t.instead for t in drawn if t.shown is Shown.RANDOM]
        assert all(random)
        assert all(t.pieces > 0 for t in drawn if t.shown is not Shown.PLAIN)


def test_a_text_is_written_as_it_was_given(tiny_tokenizer: Path) -> None:
    for tokenizer in (None, tiny_tokenizer):
        subject = of_text(TEXT, tokenizer, None)
        written = "".join(t.gap + t.text for t in tokens_of(subject, 0))
        assert written == TEXT


def test_rows_are_written_without_padding_and_with_their_words(tiny_data: PreparedData) -> None:
    subject = of_rows(tiny_data, 4)
    for row in range(4):
        tokens = tokens_of(subject, row)
        text = "".join(t.gap + t.text for t in tokens)
        assert "[PAD]" not in text
        assert " ," not in text
        assert "##" not in text.split(maxsplit=2)[-1]  # a row may begin inside a word


def test_counts_cover_the_first_epoch_and_meet_the_ratio() -> None:
    subject = of_text(TEXT, None, None)
    masker, _ = masker_at(PTW, subject, 0.5, 0, None)
    first = masker(subject.rows, 0.5).labels >= 0
    assert np.array_equal(count_masked(masker, subject.rows, 0.5, epochs=1), first.astype(int))
    view = look(NamedMasking("a", PTW), subject, (0.0, 1.0), 0, None)
    for moment in view.moments:
        assert moment.statistics.achieved == pytest.approx(moment.asked, rel=0.05)


def test_illustrative_weights_are_even_at_the_start_and_follow_published_losses_later() -> None:
    subject = of_text(TEXT, None, None)
    _, start = masker_at(PTW, subject, 0.0, 0, None)
    _, later = masker_at(PTW, subject, 0.5, 0, None)
    assert start is not None
    assert later is not None
    assert set(start.values.values()) == {0.5}
    assert "illustrative" in later.origin
    assert later.values["ADV"] > later.values["NOUN"] > later.values["PRON"] > later.values["PUNCT"]
    assert later.values["CCONJ"] == pytest.approx(0.5)
    assert "CCONJ" in later.assumed
    assert "NOUN" not in later.assumed
    faithful = config_of(content={"kind": "ptw_faithful"})
    _, published = masker_at(faithful, subject, 0.5, 0, None)
    assert published is not None
    assert published.values == pytest.approx(later.values)


@pytest.mark.parametrize("kind", ["ptw", "ptw_faithful"])
def test_weights_of_a_run_are_those_logged_last(kind: str, run_folder: Path) -> None:
    subject, run = of_text(TEXT, None, None), read_run(run_folder)
    content = {"kind": kind, "strength": 1.0}
    config = config_of(content=content, ratio={"kind": "responsive"})
    for progress, logged in ((0.1, 0.1), (0.3, 0.1), (0.8, 0.1), (1.0, 0.9)):
        masker, weights = masker_at(config, subject, progress, 0, run)
        assert weights is not None
        expected = {name: 0.1 + 0.8 * logged * k / 17 for k, name in enumerate(UPOS_CLASSES)}
        assert weights.values == pytest.approx(expected)
        assert f"progress {logged}" in weights.origin
        assert masker.ratio_at(progress) == pytest.approx(0.2)
        in_force = masker.class_weights()
        assert in_force is not None
        order = sorted(UPOS_CLASSES[1:], key=lambda name: in_force[name])
        assert order == sorted(UPOS_CLASSES[1:], key=lambda name: expected[name])


@pytest.mark.parametrize("progress", [0.0, 0.05])
def test_before_its_first_line_a_run_has_learnt_nothing(progress: float, run_folder: Path) -> None:
    subject, run = of_text(TEXT, None, None), read_run(run_folder)
    responsive = {"kind": "responsive"}
    config = config_of(content={"kind": "ptw", "strength": 1.0}, ratio=responsive)
    masker, weights = masker_at(config, subject, progress, 0, run)
    fresh, _ = masker_at(config_of(ratio=responsive), subject, progress, 0, None)
    assert weights is not None
    assert set(weights.values.values()) == {0.5}
    assert weights.origin == "all alike: run my run has logged none before progress 0.1"
    assert masker.ratio_at(progress) == fresh.ratio_at(progress)


def test_classes_that_do_not_occur_are_left_out() -> None:
    subject: Subject = of_text("one two one", None, None)
    view = look(NamedMasking("a", PTW), subject, (1.0,), 0, None)
    shown = classes_shown(subject.rows, (view,), subject.class_names)
    assert set(shown) == set(subject.rows.token_class.ravel().tolist())
    assert EPOCHS == 200
    assert isinstance(view.config, Config)


def test_a_long_text_is_cut_after_a_word() -> None:
    text, notes = shorten("word " * 10, 23)
    assert text == "word word word word"
    assert notes == ["only the first 19 of 50 characters are shown (at most 23)"]
    assert shorten("short", 23) == ("short", [])
