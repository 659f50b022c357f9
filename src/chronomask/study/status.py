"""How far a study is, as text: its units by kind, and every arm and seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from chronomask.errors import ChronomaskError
from chronomask.study.units import Study, Unit

__all__ = ["Status", "look", "status_text"]


@dataclass(frozen=True, slots=True)
class Status:
    """Units by what is known of them; ``damaged``: with what is wrong with their mark."""

    complete: list[Unit]
    open: list[Unit]
    damaged: list[tuple[Unit, str]]


def look(study: Study) -> Status:
    """Look at every unit's mark."""
    status = Status([], [], [])
    for unit in study.in_order():
        try:
            (status.complete if study.is_complete(unit) else status.open).append(unit)
        except ChronomaskError as error:
            status.damaged.append((unit, str(error)))
    return status


def status_text(study: Study) -> str:
    """A line of sums, then one line per arm, a cell per seed: how far training is, and evaluations."""
    status = look(study)
    complete = {unit.number for unit in status.complete}
    total = len(study.units)
    prepared = "prepared" if 0 in complete else "not prepared yet"
    lines = [f"{study.folder}: {len(complete)} of {total} units complete; data {prepared}"]
    table = [["arm", *(f"seed {seed}" for seed in study.config.seeds)]]
    table += [
        [arm, *(_cell(study, arm, seed, complete) for seed in study.config.seeds)]
        for arm in study.arms
    ]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines += [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    lines += [f"damaged: {unit}: {problem}" for unit, problem in status.damaged]
    lines += [
        f"failed last time: {unit} (log: {study.log(unit)})"
        for unit in status.open
        if _failed(study, unit)
    ]
    return "\n".join(lines)


def _cell(study: Study, arm: str, seed: int, complete: set[int]) -> str:
    own = [unit for unit in study.units if unit.kind != "prepare" and unit.group == (arm, seed)]
    training = next(unit for unit in own if unit.kind == "pretrain")
    results = [unit for unit in own if unit.kind == "evaluate"]
    if training.number in complete:
        trained = "trained"
    else:
        step, steps = _last_step(study, training), study.arms[arm].config.steps
        trained = f"step {step:,} of {steps:,}" if step else "–"
    if not results or training.number not in complete:
        return trained
    return f"{trained}, {_count(results, complete)} of {len(results)} results"


def _count(units: Sequence[Unit], complete: set[int]) -> int:
    return sum(unit.number in complete for unit in units)


def _last_step(study: Study, unit: Unit) -> int:
    """The last logged step of an unfinished run."""
    path = study.run_folder(unit.arm, unit.seed) / "metrics.jsonl"
    if not path.is_file():
        return 0
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return int(json.loads(line)["step"])
        except ValueError:
            continue  # the last line may be half-written
    return 0


def _failed(study: Study, unit: Unit) -> bool:
    """Whether the last thing its log says is not an ordinary start or end."""
    path = study.log(unit)
    if not path.is_file():
        return False
    last = path.read_text(encoding="utf-8").splitlines()[-1:] or [""]
    return not last[0].endswith((str(unit), "done", "stopped as asked"))
