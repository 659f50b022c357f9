"""The layout of a run folder: what its files are called, and which of its checkpoints are whole.

    RUN/
      .lock                held while a process trains here
      .trial/              while the speed is measured before the first step, with ``hours``
      config.yaml          the run's whole config
      environment.json     versions, hardware, fingerprint of the data, hash of the initial weights
      resumes.jsonl        a line for every resume
      metrics.jsonl        a line every ``log_every`` steps
      validation.jsonl     a line for every validation
      validation-rows.npz  of the last validation: the losses of every held-out row
      summary.json         written last: the run is complete
      checkpoints/step-00001000/
        transformers/  optimiser.safetensors  content.safetensors  state.json  hashes.json
        averaged/          only with averaging: the model with averaged weights
      results/step-00001000/<task>-seed<k>.json
      dump/step-00001001/  a step that met a number that is not finite

``folders`` knows some of these names as well, to tell a run from other folders.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chronomask.config_layers import read_yaml
from chronomask.errors import DataError, UsageError, python_command, shown
from chronomask.folders import is_prepared_data, what_it_is
from chronomask.locks import LOCK, lock
from chronomask.runs.continuation import goes_on
from chronomask.storage import (
    as_a_shell_has_it,
    file_sha256,
    make_folder,
    read_object,
    refuse_file,
    remove_all,
    stays_below,
    way_to_read,
)

__all__ = [
    "AVERAGED",
    "CONTENT",
    "DISCARDED",
    "FORMAT_VERSION",
    "HASHES",
    "MODEL",
    "OPTIMISER",
    "STATE",
    "TRIAL",
    "UNFINISHED",
    "RunFolder",
    "branch_folder",
    "checkpoints_in",
    "damage",
    "model_in",
    "remove",
    "run_of",
    "step_name",
    "step_of",
]

HASHES = "hashes.json"
"""In a checkpoint, written last: the SHA-256 of every other file by its path."""
STATE = "state.json"
"""In a checkpoint: counters, config and fingerprint."""
MODEL = "transformers"
"""In a checkpoint: the folder that ``AutoModelForMaskedLM.from_pretrained`` opens."""
AVERAGED = "averaged"
"""In a checkpoint of a run with averaging: the model with averaged weights, once there are any."""
OPTIMISER = "optimiser.safetensors"
"""In a checkpoint: what the optimiser keeps of every parameter."""
CONTENT = "content.safetensors"
"""In a checkpoint: every other tensor: masker, outliers, averaging, foresight, sums for the log."""
FORMAT_VERSION = 1
"""Version of the checkpoints that this package writes and reads."""
TRIAL = ".trial"
"""In a run folder, while its speed is measured before the first step: a run that is thrown away."""
UNFINISHED, DISCARDED = ".writing-", ".discarded-"
"""What the names of checkpoints begin with that are being written, and removed."""
_NEEDED = (STATE, CONTENT, OPTIMISER, f"{MODEL}/config.json")
logger = logging.getLogger(__name__)

_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder's files and folders; none of them need exist."""

    path: Path

    @property
    def config(self) -> Path:
        """The whole config, as YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What the run started with."""
        return self.path / "environment.json"

    @property
    def resumes(self) -> Path:
        """A line for every resume."""
        return self.path / "resumes.jsonl"

    @property
    def metrics(self) -> Path:
        """Losses, ratios, speed along the run."""
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """Losses on held-out rows along the run."""
        return self.path / "validation.jsonl"

    @property
    def validation_rows(self) -> Path:
        """Losses of every held-out row in the last validation; see :mod:`~chronomask.runs.held_out`."""
        return self.path / "validation-rows.npz"

    @property
    def summary(self) -> Path:
        """There if the run is complete."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        """Folder of evaluations, with a folder for each step."""
        return self.path / "results"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after ``step`` steps."""
        return self.checkpoints / step_name(step)

    def results_of(self, step: int) -> Path:
        """Folder of the results of the checkpoint after ``step`` steps."""
        return self.results / step_name(step)

    def dump_of(self, step: int) -> Path:
        """Folder of the dump of step ``step``, counted from 1."""
        return self.path / "dump" / step_name(step)

    def describe_places(self, paths: Sequence[str]) -> list[dict[str, str]]:
        """Each path as it was given, absolute, and from the run folder: what :meth:`find` looks at later."""
        return [
            {
                "given": path,
                "absolute": str(Path(path).resolve()),
                "from_run": os.path.relpath(Path(path).resolve(), self.path.resolve()),
            }
            for path in paths
        ]

    def find(self, path: str) -> str:
        """Where the data lies that the run began with under ``path``, and is not there from here.

        That is where it lay, or where it lies from the run folder, if both were moved; a word is said.
        ``path`` itself where it is there, or where the run knows of no other place.
        """
        if Path(path).exists():
            return path
        known = (read_object(self.environment) or {}).get("data")
        for place in known if isinstance(known, list) else ():
            if not isinstance(place, dict) or place.get("given") != path:
                continue
            at = str(place.get("absolute")), str(self.path / str(place.get("from_run")))
            for other, how in zip(
                at, ("where the run began", "beside the run folder"), strict=True
            ):
                if Path(other).is_dir():
                    logger.warning(
                        "data %s does not exist from here; it was found %s: %s", path, how, other
                    )
                    return other
        return path

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from training in this folder; raises UsageError where one does.

        See :func:`chronomask.locks.lock`. A folder that was made for it and holds no run at the end is
        removed again; the lock file of another stays.
        """
        made = not self.path.is_dir()
        if made:  # one that is there may hold a complete run that nobody may write to any more
            make_folder(self.path)
        with lock(self.path / LOCK) as mine:
            if not mine:
                raise UsageError(
                    f"{self.path} is in use: another process trains in it; wait until that has ended, or "
                    "give another output folder"
                )
            try:
                yield
            finally:
                if made and not self.is_run() and {p.name for p in self.path.iterdir()} <= {LOCK}:
                    remove_all(self.path, ignore_errors=True)

    def is_run(self) -> bool:
        """Whether a run lives here, complete or not."""
        return self.config.is_file() and not is_prepared_data(self.path)

    def check_config_is_there(self) -> None:
        """Raise UsageError, with the way to make it again, where checkpoints are left but no config."""
        way_out = None if self.is_run() else self._config_again()
        if way_out is not None:
            raise UsageError(f"{self.path} has checkpoints, but no {self.config.name}; {way_out}")

    def check_config(self) -> None:
        """Raise UsageError where the config is lost or no YAML, with the way to write it again if any."""
        self.check_config_is_there()
        if not self.is_run():
            return
        try:
            read_yaml(self.config)
        except UsageError as error:
            if not os.access(self.config, os.R_OK):
                raise
            way_out = self._config_again() or self.put_back()
            raise UsageError(f"{error}; {way_out}") from None

    def put_back(self) -> str:
        """What to do about a file of the run that nothing here can write again."""
        return f"put it back from a copy, or remove {self.path} to train the run again"

    def _config_again(self) -> str | None:
        """How the config is written again from a checkpoint; None where there is none to write it from."""
        states = [path / STATE for path in checkpoints_in(self.checkpoints)]
        state = next((path for path in states if path.is_file()), None)
        if state is None:
            return None
        code = 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))["config"]))'
        command = f"{python_command('-c', code, str(state))} > {shlex.quote(str(self.config))}"
        return f"the checkpoints hold it too, and this writes it again:  {command}"

    def read_summary(self) -> dict[str, Any] | None:
        """What the complete run came to; None before that. Raises DataError for a damaged file."""
        way_out = "put it back from a copy, or remove the folder to train the run again"
        if checkpoints_in(self.checkpoints):
            command = shlex.join(["chronomask", "pretrain", "--out", str(self.path), "--resume"])
            way_out = f"remove it, and  {command}  writes it again"
        try:
            found = read_object(self.summary)
        except DataError as error:
            raise DataError(f"{error}; {way_to_read(error.__context__, way_out)}") from None
        if found is None or found.get("complete") is not True:
            return None
        if not isinstance(found.get("steps"), int):
            raise DataError(f"{self.summary} does not say how many steps there were; {way_out}")
        if not stays_below(found.get("checkpoint", "none")):
            raise DataError(
                f"{self.summary} names {shown(found['checkpoint'])} as a checkpoint of the run; {way_out}"
            )
        return found

    def check_free(self, resume: bool) -> None:
        """Raise UsageError where a run would write over another, or into a folder of something else."""
        refuse_file(self.path, "a run")
        if not self.path.is_dir() or all(p.name.startswith(".") for p in self.path.iterdir()):
            return
        self.check_config_is_there()
        if not self.is_run():
            raise UsageError(
                f"{self.path} is not empty and holds no run{what_it_is(self.path)}; give another output "
                "folder"
            )
        if not resume:
            raise UsageError(
                f"{self.path} already holds a run: {goes_on()}, or give another output folder"
            )


def step_name(step: int) -> str:
    """What the folder of a step is called.

    >>> step_name(1200)
    'step-00001200'
    """
    return f"step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step a folder is named after; None if it is named otherwise."""
    matched = _STEP.fullmatch(path.name)
    return int(matched[1]) if matched else None


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders in ``folder``, whole or not, newest first; none if there is no folder."""
    if not folder.is_dir():
        return []
    found = [(step_of(path), path) for path in folder.iterdir() if path.is_dir()]
    by_step = sorted((step, path) for step, path in found if step is not None)
    return [path for _, path in reversed(by_step)]


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that at no moment a part of it passes for the whole."""
    discarded = checkpoint.with_name(f"{DISCARDED}{checkpoint.name}")
    checkpoint.rename(discarded)
    remove_all(discarded, ignore_errors=True)


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run a checkpoint folder belongs to; None if it lies elsewhere."""
    inside = checkpoint.parent.name == "checkpoints"
    return RunFolder(checkpoint.parent.parent) if inside else None


def model_in(checkpoint: Path) -> Path:
    """The model that a checkpoint stands for: the averaged one where there is one, else the one trained."""
    averaged = checkpoint / AVERAGED
    return averaged if averaged.is_dir() else checkpoint / MODEL


def branch_folder(path: str | Path) -> RunFolder:
    """The run folder that a path to branch from lies in: a run's own, or that of one of its checkpoints."""
    path = as_a_shell_has_it(path)
    return (run_of(path) if step_of(path) is not None else None) or RunFolder(path)


def damage(checkpoint: Path, below: str = "") -> str | None:
    """What is wrong with a checkpoint, or None where it is whole.

    Its hashes must name just the files that are there and hold what a checkpoint needs, and every
    file must match its own. ``below``: hash only files whose path starts with this, to save time.
    """
    try:
        hashes = json.loads((checkpoint / HASHES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"no {HASHES}"
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError):
        return f"unreadable {HASHES}"
    if not isinstance(hashes, dict) or not all(isinstance(v, str) for v in hashes.values()):
        return f"{HASHES} is not a table of hashes"
    files = {
        path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()
    }
    for name in sorted({*hashes, *_NEEDED} - files):
        return f"{name} is missing"
    for name in sorted(({*files, *_NEEDED} - {HASHES}) - hashes.keys()):
        return f"{name} is not in {HASHES}"
    for name, expected in hashes.items():
        if name.startswith(below) and file_sha256(checkpoint / name) != expected:
            return f"{name} does not match its hash"
    return None
