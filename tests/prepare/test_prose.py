"""Prose of docstrings and READMEs: sentences stay, everything else goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from chronomask.errors import DataError
from chronomask.prepare.read import packages
from chronomask.prepare.read.packages import (
    _docstrings,
    installed_versions,
    prose_paragraphs,
    read_installed,
)

SENTENCE = "The quick brown fox jumps over the lazy dog and is not seen again in the wood."


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        (SENTENCE, SENTENCE),
        (SENTENCE.replace(" over", "\nover"), SENTENCE),
        (SENTENCE.replace("quick", "``quick``"), SENTENCE),
        (SENTENCE.replace("fox", ":class:`~animals.fox`"), SENTENCE),
        (SENTENCE.replace("fox", "`fox <https://fox.example>`_"), SENTENCE),
        (SENTENCE.replace("fox", "[fox](https://fox.example)"), SENTENCE),
        (SENTENCE.replace("lazy", "**lazy**").replace("dog", "*dog*"), SENTENCE),
        (SENTENCE.replace("again", "again [1]_"), SENTENCE),
        (SENTENCE.replace("wood", "<b>wood</b>"), SENTENCE),
    ],
)
def test_sentences_lose_their_markup(text: str, prose: str) -> None:
    assert list(prose_paragraphs(text)) == [prose]


@pytest.mark.parametrize(
    "text",
    [
        "Short sentence.",
        SENTENCE[:-1],  # no end
        SENTENCE.lower(),
        f">>> {SENTENCE}",
        f"    {SENTENCE}",
        f"- {SENTENCE}",
        f"| {SENTENCE} |",
        f"# {SENTENCE}",
        f".. note:: {SENTENCE}",
        f":param fox: {SENTENCE}",
        f"```\n{SENTENCE}\n```",
        f"Args:\n    {SENTENCE}",
        f"Args:\n    fox (str): the fox.\n        {SENTENCE}",
        f"Parameters\n----------\nfox : str\n    {SENTENCE}",
        f"{SENTENCE}\n{'=' * 20}",
        SENTENCE.replace("fox", "fox(x=1)"),
        SENTENCE.replace("fox", "https://fox.example"),
        SENTENCE.replace("fox", "{fox}"),
        "Der schnelle braune Fuchs springt mit einem Satz über den faulen Hund und verschwindet im Wald.",
        "Licensed under the Apache License: you may not use this file except in compliance with it.",
    ],
)
def test_what_is_no_prose_goes(text: str) -> None:
    assert list(prose_paragraphs(text)) == []


def test_prose_goes_on_after_a_section() -> None:
    text = f"{SENTENCE}\n\nArgs:\n    fox: an animal.\n\n{SENTENCE}\n\nNotes\n-----\n{SENTENCE}"
    assert len(list(prose_paragraphs(text))) == 3


def test_docstrings_are_found_without_running_the_file(tmp_path: Path) -> None:
    long = "A docstring that is long enough to be taken for one by the reader of files."
    file = tmp_path / "module.py"
    file.write_text(
        f'# comment\n\nr"""Module. {long}"""\nraise SystemExit\n'
        f'text = """Not a docstring. {long}"""\n'
        f'class C:\n    """Class. {long}\n\n    Indented. {long}\n    """\n'
        f'    def f(self) -> int:  # why\n        """Function. {long}"""\n'
    )
    first, second, third = _docstrings(file)
    assert first.startswith("Module.")
    assert second.endswith(f"\n\nIndented. {long}")
    assert third.startswith("Function.")
    file.write_bytes(b'"""\xff' + long.encode() + b'"""')
    assert _docstrings(file) == []


def test_installed_packages_give_the_same_bounded_english() -> None:
    first = list(read_installed(60_000))
    again = list(read_installed(60_000))
    assert first == again
    size = sum(len(document.text.encode()) for document in first)
    assert 50_000 < size <= 62_000
    paragraphs = [p for document in first for p in document.text.split("\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert len({document.id.split(":")[0] for document in first}) > 20
    words = " ".join(paragraphs).lower().split()
    assert words.count("the") > 0.03 * len(words)


def test_versions_are_named_and_sorted() -> None:
    names = installed_versions()
    assert names == sorted(names)
    assert any(name.startswith("numpy ") for name in names)


def test_no_prose_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_packages", list)
    with pytest.raises(DataError, match="no English prose"):
        list(read_installed(1000))
