"""A study of given values, as the command opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from chronomask.study.config import load_study
from chronomask.study.open import begin, open_study
from chronomask.study.units import Study


def opened(values: dict[str, Any], folder: Path) -> Study:
    """The study of these values in ``folder/out``, begun."""
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    study = open_study(load_study(path), folder / "out")
    begin(study)
    return study
