"""A study refuses in its folder what resuming a run there would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chronomask.errors import UsageError
from chronomask.storage import write_text
from tests.support.opened_study import opened


def begun(values: dict[str, Any], folder: Path) -> None:
    """A study whose run 'responsive', seed 0, has begun."""
    watched = {"masking.ratio": {"kind": "responsive", "watch": "validation"}}
    values["arms"] = {"fixed": {}, "responsive": watched}
    study = opened(values, folder)
    config = study.arms["responsive"].run_config(0)
    write_text(study.run_of("responsive", 0).config, config.to_yaml())


def test_a_run_made_with_another_config_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    begun(values, tmp_path)
    values["base"] |= {"rows_per_step": 2, "log_every": 1}
    with pytest.raises(UsageError, match="another config: rows_per_step is 4 there, 2 now"):
        opened(values, tmp_path)


def test_what_a_responsive_ratio_watches_must_not_change(
    values: dict[str, Any], tmp_path: Path
) -> None:
    begun(values, tmp_path)
    opened(values, tmp_path)
    values["base"]["validation"] |= {"rows": 4}
    with pytest.raises(UsageError, match=r"validation\.rows is 8 there, 4 now"):
        opened(values, tmp_path)
