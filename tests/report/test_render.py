"""Tables beside a page."""

from __future__ import annotations

import base64
import csv
from pathlib import Path

import pytest

from chronomask.errors import DataError
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
