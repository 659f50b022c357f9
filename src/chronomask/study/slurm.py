"""A study as Slurm job arrays: one element a unit, the three kinds of units one after the other."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from chronomask.storage import write_text
from chronomask.study.config import SlurmConfig
from chronomask.study.units import Study, Unit

__all__ = ["write_slurm"]

_BLOCK = 1000
"""Elements of an array; clusters commonly allow 1001."""


def write_slurm(study: Study) -> Path:
    """Write ``slurm/unit.sbatch``, which does one unit, and ``slurm/submit.sh``, which submits what is
    open now and returns at once; the path of the latter.

    Arrays wait for the kind before them to end, not to succeed: what needs a unit that failed is
    refused by itself, everything else goes on. Paths are those of this machine's working folder.
    """
    folder = study.folder / "slurm"
    write_text(folder / "unit.sbatch", _job(study))
    write_text(folder / "submit.sh", _submission(study))
    return folder / "submit.sh"


def _job(study: Study) -> str:
    slurm = study.config.slurm
    lines = ["#!/bin/bash", f"#SBATCH --job-name={_word(study.config.name)}", *_header(slurm)]
    logs = (study.folder / "logs" / "slurm-%A_%a.log").resolve()
    lines += [f"#SBATCH --output={logs}", "set -euo pipefail", f"cd {shlex.quote(str(Path.cwd()))}"]
    if slurm.setup:
        lines.append(slurm.setup.rstrip())
    lines.append(
        f"exec {shlex.quote(sys.executable)} -m chronomask study run --out "
        f'{shlex.quote(str(study.folder))} --unit "$((FIRST + SLURM_ARRAY_TASK_ID))"'
    )
    return "\n".join(lines) + "\n"


def _header(slurm: SlurmConfig) -> list[str]:
    options = [f"--time={slurm.time}", f"--cpus-per-task={slurm.cpus}", f"--mem={slurm.memory}"]
    if slurm.gpus:
        options.append(f"--gpus-per-task={slurm.gpus}")
    if slurm.partition:
        options.append(f"--partition={slurm.partition}")
    return ["#SBATCH --ntasks=1", *(f"#SBATCH {option}" for option in options)]


def _submission(study: Study) -> str:
    at_once = f"%{study.config.slurm.at_once}" if study.config.slurm.at_once else ""
    script = shlex.quote(str((study.folder / "slurm" / "unit.sbatch").resolve()))
    logs = shlex.quote(str((study.folder / "logs").resolve()))
    lines = [
        "#!/bin/bash",
        f"# Submits every unit of {_word(study.config.name)} that was open when this was written.",
        "set -euo pipefail",
        f"mkdir -p {logs}",
        "before=",
    ]
    for kind in ("prepare", "pretrain", "evaluate"):
        units = [unit for unit in study.units if unit.kind == kind and not study.is_complete(unit)]
        if not units:
            continue
        lines.append(f"# {kind}: {len(units)}")
        lines.append("jobs=")
        for block in _blocks(units):
            first = block[0].number
            elements = _ranges([unit.number - first for unit in block])
            lines.append(
                f"jobs+=:$(sbatch --parsable --array={elements}{at_once} "
                f"--export=ALL,FIRST={first} ${{before:+--dependency=afterany$before}} {script})"
            )
        lines.append("before=$jobs")
    return "\n".join(lines) + "\n"


def _blocks(units: list[Unit]) -> list[list[Unit]]:
    """Units whose numbers lie within an array's length of each other."""
    blocks: list[list[Unit]] = []
    for unit in units:
        if blocks and unit.number - blocks[-1][0].number < _BLOCK:
            blocks[-1].append(unit)
        else:
            blocks.append([unit])
    return blocks


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers as Slurm writes them: ``0-3,5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _word(text: str) -> str:
    """A text as one word of a script."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
