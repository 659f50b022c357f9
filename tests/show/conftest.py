"""A tagger that needs no model, and a run that has logged class weights."""

import json
from pathlib import Path

import pytest

from chronomask.types import UPOS_CLASSES
from tests.support.fixed_tagger import FixedTagger, stand_in_for_english


@pytest.fixture(autouse=True)
def _fixed_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_english(monkeypatch, FixedTagger())


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run with uneven weights at progress 0.1 and others at 0.9."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "data: somewhere\nname: my run\nmasking:\n  ratio: {kind: constant, base: 0.3}\n"
        "  content: {kind: ptw}\n",
        encoding="utf-8",
    )
    lines = []
    for step, progress in ((10, 0.1), (90, 0.9)):
        weights = {name: 0.1 + 0.8 * progress * k / 17 for k, name in enumerate(UPOS_CLASSES)}
        lines.append(
            {"step": step, "progress": progress, "masking_ratio": 0.2, "class_weight": weights}
        )
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder
