"""Logs of a resumed run are those of a run never stopped; progress is readable without a terminal."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from chronomask.errors import RunError
from chronomask.train import log
from chronomask.train.log import RunLog, environment


def opened(folder: Path, step: int, progress: bool = False) -> RunLog:
    return RunLog(folder, step=step, steps=10, name="run", active=True, progress=progress)


def test_lines_past_the_checkpoint_and_torn_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4))
    path.write_text(whole + '{"step": 5, "lo')
    opened(tmp_path, 4).close()
    assert path.read_text() == whole
    run_log = opened(tmp_path, 2)
    run_log.write("metrics", {"step": 3, "loss": 1.5})
    run_log.sync()
    run_log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 1.5},
    ]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    quiet = RunLog(tmp_path, step=0, steps=1, name="run", active=False, progress=True)
    quiet.write("metrics", {"step": 1})
    quiet.sync()
    assert quiet.median_speed() is None
    quiet.close()
    assert not list(tmp_path.iterdir())


def test_plain_lines_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_SECONDS_BETWEEN_LINES", 3600.0)
    run_log = opened(tmp_path, 0, progress=True)
    metrics = {
        "loss": 2.5,
        "tokens_per_second": 1234.5,
        "predicted_tokens_per_second": 185.2,
        "mfu": 0.41,
        "data_wait_share": 0.0,
        "peak_memory_bytes": 2.3e9,
        "seconds_left": 540.0,
    }
    for step in (1, 2, 10):  # the second comes too soon, the last always comes
        run_log.advance(step, 10, metrics)
    run_log.close()
    assert capsys.readouterr().err.splitlines() == [
        f"step {step}/10  loss 2.500  1,234 tok/s  185 predicted/s  MFU 41%  0% waiting for data  "
        "2.3 GB  0:09:00 left"
        for step in (1, 10)
    ]


def test_a_file_that_cannot_be_written_is_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_log = opened(tmp_path, 0)

    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_log._files["metrics"], "write", full, raising=False)
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written.*No space left"):
        run_log.write("metrics", {"step": 1})
    run_log.close()


def test_environment_says_what_ran_where() -> None:
    here = environment(torch.device("cpu"))
    assert here["versions"]["torch"] == torch.__version__
    assert here["device"] == "cpu"
    json.dumps(here)
