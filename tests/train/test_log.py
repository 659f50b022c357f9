"""Logs of a resumed run are those of a run never stopped; progress is readable without a terminal."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomask import progress
from chronomask.errors import DataError, RunError
from chronomask.train.config import RunConfig
from chronomask.train.log import RunLog, environment
from chronomask.train.loop import pretrain


def opened(folder: Path, step: int, shown: bool = False, logged_every: int | None = None) -> RunLog:
    return RunLog(
        folder,
        step=step,
        steps=10,
        name="run",
        active=True,
        progress=shown,
        logged_every=logged_every,
    )


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
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    metrics = {
        "loss": 2.5,
        "tokens_per_second": 1234.5,
        "predicted_tokens_per_second": 185.2,
        "mfu": 0.41,
        "data_wait_share": 0.0,
        "peak_memory_bytes": 2.3e9,
    }
    with opened(tmp_path, 2, shown=True) as run_log:
        run_log.advance(3, metrics)
        run_log.advance(10, None)  # keeps the figures of the last line
    told = capsys.readouterr().err.splitlines()
    figures = "loss 2.500  1,234 tok/s  185 predicted/s  MFU 41%  0% waiting for data  2.3 GB"
    assert [line.partition(",")[0] for line in told] == [
        "run: 30%",
        "run: 100%",
        "run: 10 steps in 0 s",
    ]
    assert all(line.endswith(figures) for line in told)


def test_lines_that_are_gone_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"st\n{"step": 8}\n{"step": 12, "name": "é')
    with path.open("ab") as file:
        file.write("é".encode()[:1])  # the write was cut off within a character
    with caplog.at_level("INFO"):
        opened(tmp_path, 8, logged_every=2).close()
    assert path.read_text() == '{"step": 2}\n{"step": 8}\n'
    assert "lines after step 8 are written again: 1" in caplog.text
    assert "lines that cannot be read are left out: 1" in caplog.text
    assert "lacks the lines of 2 steps before the checkpoint, from step 4 to step 6" in caplog.text
    caplog.clear()
    opened(tmp_path, 8, logged_every=None).close()
    assert caplog.text == ""


def test_a_log_that_is_not_utf_8_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "name": "\xe9"}\n{"step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl.*line 1.*UTF-8"):
        opened(tmp_path, 2)


def test_a_file_that_cannot_be_written_is_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_log = opened(tmp_path, 0)

    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_log._files["metrics"], "write", full, raising=False)
    with pytest.raises(RunError, match=r"jsonl cannot be written: No space left .*resume=True"):
        run_log.write("metrics", {"step": 1})
    run_log.close()


@pytest.mark.parametrize(
    ("number", "way_out"), [(errno.ENOSPC, "Make room"), (errno.EFBIG, "See to it that files can")]
)
def test_what_is_flushed_and_closed_too_late_is_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str
) -> None:
    """Only where the disk is full is there room to make."""

    def refuse(*_: object) -> None:
        raise OSError(number, "whatever")

    class Sink:
        close = write = refuse

    run_log = opened(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", refuse)
        with pytest.raises(RunError, match=f"jsonl cannot be written: .*{way_out}"):
            run_log.sync()
    sink: Any = Sink()
    run_log._sinks = [sink]
    with pytest.raises(RunError, match=way_out):
        run_log.write("metrics", {"step": 1})
    with pytest.raises(RunError, match=way_out), run_log:
        pass
    assert run_log._files["validation"].closed
    with pytest.raises(KeyError), run_log:  # what happened first is told
        raise KeyError


def test_environment_says_what_ran_where() -> None:
    here = environment(torch.device("cpu"))
    assert here["versions"]["torch"] == torch.__version__
    assert here["device"] == "cpu"
    json.dumps(here)


def test_long_validations_show_their_progress(
    config: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the weights as they are and of their mean; a short one is not told, and none with ``--quiet``."""
    changed = config.replace(
        ["steps=2", "name=run", "averaging={kind: tail, last: 1}", "validation.batch_rows=5"]
    )

    def validations(shown: bool) -> list[str]:
        """The lines of a run about validations."""
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        pretrain(changed, out, progress=shown)
        return [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("run valid")
        ]

    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 600.0)
    assert validations(shown=True) == []
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    assert validations(shown=False) == []
    told = validations(shown=True)
    for label in ("run validation: ", "run validation of the mean: "):
        *under_way, end = [line for line in told if line.startswith(label)]
        assert re.search(r": \d+%, .*about .* left", under_way[0])
        assert under_way[-1].startswith(f"{label}100%")
        assert re.search(r": [\d,]+ rows in \d+ s", end)
