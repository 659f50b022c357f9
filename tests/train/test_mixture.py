"""A run trains on a mixture, and resumes on the same mixture alone."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import Stopped, UsageError
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from tests.support.tiny_training import ask_to_stop_after, assert_same_run


def test_a_run_on_a_mixture_stopped_and_resumed_equals_never_stopped(
    values: dict[str, Any],
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Path(shutil.copytree(tiny_data.path, tmp_path / "other"))
    parts = [{"path": str(tiny_data.path), "weight": 2}, {"path": str(other)}]
    config = RunConfig.parse({**values, "data": parts})
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 7, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "run", progress=False)
    parts[1]["weight"] = 2
    with pytest.raises(UsageError, match="data fingerprint"):
        pretrain(
            RunConfig.parse({**values, "data": parts}),
            tmp_path / "run",
            resume=True,
            progress=False,
        )
    pretrain(config, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
