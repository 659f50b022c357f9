"""What units took, and calls of limited length; a clock that the test sets says what time it is."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chronomask.cli import app
from chronomask.errors import OutOfTime, RunError, UsageError
from chronomask.runs.layout import STATE
from chronomask.study import command, execute
from chronomask.study.execute import Outcome, run_study
from chronomask.study.times import (
    NOTED,
    Allowance,
    given_rates,
    longest_of_tasks,
    note_time,
    rates_in,
)
from chronomask.study.units import Study, Unit
from tests.support.opened_study import opened


class StandIn:
    """Stands for a worker process: what ``do`` says becomes of a unit; None: it works until it is stopped."""

    exitcode = 0

    def __init__(self, study: Study, do: Callable[[Unit], bool | None], stubborn: bool) -> None:
        self.pipe, self.there = multiprocessing.Pipe()
        self.study, self.do, self.stubborn = study, do, stubborn
        self.asked, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        try:
            while True:
                unit = self.study.units[self.there.recv()]
                if self.do(unit) is None:
                    self.ended.wait()
                    break
                self.there.send(None)
        except (EOFError, OSError):
            pass
        self.there.close()

    def is_alive(self) -> bool:
        return self.thread.is_alive()

    def terminate(self) -> None:
        self.asked.set()
        if not self.stubborn:
            self.ended.set()

    def kill(self) -> None:
        self.ended.set()

    def join(self) -> None:
        self.thread.join()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch):
    """Let stand-ins do the units of a study; the list of those that were started."""

    def put(do: Callable[[Unit], bool | None], *, stubborn: bool = False) -> list[StandIn]:
        started: list[StandIn] = []

        def start(study: Study, *_: Any) -> Any:
            started.append(StandIn(study, do, stubborn))
            return execute._Worker(started[-1], started[-1].pipe)  # pyright: ignore

        monkeypatch.setattr(execute, "_start", start)
        return started

    return put


def mark(study: Study, unit: Unit) -> bool:
    """Leave what makes a run count as complete."""
    path = study.run(unit).summary
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"complete": True, "steps": 8, "seconds": 5.0, "tokens_seen": 1000}))
    return True


@pytest.mark.parametrize(
    ("minutes", "said"), [(1, "1 minute"), (9, "9 minutes"), (0.5, "0.5 minutes")]
)
def test_the_length_of_a_call_in_words(minutes: float, said: str) -> None:
    assert Allowance(60 * minutes).length == said


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_call_ends_in_its_time(
    values: dict[str, Any], tmp_path: Path, stand_in: Any, stubborn: bool
) -> None:
    """A run at work is asked to stop in the last twentieth, and killed if it has not ended at the end."""
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    begun: list[str] = []

    def do(unit: Unit) -> bool | None:
        begun.append(unit.arm)
        return None if unit.arm == "decay" else mark(study, unit)

    started = stand_in(do, stubborn=stubborn)

    def clock() -> float:
        if "decay" not in begun:
            return 0.0
        return 534.0 if any(own.asked.is_set() for own in started) else 513.0

    outcome = run_study(study, study.in_order(), allowance=Allowance(540.0, clock))
    assert outcome.done == [study.units[1]]
    assert outcome.stopped == [study.units[2]]
    assert not outcome.failed
    notes = [json.loads(line) for line in (study.folder / NOTED).read_text().splitlines()]
    assert [(note["unit"], note["complete"]) for note in notes] == [
        ("pretrain fixed, seed 0", True),
        ("pretrain decay, seed 0", False),
    ]
    assert study.log(study.units[2]).read_text().endswith("stopped on request\n")


def test_a_unit_whose_process_died_has_failed(
    values: dict[str, Any], tmp_path: Path, stand_in: Any
) -> None:
    study = opened(values | {"tasks": {}, "curve_steps": []}, tmp_path)

    def die(unit: Unit) -> bool:
        raise EOFError(unit)

    stand_in(die)
    outcome = run_study(study, study.in_order(), workers=2)
    assert {why for _, why in outcome.failed} == {"its process ended with exit code 0"}
    assert command.status(study.folder).count("failed last time: ") == 4


def test_an_evaluation_that_does_not_fit_is_not_begun(
    values: dict[str, Any], tmp_path: Path, stand_in: Any
) -> None:
    """A run is begun all the same; so is a task of which nothing is known."""
    study = opened(values, tmp_path)
    runs = [unit for unit in study.units if unit.kind == "pretrain"]
    for unit in runs[:3]:
        mark(study, unit)
    evaluation = study.units[-1]
    note_time(study, evaluation, 600.0, workers=1, complete=True)
    stand_in(lambda unit: mark(study, unit))
    outcome = run_study(study, study.in_order(), allowance=Allowance(540.0, lambda: 0.0))
    assert outcome.done == [runs[3]]
    assert {unit.kind for unit, _ in outcome.too_long} == {"evaluate"}
    assert len(outcome.too_long) == 16
    with pytest.raises(UsageError, match=r"--minutes 12$"):  # nothing is left but what never fits
        command.run(None, study.folder, minutes=9)
    (study.folder / NOTED).unlink()
    began: list[Unit] = []
    stand_in(lambda unit: began.append(unit))
    run_study(study, study.in_order(), allowance=Allowance(540.0, lambda: 540.0 if began else 0.0))
    assert [unit.kind for unit in began] == ["evaluate"]


def test_the_last_line_says_what_is_left_and_how_it_goes_on(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    mark(study, study.units[1])
    study.run(study.units[2]).checkpoint(4).mkdir(parents=True)
    given: list[Any] = []

    def out_of_time(study: Study, units: list[Unit], **options: Any) -> Outcome:
        given.append((len(units), options["workers"], options["allowance"].seconds))
        return Outcome(stopped=[study.units[2]])

    monkeypatch.setattr(execute, "run_study", out_of_time)
    words = ["study", "run", "--out", str(study.folder), "--workers", "2", "--only", "1/1"]
    with pytest.raises(OutOfTime) as raised:
        app([*words, "--minutes", "9"], standalone_mode=False)
    assert raised.value.exit_code == 75
    text = str(raised.value)
    assert (
        f"{study.folder}: 2 of 5 units complete after 0.0 of 9 minutes; left: 3 to pretrain" in text
    )
    assert "(1 begun and saved). It goes on with  chronomask study run" in text
    with pytest.raises(OutOfTime):
        app(shlex.split(text.partition("It goes on with  chronomask ")[2]), standalone_mode=False)
    assert given == [(5, 2, 540.0)] * 2
    failed = Outcome(failed=[(study.units[3], "the disk is full")])
    monkeypatch.setattr(execute, "run_study", lambda *_, **__: failed)
    with pytest.raises(RunError, match=r"^1 unit failed:\n.*the disk is full.*\n.*It goes on with"):
        app([*words, "--minutes", "9"], standalone_mode=False)
    for minutes in ("0", "-1", "nan", "inf"):
        with pytest.raises(UsageError, match="above 0"):
            app([*words, "--minutes", minutes], standalone_mode=False)
    with pytest.raises(UsageError, match="one of --minutes and --unit"):
        command.run(None, study.folder, unit=1, minutes=9)


def test_notes_of_a_unit_are_read_together(values: dict[str, Any], tmp_path: Path) -> None:
    """A run goes on where it stopped, so its times add up; an evaluation begins anew."""
    study = opened({**values, "curve_steps": [], "seeds": [0]}, tmp_path)
    run, other, evaluation = study.units[1], study.units[2], study.units[-1]
    saved = study.run(run).checkpoint(4) / STATE
    saved.parent.mkdir(parents=True)
    saved.write_text(json.dumps({"seconds": 3.0, "tokens_seen": 500}))
    begun = rates_in(study.folder)  # better than nothing until a run has ended
    assert (begun.token, begun.runs, begun.num_runs, begun.runs_ended) == (3.0 / 500, {}, 1, False)
    mark(study, other)
    assert rates_in(study.folder).token == 5.0 / 1000
    mark(study, run)
    assert rates_in(study.folder).token == 10.0 / 2000
    assert not rates_in(study.folder).runs_are_wall
    note_time(study, run, 1.5, workers=2, complete=True)  # it had been killed before
    assert rates_in(study.folder).runs == {"fixed": 5.0}
    for unit, seconds, complete in (
        (run, 7.0, True),  # it was trained again
        (run, 20.0, False),
        (run, 40.0, True),
        (evaluation, 10.0, False),
        (evaluation, 30.0, False),
    ):
        note_time(study, unit, seconds, workers=2, complete=complete)
    with (study.folder / NOTED).open("a") as file:
        file.write('{"unit": "pretrain fix\n[]\nnull\n')
    rates = rates_in(study.folder)
    assert rates.runs == {"fixed": 60.0}
    assert rates.token == 60.0 / 1000
    assert (rates.num_runs, rates.runs_are_wall, rates.workers) == (1, True, {2})
    assert longest_of_tasks(study.folder) == {"cola": pytest.approx(33.0)}
    note_time(study, evaluation, 25.0, workers=2, complete=True)
    assert longest_of_tasks(study.folder) == {"cola": 25.0}
    (study.folder / NOTED).unlink()
    (study.folder / NOTED).mkdir()
    with pytest.raises(RunError, match=r"times\.jsonl cannot be written \(Is a directory\)"):
        note_time(study, run, 1.0, workers=1, complete=True)


def test_a_rate_is_given_as_a_number_or_a_folder(values: dict[str, Any], tmp_path: Path) -> None:
    assert given_rates("2e6").token == 5e-7
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    for bad in ("0", "-3", "nan", "inf", "fast", str(study.folder), "a\0b"):
        with pytest.raises(UsageError, match="tokens a second of a device, such as 250000"):
            given_rates(bad)
    mark(study, study.units[1])
    for folder in (study.folder, study.run(study.units[1]).path):
        assert given_rates(str(folder)).token == 5.0 / 1000
