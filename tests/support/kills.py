"""Kills runs at keyed moments, resumes them, and compares what they leave with an undisturbed run.

    python -m tests.support.kills --number 60 --pairs 10

A third of the kills fall into the thread that writes checkpoints, a third into training, a third come from
outside. Where a kill falls is counted in calls. Those from outside are sent at a counted call, of either kind
in turn, and arrive wherever the run has come to by then; it waits for them two steps later. So no run ends
before its kill, on however busy a machine. ``--pairs``: two processes resume one run at the same time, each
time; one goes on, the other is refused or finds the run complete, and nothing is set aside.
"""

from __future__ import annotations

import argparse
import json
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chronomask.keyed import Stream, row_keys
from chronomask.train import checkpoint
from tests.support.golden_runs import make_data
from tests.support.tiny_models import tiny_bert
from tests.support.tiny_training import Driver, assert_same_run

STEPS = 60
OFTEN = {
    "steps": STEPS,
    "checkpoint": {"every": 2, "keep": 1},
    "validation": {"every": 7, "rows": 8, "batch_rows": 4},
}
"""Values of a run that saves most of the time."""


@dataclass(frozen=True)
class Kills:
    """``steps``: the newest whole checkpoint after each kill, −1 for none; ``in_saves``: kills that left a
    checkpoint half-written.
    """

    steps: list[int]
    in_saves: int


def unit(number: int) -> float:
    """A keyed number in [0, 1)."""
    return float(row_keys(7, Stream.SELECT, 0, number) >> np.uint64(11)) / 2**53


def newest_step(run: Path) -> int:
    """The step that a resume would go on from; −1 without a checkpoint. Raises where none is whole."""
    found = checkpoint.latest(run / "checkpoints")
    return -1 if found is None else found.step


def kill_and_compare(
    config: dict[str, Any], folder: Path, driver: Driver, number: int, *, first: int = 0
) -> Kills:
    """Kill one run ``number`` times, let it end, and compare it with one that was left alone.

    Kills are keyed from ``first`` on. Raises AssertionError where anything differs or was lost.
    """
    spec: dict[str, Any] = {"config": config, "out": str(folder / "whole")}
    counted = folder / "calls.json"
    answer = driver.answer([spec | {"count_into": str(counted)}])
    assert answer["codes"] == [0], answer["errors"]
    calls = json.loads(counted.read_text())
    per_save, per_step = calls["save"] / (STEPS // 2), calls["training"] / STEPS

    cut = folder / "cut"
    spec |= {"out": str(cut), "resume": True}
    steps, inside = [-1], 0
    for kill in range(number):
        share = unit(first + kill)
        in_save, in_training = 1 + int(share * 2 * per_save), 1 + int(share * 6 * per_step)
        how: dict[str, Any]
        if kill % 3 == 0:  # within one of the first two saves
            how = {"kill_at": ["save", in_save]}
        elif kill % 3 == 1:
            how = {"kill_at": ["training", in_training]}
        elif kill % 2:
            how = {"invite_at": ["save", in_save, int(2 * per_step)]}
        else:
            how = {"invite_at": ["training", in_training, int(2 * per_step)]}
        answer = driver.answer([spec | how])
        assert answer["codes"] == [-signal.SIGKILL], answer["errors"]
        inside += any((cut / "checkpoints").glob(".writing-*"))
        steps.append(newest_step(cut))
    assert steps == sorted(steps)  # a kill never costs a checkpoint that was whole
    assert steps[-1] < STEPS
    answer = driver.answer([spec])
    assert answer["codes"] == [0], answer["errors"]
    assert_same_run(folder / "whole", cut)
    assert len(list((cut / "checkpoints").iterdir())) == 1
    return Kills(steps[1:], inside)


def resume_in_pairs(config: dict[str, Any], folder: Path, driver: Driver, pairs: int) -> int:
    """How many of so many pairs met: one of the two was refused.

    The run is stopped by a kill before each pair. Raises AssertionError where a pair does harm.
    """
    met = 0
    for pair in range(pairs):
        out = folder / f"pair-{pair}"
        spec = {"config": config, "out": str(out), "resume": True}
        assert driver.codes(spec | {"kill_in_step": 5 + pair}) == [-signal.SIGKILL]
        answer = driver.answer([spec, spec], apart=True)
        codes, told = sorted(answer["codes"]), answer["errors"]
        assert codes in ([0, 0], [0, 2]), told
        if codes == [0, 2]:
            met += 1
            assert any("is in use: another process trains in it" in text for text in told), told
        assert not any("Traceback" in text for text in told), told
        assert not list((out / "checkpoints").glob("damaged-*"))
        assert_same_run(folder / "whole", out)
    return met


def main() -> None:
    """Ten kills a run, as many runs as it takes, and the pairs; prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=60, help="kills in all")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of simultaneous resumes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = {
            "name": "killed",
            "data": str(make_data(folder / "data")),
            "model": tiny_bert(32),
            "masking": {
                "ratio": {"kind": "linear_decay", "base": 0.3},
                "content": {"kind": "ptw", "ema_decay": 0.9},
            },
            "rows_per_step": 8,
            "micro_batches": 2,
            "device": "cpu",
            "threads": 1,
            "peak_flops": 1e12,
            "log_every": 3,
            **OFTEN,
        }
        driver = Driver({"config": config | {"steps": 2}, "out": str(folder / "first")})
        try:
            for first in range(0, asked.number, 10):
                place = folder / f"kills-{first}"
                place.mkdir()
                number = min(10, asked.number - first)
                done = kill_and_compare(config, place, driver, number, first=first)
                print(
                    f"{first + number} kills; {done.in_saves} of the last {number} in a save; newest "
                    f"checkpoints after them: {done.steps}",
                    flush=True,
                )
            if asked.pairs:
                pretrained = {"config": config, "out": str(folder / "whole")}
                assert driver.codes(pretrained) == [0]
                met = resume_in_pairs(config, folder, driver, asked.pairs)
                print(f"{asked.pairs} pairs of resumes; in {met} of them one was refused")
        finally:
            driver.close()
    print("every run ended as if it had been left alone")


if __name__ == "__main__":
    main()
