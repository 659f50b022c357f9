"""What stands side by side in a comparison: runs by arm and seed, and the results of their evaluations.

From a study, or from run folders that need not be of one. What is not there yet is said, and the rest is
compared on the seeds that all arms have. Runs and results of a study that differ in what is not compared
are refused; of other runs that is said beside the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chronomask.errors import DataError, RunError
from chronomask.report.arms import group_by_arm
from chronomask.report.comparison import first_few, flatten, join_words
from chronomask.runs.layout import RunFolder, step_of
from chronomask.runs.read import Run, progress_of_reading, read_run
from chronomask.runs.result import TaskResult, read_results
from chronomask.study.notices import (
    branch_notices,
    data_notices,
    device_notices,
    few_notices,
    repetition_notices,
    seeds_in_words,
    without_copies,
)
from chronomask.study.units import START_KEYS, Study, check_shared_start, steps_of

__all__ = [
    "ArmRuns",
    "Gathered",
    "Pair",
    "TaskResults",
    "from_runs",
    "from_study",
]

Pair = tuple[int, int]
"""(pre-training seed, fine-tuning seed)"""
Found = dict[tuple[str, int | None], dict[str, dict[Pair, TaskResult]]]
"""(task, step; None for each arm's last) → arm → seeds → result"""


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """An arm, with its runs by seed."""

    name: str
    masking: Mapping[str, Any]
    differs: Mapping[str, tuple[Any, Any]]
    """dotted field → value of what all arms are compared with, value of this one"""
    equal_labels: str | None
    runs: dict[int, Run]
    complete: bool = True
    """False: none of its runs is, so that it is shown and compared with nothing"""


@dataclass(frozen=True, slots=True)
class TaskResults:
    """A task's results of one checkpoint step: arm → seeds → result."""

    task: str
    step: int | None
    """None: each arm's last, the baseline among them"""
    arms: dict[str, dict[Pair, TaskResult]]
    """of a step of a curve, the arms that have that step"""


@dataclass(slots=True)
class Gathered:
    """All that is compared."""

    baseline: str
    arms: list[ArmRuns]
    final: list[TaskResults]
    curves: list[TaskResults]
    notices: list[str] = field(default_factory=list)
    losses_compare: bool = True
    """False: validation asked the runs different things, as one of the notices says"""

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for arm in self.arms for run in arm.runs.values()]

    def arm(self, name: str) -> ArmRuns:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def versions(self) -> dict[str, Any]:
        """Versions and machine of a study, whose runs all have the same versions.

        Of what runs and results both name, the runs' words stand, which name the build of torch too.
        """
        found: dict[str, Any] = {}
        for run in self.runs:
            found |= run.environment.get("versions", {})
            for key in ("platform", "processor", "device", "device_name", "threads"):
                found.setdefault(key, run.environment.get(key))
        for results in self.final:
            for by_pair in results.arms.values():
                for result in by_pair.values():
                    for name, version in result.versions.items():
                        found.setdefault(name, version)
        return {key: value for key, value in found.items() if value is not None}

    def environments(self) -> dict[str, str]:
        """What runs noted of versions and machines; values that differ between them are all listed."""
        flat = [dict(flatten(run.environment)) for run in self.runs]
        keys = dict.fromkeys(key for values in flat for key in values)
        return {
            key: " | ".join(dict.fromkeys(values[key] for values in flat if key in values))
            for key in keys
        }

    def shared_start(self) -> bool:
        """Whether arms share seeds, and runs of each of these noted the same first weights and data."""
        starts: dict[int, list[tuple[str | None, ...]]] = {}
        for run, seed in ((run, seed) for arm in self.arms for seed, run in arm.runs.items()):
            noted = tuple(run.environment.get(key) for key in START_KEYS)
            starts.setdefault(seed, []).append(noted)
        shared = [found for found in starts.values() if len(found) > 1]
        return bool(shared) and all(
            len(set(found)) == 1 and None not in found[0] for found in shared
        )

    def with_other_weights(self) -> list[str]:
        """The arms of which a run began with other weights than the baseline's of its seed.

        None where starts differ in more than that, or it is not known: where an arm shares no seed with the
        baseline, and where runs of one seed have other data, go on from another step or did not note weights.
        """
        theirs = self.arm(self.baseline).runs
        found = []
        for arm in self.arms:
            starts = [
                (_start_of(run), _start_of(theirs[seed]))
                for seed, run in arm.runs.items()
                if seed in theirs
            ]
            if arm.runs and not starts:
                return []
            for (weights, *rows), (other, *their_rows) in starts:
                if None in (weights, other) or rows != their_rows:
                    return []
            if any(own != other for own, other in starts):
                found.append(arm.name)
        return found


def _start_of(run: Run) -> list[Any]:
    """The hash of the weights that a run began with, then what decides which rows its seed brings when."""
    keys = ("initial_weights_sha256", "data_fingerprint", "branch")
    return [run.environment.get(key) for key in keys]


def from_study(study: Study, *, progress: bool = False) -> Gathered:
    """Everything of a study that is complete; ``progress``: show how far the reading of many runs is.

    Raises DataError or RunError for what cannot be compared.
    """
    arms = [
        ArmRuns(name, arm.config.masking.to_dict(), arm.differs, arm.equal_labels, {})
        for name, arm in study.arms.items()
    ]
    by_name = {arm.name: arm for arm in arms}
    training = [unit for unit in study.units if unit.kind == "pretrain"]
    complete = [unit for unit in training if study.is_complete(unit)]
    with progress_of_reading((study.run(u).path for u in complete), shown=progress) as shown:
        for unit in complete:
            by_name[unit.arm].runs[unit.seed] = read_run(study.run(unit).path, shown)
    gathered = Gathered(study.config.baseline, arms, [], [])
    if not gathered.runs:
        raise RunError(f"no run of {study.folder} is complete: there is nothing to compare yet")
    for seed in study.config.seeds:
        check_shared_start(study, seed)
    _check_runs(gathered.runs)
    still_open = len(training) - len(gathered.runs)
    if still_open:
        gathered.notices.append(
            f"{still_open} of {len(training)} runs are not complete and left out."
        )
    if left_over := study.left_over():
        gathered.notices.append(left_over)
    found, missing = _results_of_study(study, by_name)
    if missing:
        gathered.notices.append(
            f"{missing} results are not there yet; tasks are compared on the seeds that all arms have."
        )
    for task in study.tasks:
        _check_results(task, _all_of(found, task))
        _add(gathered, found, task)
    _note_unlike(gathered)
    return gathered


def from_runs(runs: Sequence[Run]) -> Gathered:
    """Runs of any folders, with what ``chronomask evaluate`` left in them; the first is of the baseline.

    Runs of one arm (see :func:`~chronomask.report.arms.group_by_arm`) that are not complete are left out
    where others are; an arm of unfinished runs alone is shown, and compared with nothing.
    """
    runs, notices = without_copies(runs)
    by_arm = group_by_arm(runs)
    notices += repetition_notices(by_arm)
    arms: list[ArmRuns] = []
    for name, of_arm in by_arm.items():
        complete = {seed: run for seed, run in of_arm.items() if run.summary is not None}
        if complete and len(complete) < len(of_arm):
            unfinished = ", ".join(str(seed) for seed in of_arm if seed not in complete)
            notices.append(f"“{name}”: the unfinished runs of seeds {unfinished} are left out.")
        kept = complete or of_arm
        first = next(iter(kept.values()))
        masking = first.config.get("masking")
        arms.append(
            ArmRuns(
                name, masking if isinstance(masking, dict) else {}, {}, None, kept, bool(complete)
            )
        )
        notices += [f"“{run.name}”: {notice}." for run in kept.values() for notice in run.notices]
    arms = _with_differences(arms)
    gathered = Gathered(arms[0].name, arms, [], [], notices)
    found = _results_of_runs(arms)
    for task in dict.fromkeys(task for task, _ in found):
        try:
            _check_results(task, _all_of(found, task))
        except DataError as error:
            notices.append(f"Task {task} is left out: {error}.")
            continue
        _add(gathered, found, task)
        notices += _not_shared(gathered, found.get((task, None), {}), task)
    _note_unlike(gathered)
    return gathered


def _not_shared(
    gathered: Gathered, arms: Mapping[str, Mapping[Pair, TaskResult]], task: str
) -> list[str]:
    """A notice of the results of a task, each arm's last, that are not compared because others lack them."""
    kept = next((own.arms for own in gathered.final if own.task == task), {})
    left_out = {
        f"“{name}” seed {seed}, fine-tuning seed {own}": result
        for name, by_pair in arms.items()
        for (seed, own), result in by_pair.items()
        if (seed, own) not in kept.get(name, {}) and result.is_finite
    }
    if not left_out:
        return []
    title = next(iter(left_out.values())).title
    return [
        f"{title} is compared on the seeds that all arms have; left out: "
        f"{join_words(first_few([*left_out]))}."
    ]


def _note_unlike(gathered: Gathered) -> None:
    """Add notices of runs whose losses or times do not compare, or rest on too little."""
    found = data_notices(gathered.runs)
    gathered.losses_compare = not found
    gathered.notices += [
        *branch_notices({arm.name: arm.runs for arm in gathered.arms}),
        *found,
        *device_notices(gathered.runs),
        *few_notices(gathered.runs),
    ]


def _with_differences(arms: Sequence[ArmRuns]) -> list[ArmRuns]:
    """The arms with the fields in which each differs from the first, as texts; its name is none of them."""
    several = any(len(arm.runs) > 1 for arm in arms)
    ignored = {"name", "seed"} if several else {"name"}
    flat = [dict(flatten(next(iter(arm.runs.values())).config)) for arm in arms]
    base = flat[0]
    return [
        ArmRuns(
            arm.name,
            arm.masking,
            {
                key: (base.get(key), own.get(key))
                for key in sorted(base.keys() | own.keys())
                if key not in ignored and base.get(key) != own.get(key)
            },
            arm.equal_labels,
            arm.runs,
            arm.complete,
        )
        for arm, own in zip(arms, flat, strict=True)
    ]


def _results_of_study(study: Study, arms: Mapping[str, ArmRuns]) -> tuple[Found, int]:
    """What complete runs were evaluated on, and how many results are missing."""
    found: Found = {}
    missing = 0
    for unit in study.units:
        if unit.kind != "evaluate":
            continue
        if unit.seed not in arms[unit.arm].runs or not study.is_complete(unit):
            missing += 1
            continue
        result = TaskResult.load(study.result(unit))
        on_curve = len(steps_of(study.config, study.arms[unit.arm], unit.task)) > 1
        last = study.arms[unit.arm].config.steps
        for step in _places(unit.step, last, on_curve=on_curve):
            by_arm = found.setdefault((unit.task, step), {})
            by_arm.setdefault(unit.arm, {})[unit.seed, unit.task_seed] = result
    return found, missing


def _places(step: int | None, last: int, *, on_curve: bool) -> list[int | None]:
    """Where the result of a step belongs: to the curve, to the final comparison (None), or to both."""
    return ([step] if on_curve else []) + ([None] if step == last else [])


def _results_of_runs(arms: Iterable[ArmRuns]) -> Found:
    """What is in the runs' own folders of results."""
    found: Found = {}
    for arm in arms:
        for seed, run in arm.runs.items():
            if run.summary is None:
                continue
            folder = RunFolder(run.path)
            last = int(run.total("steps"))
            steps = [step for path in folder.results.glob("*") if (step := step_of(path))]
            for step in sorted(steps):
                for result in read_results([folder.results_of(step)]):
                    for place in _places(step, last, on_curve=len(steps) > 1):
                        by_arm = found.setdefault((result.task, place), {})
                        by_arm.setdefault(arm.name, {})[seed, result.seed] = result
    return found


def _all_of(found: Found, task: str) -> list[TaskResult]:
    return [
        result
        for (name, _), arms in found.items()
        if name == task
        for by_pair in arms.values()
        for result in by_pair.values()
    ]


def _add(gathered: Gathered, found: Found, task: str) -> None:
    """Add the task's final results and its curve, on the seeds that all arms share.

    Results that are NaN are left out, with a notice.
    """
    of_task = {step: arms for (name, step), arms in found.items() if name == task}
    finite = {
        step: {
            name: {pair: result for pair, result in by_pair.items() if result.is_finite}
            for name, by_pair in arms.items()
        }
        for step, arms in of_task.items()
    }
    if common := _common(finite.pop(None, {}), gathered.baseline):
        gathered.final.append(TaskResults(task, None, common))
    gathered.curves += [
        TaskResults(task, step, arms)
        for step, arms in _common_at_steps(finite, gathered.baseline).items()
        if step is not None
    ]
    for name in dict.fromkeys(name for arms in of_task.values() for name in arms):
        seeds = {
            seed
            for arms in of_task.values()
            for (seed, _), result in arms.get(name, {}).items()
            if not result.is_finite
        }
        if seeds:
            title = _all_of(found, task)[0].title
            gathered.notices.append(
                f"{title}: “{name}” has a result that is no number with {seeds_in_words(sorted(seeds))}, "
                f"as of a model that has diverged. The task is compared without it, on the seeds "
                "that are left."
            )


def _common_at_steps(
    steps: Mapping[int | None, dict[str, dict[Pair, TaskResult]]], baseline: str
) -> dict[int | None, dict[str, dict[Pair, TaskResult]]]:
    """Of each step, the arms that have it, on the seeds that these share there.

    Where the baseline does not have it, as beyond its end, an arm has the seeds that it shares with the
    baseline at any other step.
    """
    found = {step: _common(arms, baseline) for step, arms in steps.items()}
    shared: dict[str, set[Pair]] = {}
    for arms in found.values():
        for name, by_pair in arms.items():
            shared.setdefault(name, set()).update(by_pair)
    for step, arms in steps.items():
        if not arms.get(baseline):
            own = {
                name: {pair: arms[name][pair] for pair in arms[name] if pair in pairs}
                for name, pairs in shared.items()
                if name in arms
            }
            first = next((name for name, by_pair in own.items() if by_pair), baseline)
            found[step] = _common(own, first)
    return {step: arms for step, arms in found.items() if arms}


def _common(
    arms: dict[str, dict[Pair, TaskResult]], baseline: str
) -> dict[str, dict[Pair, TaskResult]]:
    """The arms on the seeds that all of them have; empty if the baseline has none.

    - An arm that shares no fine-tuning seed, or no pre-training seed, with the baseline is left out.
    - Fine-tuning seeds: those that each of the other arms has.
    - Pre-training seeds: those that have all of these fine-tuning seeds in each arm.
    """
    theirs = {task_seed for _, task_seed in arms.get(baseline, {})}
    if not theirs:
        return {}
    of_arm = {name: {own for _, own in by_pair} for name, by_pair in arms.items()}
    wanted = set.intersection(*(own for own in of_arm.values() if own & theirs))

    def whole(by_pair: dict[Pair, TaskResult]) -> set[int]:
        seeds = {seed for seed, _ in by_pair}
        return {seed for seed in seeds if all((seed, own) in by_pair for own in wanted)}

    kept = {name: whole(by_pair) for name, by_pair in arms.items()} if wanted else {}
    kept = {name: seeds for name, seeds in kept.items() if seeds & kept[baseline]}
    if not kept:
        return {}
    common = set.intersection(*kept.values())
    return {
        name: {
            (seed, own): result
            for (seed, own), result in arms[name].items()
            if seed in common and own in wanted
        }
        for name in kept
        if common
    }


def _check_runs(runs: Sequence[Run]) -> None:
    """Refuse runs of several versions or data sets."""
    _check_known_versions(runs)
    _check_same([(str(run.path), run.environment.get("versions")) for run in runs], "versions")
    fingerprints = [(str(run.path), (run.summary or {}).get("data_fingerprint")) for run in runs]
    _check_same(fingerprints, "prepared data")


def _check_known_versions(runs: Sequence[Run]) -> None:
    """Refuse runs of unknown versions beside those of known ones."""
    unknown = [run.path for run in runs if not run.environment.get("versions")]
    if unknown and len(unknown) < len(runs):
        folder = RunFolder(unknown[0])
        raise DataError(
            f"{folder.environment} is lost or names no versions, and runs are compared of one version alone: "
            f"{folder.put_back()}"
        )


def _check_results(task: str, results: Sequence[TaskResult]) -> None:
    """Refuse results of one task that were not made alike."""
    for what in ("versions", "data_sha256", "recipe", "primary", "num_examples"):
        _check_same([(_where(r), getattr(r, what)) for r in results], what, task)


def _where(result: TaskResult) -> str:
    """Which result it is: its file, as its model may have been moved since."""
    return str(result.path or f"{result.model}, seed {result.seed}")


def _check_same(values: Sequence[tuple[str, Any]], what: str, task: str | None = None) -> None:
    """Raise DataError unless all values are equal."""
    if not values:
        return
    first, expected = values[0]
    for name, value in values[1:]:
        if _as_text(value) != _as_text(expected):
            subject = f"results of task '{task}'" if task else "runs"
            raise DataError(
                f"{subject} of different {what} cannot be compared: {_differing(expected, value)} "
                f"({first} against {name}). Remove those made otherwise and make them again"
            )


def _differing(left: Any, right: Any) -> str:
    if isinstance(left, dict) and isinstance(right, dict):
        keys = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
        return "; ".join(f"{k} is {left.get(k)!r} and {right.get(k)!r}" for k in sorted(keys))
    return f"{left!r} and {right!r}"


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
