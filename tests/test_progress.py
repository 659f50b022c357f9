"""The progress line where there is no terminal."""

from __future__ import annotations

import sys
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest

from chronomask.progress import Progress, say


def test_progress_off_a_terminal_is_lines_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("chronomask.progress.time.monotonic", lambda: now[0])
    with Progress("cola seed 0", 400) as progress:
        progress.advance(50)
        now[0] += 20.0
        progress.advance(50, note="loss 0.700")
        progress.advance(300)
    assert capsys.readouterr().err.splitlines() == [
        "cola seed 0: 25%, 5.0 examples/s, about 1:00 min left, loss 0.700",
        "cola seed 0: 400 examples in 20 s, 20 examples/s, loss 0.700",
    ]


def test_work_that_was_done_before_has_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronomask.progress.time.monotonic", lambda: 100.0)
    with Progress("reading", None, "characters") as progress:
        progress.advance(3_000_000)
    assert capsys.readouterr().err == "reading: 3,000,000 characters in 0 s\n"


def test_slow_work_and_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("chronomask.progress.time.monotonic", lambda: now[0])
    with Progress("run", 100, "steps", done=90) as progress:
        now[0] += 24.0
        progress.advance(1)
        now[0] += 24.0
        progress.advance(9)
    assert capsys.readouterr().err.splitlines() == [
        "run: 91%, 0.042 steps/s, about 3:36 min left",
        "run: 100%, 0.2 steps/s, about 0 s left",
        "run: 100 steps in 48 s, 0.2 steps/s",
    ]


def test_progress_that_is_not_shown_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("cola seed 0", 4, shown=False) as progress:
        progress.advance(4)
    assert capsys.readouterr().err == ""


def test_brief_work_is_told_only_where_it_is_not_brief(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("chronomask.progress.time.monotonic", lambda: now[0])
    for seconds in (1.0, 11.0):
        with Progress("cola encoding", 400, brief=True) as progress:
            now[0] += seconds
            progress.advance(200)
            progress.advance(200)
    assert capsys.readouterr().err.splitlines() == [
        "cola encoding: 50%, 18 examples/s, about 11 s left",
        "cola encoding: 400 examples in 11 s, 36 examples/s",
    ]


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=len, flush=lambda: None)])
def test_standard_error_may_be_closed_or_anything_that_writes(
    stream: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with Progress("work", 2) as progress:
            progress.advance(2)
            progress.tell("half of it")
    assert capsys.readouterr().out == ""


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_of_a_bar_acts_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("la\x1b[2Jbel", 2) as progress:
        progress.advance(1, "no\x1b[2Jte")
        progress.tell("te\x1b[2Jxt")
        progress.advance(1, "no\x1b[2Jte")
    shown = terminal.getvalue()
    for text in ("la\\x1b[2Jbel", "te\\x1b[2Jxt"):
        assert text in shown
    assert "\x1b[2J" not in shown


def test_nothing_of_what_is_said_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of other programs and names of files can hold anything."""
    say("failed: \x1b[2J")
    with Progress("a\x1b[1m", 4) as progress:
        progress.tell("b\x1b[1m")
        progress.advance(4, note="c\x1b[1m")
    told = capsys.readouterr().err
    assert "\x1b" not in told
    assert told.startswith("failed: \\x1b[2J\n")
