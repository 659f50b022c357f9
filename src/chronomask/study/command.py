"""What ``chronomask study`` does: text in, text out, refusals before any work."""

from __future__ import annotations

import sys
from pathlib import Path

from chronomask.errors import RunError, UsageError
from chronomask.report.study_page import write_study_report
from chronomask.study.compare import compare_study
from chronomask.study.config import load_study
from chronomask.study.execute import Outcome, run_one, run_study, share_of
from chronomask.study.slurm import write_slurm
from chronomask.study.status import status_text
from chronomask.study.units import Study, begin, check_task_data, open_study

__all__ = ["report", "run", "status"]


def run(
    path: Path | None,
    out: Path,
    *,
    overrides: list[str],
    workers: int = 1,
    only: str | None = None,
    unit: int | None = None,
    slurm: bool = False,
    quiet: bool = False,
) -> str:
    """Begin or continue the study of a file in ``out``; without a file, the one that is there.

    Raises RunError once everything else is done if a unit failed.
    """
    if sum((only is not None, unit is not None, slurm)) > 1:
        raise UsageError("give one of --only, --unit and --slurm")
    study = _open(path, out, overrides)
    check_task_data(study)
    if unit is None or path is not None:  # elements of a job array share a folder: they only read
        begin(study)
    if slurm:
        return f"submit with: bash {write_slurm(study)}"
    if unit is not None:
        run_one(study, unit)
        return f"done: {study.units[unit]}"
    units = study.in_order() if only is None else share_of(study, only)
    outcome = run_study(study, units, workers=workers, tell=_silent if quiet else _tell)
    if outcome.failed:
        raise RunError(_failures(study, outcome))
    text = f"{out}: {len(outcome.done) + len(outcome.there)} of {len(units)} units complete"
    return text if only is not None else f"{text}\nreport: {report(out)}"


def status(out: Path) -> str:
    """How far the study in a folder is."""
    return status_text(_open(None, out, []))


def report(out: Path) -> Path:
    """Compare what is complete and write the page; its path."""
    compare_study(_open(None, out, []))
    return write_study_report(out)


def _open(path: Path | None, out: Path, overrides: list[str]) -> Study:
    own = out / "study.yaml"
    if path is None and not own.is_file():
        raise UsageError(
            f"{out} holds no study: give its YAML file, such as configs/study/tiny.yaml"
        )
    config = load_study(own if path is None else path, overrides)
    return open_study(config, out)


def _failures(study: Study, outcome: Outcome) -> str:
    lines = [f"{unit}: {why} (log: {study.log(unit)})" for unit, why in outcome.failed]
    more = (
        f"; {len(outcome.left_out)} units that need them were left out" if outcome.left_out else ""
    )
    count = len(outcome.failed)
    return f"{count} {'unit' if count == 1 else 'units'} failed{more}:\n  " + "\n  ".join(lines)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Say nothing."""
