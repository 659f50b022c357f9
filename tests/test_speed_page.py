"""The page of speed figures and the README's table are what the stored figures say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.record import as_json
from chronomask import __version__
from docs import speed_page
from tests.support.documents import ROOT, written_pages


def test_the_page_and_the_readme_are_made_of_what_is_stored() -> None:
    advice = "run: python -m docs.speed_page"
    assert (ROOT / "docs" / "speed.md").read_text("utf-8") == speed_page.page(), advice
    assert speed_page.readme_table() in (ROOT / "README.md").read_text("utf-8"), advice


def test_every_stored_figure_says_when_and_where_it_was_measured() -> None:
    stored = speed_page.read(speed_page.FIGURES)
    assert stored.keys() <= {section.name for section in speed_page.sections()}
    for name, figures in stored.items():
        assert figures["recorded"].keys() == {"date", "command", "machine", "versions"}, name


def test_a_benchmark_notes_its_date_machine_and_versions() -> None:
    figures = json.loads(as_json({"overhead": 1.0}))
    assert figures["overhead"] == 1.0
    assert figures["recorded"]["machine"]["cores"] >= 1
    assert figures["recorded"]["versions"]["chronomask"] == __version__
    assert figures["recorded"]["versions"].keys() >= {"python", "torch"}
    assert figures["recorded"]["date"] in speed_page.origin(figures)


def test_lines_without_a_figure_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training.json").write_text(as_json({"overhead": 0.9987}))
    page = speed_page.page(tmp_path)
    assert "over one with them | 0.999 |" in page
    assert page.count("\n## ") == 1
    assert "tokens/s" not in page
    assert "| training" not in speed_page.readme_table(tmp_path)


def test_ratios_of_speed_are_typed_nowhere_else() -> None:
    """A factor such as 54× is on the generated page and in the README's table alone."""
    for page in written_pages():
        text = page.read_text("utf-8")
        if page.name == "speed.md" or page.parent.name == "results" or page.name == "LOG.md":
            continue
        text = text.replace(speed_page.readme_table(), "")
        assert "tokens per second, ours and theirs" not in text
        assert not [line for line in text.splitlines() if "AMD EPYC" in line], page
