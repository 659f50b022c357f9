"""Tables beside a page, and what every page looks like."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import pytest

from chronomask.errors import DataError
from chronomask.report import render as pages
from chronomask.report.render import write_csv


def test_no_cell_is_a_formula_of_a_spreadsheet(tmp_path: Path) -> None:
    arms = ["=1+1", "+PTW", "-x", "@sum(A1)", "\t=1", "0.30 to 0.15", "", -1.5, 3, None]
    download = write_csv(tmp_path, "arms", ["=name", "value"], [[arm, 0.5] for arm in arms])
    text = (tmp_path / "csv" / "arms.csv").read_text(encoding="utf-8")
    cells = [row[0] for row in csv.reader(text.splitlines(keepends=True))]
    assert cells == [
        "'=name", "'=1+1", "'+PTW", "'-x", "'@sum(A1)", "'\t=1", "0.30 to 0.15", "", "-1.5", "3", "",
    ]  # fmt: skip
    assert base64.b64decode(download.data_uri.partition(",")[2]).decode() == text


@pytest.mark.parametrize("name", ["../arms", "/arms", "a/b", "", ".."])
def test_a_table_is_written_into_its_folder_alone(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no file can be called so"):
        write_csv(tmp_path / "out", name, ["a"], [[1]])
    assert not list(tmp_path.iterdir())


def test_paper_gets_whole_tables_and_what_is_folded_away() -> None:
    style = Path(pages.__file__).with_name("style.css").read_text(encoding="utf-8")
    on_screen, paper = style.split("@media print {")
    # What a screen scrolls, keeps in place and does not break, paper would cut off.
    for kept, undone in (
        ("overflow-x: auto", "overflow: visible"),
        ("position: sticky", "position: static"),
        ("white-space: nowrap", "white-space: normal"),
    ):
        assert kept in on_screen
        assert undone in paper
    assert "details::details-content { display: block; content-visibility: visible;" in paper


def test_marks_keep_the_colours_of_their_lines_in_the_dark() -> None:
    style = Path(pages.__file__).with_name("style.css").read_text(encoding="utf-8")
    assert "filter" not in style
