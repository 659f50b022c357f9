"""A study as units of work: prepare, pretrain (arm, seed), evaluate (arm, seed, step, task, task seed).

A unit is complete when its mark is there: the data's manifest, a run's summary, a result that loads.
There is no other record of progress, so a study continues from the contents of its folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.task import Task, is_hub
from chronomask.folders import is_prepared_data
from chronomask.report.comparison import FILE
from chronomask.runs.layout import RunFolder, step_name
from chronomask.runs.result import TaskResult, versions_here
from chronomask.storage import read_object
from chronomask.study.arms import Arm
from chronomask.study.config import StudyConfig
from chronomask.study.settings import as_setting_of_task
from chronomask.train.config import RunConfig

__all__ = [
    "START_KEYS",
    "Study",
    "Unit",
    "check_shared_start",
    "check_task_data",
    "check_versions",
    "data_folder",
    "start_of",
    "steps_of",
]

START_KEYS = ("initial_weights_sha256", "data_fingerprint")
"""What a run notes of what it starts from, in its environment."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One independent piece of work; ``number`` names it within its study."""

    number: int
    kind: Literal["prepare", "pretrain", "evaluate"]
    arm: str = ""
    seed: int = 0
    task: str = ""
    task_seed: int = 0
    step: int = 0
    needs: tuple[int, ...] = ()
    """numbers of the units that must be complete before"""

    def __str__(self) -> str:
        if self.kind == "prepare":
            return "prepare"
        run = f"{self.arm}, seed {self.seed}"
        if self.kind == "pretrain":
            return f"pretrain {run}"
        return f"evaluate {run}, step {self.step}: {self.task}, seed {self.task_seed}"


@dataclass(frozen=True)
class Study:
    """A study's config with its arms resolved and its tasks made, and the folder it lives in."""

    config: StudyConfig
    folder: Path
    arms: dict[str, Arm]
    tasks: dict[str, Task[Any]]
    units: tuple[Unit, ...]

    @property
    def data(self) -> Path:
        """The folder of prepared data that all runs share."""
        return data_folder(self.config, self.folder)

    def task_data(self, task: str) -> Path:
        """Folder with a task's files: for one of prepared data the study's own, unless another is named for
        the task, or the folder of all tasks holds some under the name of its family.
        """
        given, its = self.config.data_of(task), self.tasks[task]
        named = self.config.tasks[task].data is not None
        there = is_prepared_data(given / its.family)
        return self.data if its.of_prepared_data and not (named or there) else given

    def run_of(self, arm: str, seed: int) -> RunFolder:
        """The run of an arm and a seed, begun or not."""
        return RunFolder(self.folder / "runs" / arm / f"seed-{seed}")

    def run_config(self, unit: Unit) -> RunConfig:
        """What a unit trains. Raises UsageError where the run whose weights it takes is not complete."""
        arm = self.arms[unit.arm]
        source = None if arm.weights_of is None else self.run_of(arm.weights_of, unit.seed)
        return arm.run_config(unit.seed, source)

    def lineage(self, arm: str) -> list[str]:
        """An arm, behind those whose weights it needs; the first of them needs none."""
        source = self.arms[arm].weights_of
        return [*(() if source is None else self.lineage(source)), arm]

    def run(self, unit: Unit) -> RunFolder:
        """The run that a unit trains or evaluates."""
        return self.run_of(unit.arm, unit.seed)

    def result(self, unit: Unit) -> Path:
        """The file that an evaluation leaves."""
        return TaskResult.path_in(self.run(unit).results_of(unit.step), unit.task, unit.task_seed)

    def log(self, unit: Unit) -> Path:
        """What a unit printed; named by what it does, as numbers change where a study grows."""
        logs = self.folder / "logs"
        if unit.kind == "prepare":
            return logs / "prepare.log"
        of_run = logs / unit.arm / f"seed-{unit.seed}"
        if unit.kind == "pretrain":
            return of_run / "pretrain.log"
        return of_run / step_name(unit.step) / f"{unit.task}-seed{unit.task_seed}.log"

    def is_complete(self, unit: Unit) -> bool:
        """Whether the unit's mark is there. Raises DataError for a mark that is damaged."""
        if unit.kind == "prepare":
            return self.config.prepare is None or is_prepared_data(self.data)
        if unit.kind == "pretrain":
            return self.run(unit).read_summary() is not None
        path = self.result(unit)
        if not path.is_file():
            return False
        if changed := self.tasks[unit.task].differing_settings(TaskResult.load(path)):
            task = self.tasks[unit.task].config
            back = ", or set the recipe back" if {*changed} <= {*task.to_dict()} else ""
            raise UsageError(
                f"{path} was made with another recipe ({', '.join(changed)}): delete the results of this "
                f"task to make them again{back}{self.ways_to_see_it()}"
            )
        return True

    def ways_to_see_it(self) -> str:
        """The end of a refusal: how what was compared before is looked at; "" where nothing was."""
        if not (self.folder / FILE).is_file():
            return ""
        again = shlex.join(["chronomask", "report", str(self.folder)])
        return f"; {again} draws the comparison that is there"

    def left_over(self) -> str:
        """A sentence about runs in the folder that are of no arm and seed of the study; "" without any.

        They stay where an arm or a seed is taken out of a study.
        """
        own = {self.run(unit).path for unit in self.units if unit.kind == "pretrain"}
        found = sorted((self.folder / "runs").glob("*/seed-*"))
        names = [str(path.relative_to(self.folder)) for path in found if path not in own]
        if not names:
            return ""
        return (
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} of no arm and seed of this study, and "
            "left out: add them to the study again to compare them, or remove them."
        )

    def in_order(self) -> list[Unit]:
        """Units as they are best done, so that what the study is about is known as early as can be.

        Arms of the declared contrasts come before all others, each time seed by seed: the baseline, without
        which nothing is compared, then the pairs in turn. An arm follows those whose weights it needs.
        """
        kinds, config = ("prepare", "pretrain", "evaluate"), self.config
        pairs = config.contrasts or [(arm, config.baseline) for arm in self.arms]
        tested = self._in_turn(
            [config.baseline, *(arm for pair in pairs for arm in reversed(pair))]
        )
        arms = self._in_turn([*tested, *self.arms])

        def place(unit: Unit) -> tuple[int, ...]:
            if unit.kind == "prepare":
                return (-1,)
            place_of_arm = arms.index(unit.arm)
            return (
                place_of_arm >= len(tested),
                config.seeds.index(unit.seed),
                place_of_arm,
                kinds.index(unit.kind),
                unit.number,
            )

        return sorted(self.units, key=place)

    def _in_turn(self, arms: Iterable[str]) -> list[str]:
        """Each arm once, where it or an arm that needs its weights is first named."""
        return list(dict.fromkeys(own for arm in arms for own in self.lineage(arm)))


def check_task_data(study: Study, *, from_hub: bool = True) -> None:
    """Read the files of every task once; raises one error that names all that is missing, or that is not
    what the results in the study's folder were made with.

    ``from_hub``: also data sets on the hub, which are loaded from there.
    """
    problems, ways_out = [], []
    made_with = _data_of_results(study)
    for name, task in study.tasks.items():
        data = study.task_data(name)
        if not from_hub and is_hub(data):
            continue
        if data == study.data and not is_prepared_data(data):
            continue  # the study prepares it
        try:
            there = task.data_sha256(data)
            for digest, path in made_with.get(name, {}).items():
                if digest != there:
                    raise DataError(
                        f"{path} was made with other data than lies in {data}: give the folder that it was "
                        "made with, or remove the results of this task to make them again"
                    )
        except (UsageError, DataError) as error:
            problems.append(f"{name}: {as_setting_of_task(str(error), name)}")
            own = study.config.tasks[name].data is not None
            ways_out.append(f"--set {f'tasks.{name}.data' if own else 'task_data'}=FOLDER")
    if problems:
        ways = " and ".join(dict.fromkeys(ways_out))
        gives = "gives" if len(set(ways_out)) == 1 else "give"
        raise UsageError(f"{'; '.join(problems)}. {ways} {gives} another folder")


def _data_of_results(study: Study) -> dict[str, dict[str, Path]]:
    """Task → hash of the data that results in the study's folder were made with → one of these results."""
    found: dict[str, dict[str, Path]] = {}
    for unit in study.units:
        if unit.kind == "evaluate" and study.is_complete(unit):
            path = study.result(unit)
            found.setdefault(unit.task, {}).setdefault(TaskResult.load(path).data_sha256, path)
    return found


def check_versions(study: Study, waiting: Iterable[Unit]) -> None:
    """Raise UsageError if what ``waiting`` would add could not be compared with what is there: runs, and
    results of one task, are compared of one version alone.
    """
    waiting = list(waiting)
    made: dict[Path, Mapping[str, str]] = {}
    if any(unit.kind == "pretrain" for unit in waiting):
        for unit in study.units:
            noted = _noted_by(study.run(unit)) if unit.kind == "pretrain" else None
            if noted is not None:
                made[study.run(unit).path] = noted.get("versions", {})
    tasks = {unit.task for unit in waiting if unit.kind == "evaluate"}
    for unit in study.units:
        if unit.task in tasks and study.is_complete(unit):
            made[study.result(unit)] = TaskResult.load(study.result(unit)).versions
    here = versions_here()
    others = {path: other for path, noted in made.items() if (other := _differing(noted, here))}
    if others:
        first, *more = others
        and_more = f" and {len(more):,} more of the study's runs and results" if more else ""
        raise UsageError(
            f"other versions made {first}{and_more} ({'; '.join(others[first])}), and what is left to do "
            "could not be compared with that: use those versions, remove what they made to make it again, "
            f"or give another --out{study.ways_to_see_it()}"
        )


def _differing(noted: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Packages of another version than ``here``; the build of one, such as ``+cu128``, may differ."""
    return [
        f"{name} {noted[name]} there, {own} here"
        for name, own in here.items()
        if name in noted and noted[name].partition("+")[0] != own.partition("+")[0]
    ]


def _noted_by(run: RunFolder) -> dict[str, Any] | None:
    """What a run noted of machine and start; raises DataError, with a way out, where it is damaged."""
    try:
        return read_object(run.environment)
    except DataError as error:
        raise DataError(f"{error}; {run.put_back()}") from None


def start_of(run: RunFolder) -> dict[str, Any]:
    """What a run started from, as it noted it: hash of its weights, fingerprint of its data; empty before."""
    noted = _noted_by(run)
    return {} if noted is None else {key: noted.get(key) for key in START_KEYS}


def check_shared_start(study: Study, seed: int) -> None:
    """Raise RunError if runs of a seed did not start alike: from other weights, or on other data.

    Arms that declare ``model`` may start from weights of their own.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, arm in study.arms.items():
        own_model = any(field == "model" or field.startswith("model.") for field in arm.declared)
        for what, value in start_of(study.run_of(name, seed)).items():
            if value is None or (own_model and what == "initial_weights_sha256"):
                continue
            first, expected = found.setdefault(what, (name, value))
            if value != expected:
                raise RunError(
                    f"arms '{first}' and '{name}' of seed {seed} do not start alike: {what} is "
                    f"{expected[:12]}… and {value[:12]}…. Remove the run made elsewhere, with another "
                    "version or on other data, and train it again"
                )


def steps_of(config: StudyConfig, arm: Arm, task: str) -> list[int]:
    """Checkpoints of an arm that are evaluated on a task, the last included."""
    last = arm.config.steps
    curve = config.curve_steps if config.tasks[task].curve else ()
    return sorted({step for step in curve if step < last} | {last})


def data_folder(config: StudyConfig, folder: Path) -> Path:
    """Where the data that all runs share lie: prepared in the study's folder, or named by the study."""
    return folder / "data" if config.prepare is not None else Path(str(config.base["data"]))
