"""Opens a study: its arms, tasks and units of work; text and runs from before must be what it makes now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from chronomask.config import diff
from chronomask.config_layers import merge, nested
from chronomask.errors import ChronomaskError, DataError, UsageError
from chronomask.evaluate.task import Task
from chronomask.evaluate.tasks import make_task
from chronomask.folders import is_prepared_data, way_to_prepare_again, what_it_is
from chronomask.prepare.config import PrepareConfig
from chronomask.runs.layout import RunFolder
from chronomask.runs.rules import unchangeable
from chronomask.storage import refuse_file, write_text
from chronomask.study import STUDY_FILE, has_lost_its_file, lost_file
from chronomask.study.arms import Arm, resolve_arms
from chronomask.study.config import StudyConfig
from chronomask.study.units import Study, Unit, data_folder, steps_of
from chronomask.train.config import RunConfig, ValidationConfig

__all__ = ["begin", "open_study"]


def open_study(config: StudyConfig, folder: Path) -> Study:
    """The study in ``folder``, new or begun. Raises UsageError for whatever cannot be, before any work.

    A study may grow: arms, seeds and tasks may be added to a folder. Text and runs that are there must have
    been prepared and made with the configs that the study gives them now.
    """
    refuse_file(folder, "a study")
    if folder.exists() and _holds_something_else(folder):
        if has_lost_its_file(folder):
            raise UsageError(lost_file(folder))
        raise UsageError(
            f"{folder} is not empty and holds no study{what_it_is(folder)}; give another --out"
        )
    config = _with_rows_of_runs(config, folder)
    data = data_folder(config, folder)
    if config.prepare is None and not is_prepared_data(data):
        raise UsageError(
            f"base.data is {data}, and {data.absolute()} is not prepared data: run chronomask prepare, or "
            "give the study a 'prepare' section"
        )
    arms = resolve_arms(config, str(data))
    _check_curve_steps(config, arms)
    tasks = {
        name: make_task(name, plan.settings, f"tasks.{name}.settings")
        for name, plan in config.tasks.items()
    }
    study = Study(config, folder, arms, tasks, tuple(_units(config, arms, tasks)))
    _check_text(study)
    for unit in study.units:
        if unit.kind == "pretrain":
            _check_run(study, unit)
    return study


def begin(study: Study) -> None:
    """Write the study's own file into its folder, unless it is there."""
    path, text = study.folder / STUDY_FILE, study.config.to_yaml()
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        write_text(path, text)


def _units(
    config: StudyConfig, arms: dict[str, Arm], tasks: dict[str, Task[Any]]
) -> Iterator[Unit]:
    """Numbered by kind: preparation 0, then every run, then every evaluation."""
    yield Unit(0, "prepare")
    number = 0
    runs: dict[tuple[str, int], int] = {}
    for seed in config.seeds:
        for arm in arms:
            number += 1
            runs[arm, seed] = number
    for (name, seed), run in runs.items():
        source = arms[name].weights_of
        needs = (0,) if source is None else (0, runs[source, seed])
        yield Unit(run, "pretrain", name, seed, needs=needs)
    for (arm, seed), run in runs.items():
        for name, task in tasks.items():
            for step in steps_of(config, arms[arm], name):
                for task_seed in config.seeds_of(name) if task.draws else (0,):
                    number += 1
                    yield Unit(number, "evaluate", arm, seed, name, task_seed, step, needs=(run,))


def _check_curve_steps(config: StudyConfig, arms: dict[str, Arm]) -> None:
    """Refuse steps of which no checkpoint will be there."""
    for name, arm in arms.items():
        every, keep = arm.config.checkpoint.every, arm.config.checkpoint.keep
        steps = arm.config.steps
        saved = {*range(every, steps + 1, every), steps} if every else {steps}
        wanted = [step for step in config.curve_steps if step < steps]
        if missing := [step for step in wanted if step not in saved]:
            raise UsageError(
                f"curve_steps: arm '{name}' saves no checkpoint at {', '.join(map(str, missing))}: "
                f"base.checkpoint.every is {every}"
            )
        needed = sum(step >= min(wanted, default=steps) for step in saved)
        if keep is not None and keep < needed:
            raise UsageError(
                f"curve_steps needs {needed} checkpoints of arm '{name}', and base.checkpoint.keep "
                f"is {keep}: set it to {needed}, or to all"
            )


def _check_text(study: Study) -> None:
    """Refuse text in the study's folder that was prepared with another config."""
    config, file = study.config.prepare, study.data / "config.yaml"
    if config is None or not (is_prepared_data(study.data) and file.is_file()):
        return
    try:
        before = PrepareConfig.load(file)
    except ChronomaskError as error:
        raise DataError(f"{error}; {way_to_prepare_again(study.data)}") from None
    changed = diff(before.without_workers(), config.without_workers())
    if changed:
        listing = "; ".join(
            f"prepare.{k} is {was!r} there, {now!r} now" for k, (was, now) in changed.items()
        )
        raise UsageError(
            f"{study.data} holds the study's text, prepared with another config: {listing}. Set that back, "
            f"or give another --out; to begin anew in this one, remove data and runs in {study.folder}"
        )


def _with_rows_of_runs(config: StudyConfig, folder: Path) -> StudyConfig:
    """The study, whose runs are validated on the held-out rows that those in its folder have, unless it names
    others itself.
    """
    base = nested(config.base)
    if (base.get("validation") or {}).get("order") is not None:
        return config
    for path in sorted((folder / "runs").glob("*/seed-*")):
        run = RunFolder(path)
        if run.is_run() and run.config.is_file():
            before = _config_of(run)
            if before.validation.order is None:
                return config
            order = {"validation": {"order": before.validation.order}}
            return config.model_copy(update={"base": merge(base, order)})
    return config


def _other_rows(before: ValidationConfig, now: ValidationConfig) -> dict[str, tuple[Any, Any]]:
    """In which settings the held-out rows of two runs differ: dotted key → (before, now).

    A run that is resumed alone may change them; runs that are compared must have them alike.
    """
    found: dict[str, tuple[Any, Any]] = {}
    if before.rows != now.rows:
        found["validation.rows"] = before.rows, now.rows
    if before.shuffled != now.shuffled:
        orders = ("shuffled" if each.shuffled else "data" for each in (before, now))
        found["validation.order"] = next(orders), next(orders)
    return found


def _check_run(study: Study, unit: Unit) -> None:
    """Refuse a run folder that was made with another config, or with weights of a run that is not there."""
    run, source = study.run(unit), study.arms[unit.arm].weights_of
    if not run.is_run():
        return
    if source is not None and study.run_of(source, unit.seed).read_summary() is None:
        raise UsageError(
            f"{run.path} holds a run with the weights that arm '{source}' ended with, and "
            f"{study.run_of(source, unit.seed).path} is no finished run: put that one back, or remove both "
            "to train them again"
        )
    before = _config_of(run)
    now = study.run_config(unit)
    of_rows = _other_rows(before.validation, now.validation)
    changed = unchangeable(before, now) | of_rows
    if run.summary.exists():
        changed.pop("micro_batches", None)  # it has ended: no row is cut any more
    if changed:
        listing = "; ".join(
            f"{k} is {was!r} there, {now!r} now" for k, (was, now) in changed.items()
        )
        if study.arms[unit.arm].equal_labels:
            listing += ", as another version may reckon equal_labels otherwise"
        if of_rows:
            same = " and ".join(f"base.{key}: {was}" for key, (was, _) in of_rows.items())
            listing += f" (with {same} in the study all its runs are validated on the same rows)"
        others = {key: was for key, (was, _) in changed.items() if key not in of_rows}
        way_out = ""
        if lines := _advice_to_keep(study, unit, before, others):
            way_out = f"; to keep it, write {lines} in the study"
        way_out += study.ways_to_see_it()
        raise UsageError(
            f"{run.path} holds a run with another config: {listing}. Remove it to train it again, or "
            f"give another --out{way_out}"
        )


def _advice_to_keep(
    study: Study, unit: Unit, before: RunConfig, settings: Mapping[str, Any]
) -> str:
    """Which lines of the study, as words of a sentence, give a run the ``settings`` that it began with,
    dotted key → value, themselves or with all of their group; empty where no lines do.
    """
    groups = {}
    for key in settings:
        group = key.rpartition(".")[0] or key
        groups[group] = reduce(
            lambda values, part: values[part], group.split("."), before.to_dict()
        )
    return _try_lines(study, unit, before, settings) or _try_lines(study, unit, before, groups)


def _try_lines(study: Study, unit: Unit, before: RunConfig, settings: Mapping[str, Any]) -> str:
    """These settings as lines of the study, if they give a run the config that it began with; else empty."""
    arm, config, lines = study.arms[unit.arm], study.config, []
    base, own = dict(config.base), dict(config.arms[unit.arm])
    for key, value in settings.items():
        (own if arm.declares(key) else base)[key] = value
        where = f"arms.{unit.arm}" if arm.declares(key) else "base"
        lines.append(f"{key}: {json.dumps(value)} under {where}")
    arms = {**config.arms, unit.arm: own}
    try:
        tried = config.model_copy(update={"base": base, "arms": arms})
        kept = resolve_arms(tried, str(study.data))[unit.arm].run_config(unit.seed)
    except (ChronomaskError, TypeError):
        return ""
    return "" if unchangeable(before, kept) else " and ".join(lines)


def _config_of(run: RunFolder) -> RunConfig:
    """What a run in the folder was begun with; raises UsageError, with a way out, where that is damaged."""
    run.check_config()
    try:
        return RunConfig.of_run(run)
    except UsageError as error:
        raise UsageError(f"{error}; {run.put_back()}") from None


def _holds_something_else(folder: Path) -> bool:
    return not (folder / STUDY_FILE).is_file() and any(
        not path.name.startswith(".") for path in folder.iterdir()
    )
