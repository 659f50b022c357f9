"""The tutorial notebook runs as it stands, with fewer steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "tutorial.ipynb"


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, code in enumerate(codes):
        assert code.count("steps=200") == (number == 2)
        fewer = code.replace("steps=200", "steps=20")
        fewer = fewer.replace('"installed_packages"', '"installed_packages", "max_bytes": 400_000')
        exec(compile(fewer, f"cell {number}", "exec"), names)
    assert names["summary"]["steps"] == 20
    assert (tmp_path / "tutorial" / "report" / "report.html").is_file()
