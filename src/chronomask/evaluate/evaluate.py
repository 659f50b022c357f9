"""Evaluating a model: every task is checked before any runs, every result is written as soon as it is known.

An evaluation that was interrupted continues where it stopped: results that are there already, of the same
weights, data and recipe, are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from traceback import clear_frames
from typing import Any

from chronomask.errors import ChronomaskError, DataError, RunError, UsageError, shown
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.task import Task
from chronomask.evaluate.tasks import make_tasks
from chronomask.progress import say
from chronomask.runs.layout import RunFolder, model_in
from chronomask.runs.result import TaskResult
from chronomask.storage import as_a_shell_has_it, make_folder, refuse_file
from chronomask.yardsticks import losses_in_words

__all__ = ["OtherResult", "check_tasks", "default_out", "evaluate", "results_table"]

logger = logging.getLogger(__name__)


def evaluate(
    model: Subject | str | Path,
    tasks: Sequence[Task[Any]] | Sequence[str] | str,
    task_data: str | Path,
    seeds: int | Iterable[int] = 1,
    out: str | Path | None = None,
    *,
    force: bool = False,
    progress: bool = True,
) -> list[TaskResult]:
    """Results of every task with every seed, those that were in ``out`` already included.

    ``model``: a run folder (its newest checkpoint), a checkpoint, a model folder or a hub name;
    ``tasks``: tasks, or names of tasks and families as a list or as in "glue,squad"; ``task_data``: folder
    with the tasks' files; ``seeds`` of fine-tuning: a number of them, from 0 on, or the seeds themselves,
    but a task that draws nothing is run once; ``out``: folder of the results, by default that of
    :func:`default_out`. ``force`` replaces results.

    Raises UsageError or DataError, naming everything that is wrong, before any work; UsageError for
    results in ``out`` of another model, data or recipe, unless ``force`` replaces them. Raises RunError,
    with the scores, where a result cannot be written.
    """
    tasks = _find_tasks(tasks)
    if isinstance(model, str | Path):
        model = find_subject(str(model))
    if not isinstance(model, Subject):
        raise UsageError(
            f"the model is {model!r}; give the path of a run, of a checkpoint or of a model folder, or "
            "a hub name"
        )
    seeds = _find_seeds(seeds)
    task_data = as_a_shell_has_it(task_data)
    out = default_out(model) if out is None else as_a_shell_has_it(out)
    refuse_file(out, "what an evaluation writes")
    wanted = list(_units(tasks, seeds))
    check_tasks(model, tasks, task_data, progress=progress)
    there = {} if force else _read_existing(model, task_data, wanted, out)
    if len(there) < len(wanted):
        make_folder(out)  # before hours of work, and not when their first result is there
    results = []
    for number, (task, seed) in enumerate(wanted, 1):
        result = there.get((task.name, seed))
        kept = result is not None
        if result is None:
            result = _run(task, model, task_data, seed, progress)
            try:
                result.save(out)
            except RunError as error:  # the numbers may have taken hours
                raise RunError(f"{error}. What it was to hold: {_in_line(result)}") from error
        results.append(result)
        if progress:
            done = "already evaluated" if kept else f"{result.seconds:.0f} s"
            line = f"[{number}/{len(wanted)}] {_in_line(result)}  ({done})"
            say(line)
    if said := _describe_left_out(results):
        logger.warning("%s", said)
    if lost := [result for result in results if not result.is_finite]:
        names = ", ".join(dict.fromkeys(result.task for result in lost))
        logger.warning(
            "%s: no score, for what %s gives is not finite (NaN or infinite), as of a model that has "
            "diverged, or whose weights or config hold such a number",
            names, model.name,
        )  # fmt: skip
    return results


def _run(task: Task[Any], model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
    """One result; raises RunError where memory is too little, with the settings that take less, and for texts
    that the architecture cannot take.
    """
    from chronomask.model.attention import without_cudnn  # brings torch, as tasks that run do
    from chronomask.model.device import choose_device, refuse_emulation, use_own_cores
    from chronomask.model.isolation import isolation

    settings = task.config.to_dict()
    if "precision" in settings:
        device = choose_device(settings.get("device", "auto"))
        refuse_emulation(device, settings["precision"], f"--set {task.name}.precision=fp32")
    try:
        with isolation(), without_cudnn():  # a model's own attention may be given a mask
            use_own_cores()
            return task.run(model, task_data, seed, progress)
    except Exception as error:
        from chronomask.model.device import memory_lacking
        from chronomask.model.open import fault_of_architecture

        if (why := memory_lacking(error)) is None:
            if model.step is not None and not model.path.is_dir():
                raise RunError(_of_removed(model, task)) from error
            if (fault := fault_of_architecture(error)) is None:
                raise
            raise RunError(
                f"{task.name}: {model.name} is of type '{model.config.model_type}', and transformers' code "
                f"of it cannot take these rows ({fault}): evaluate another model, or leave the task out"
            ) from error
        clear_frames(error.__traceback__)  # which hold tensors
        # None means that the task chooses the size by the device or the rows, which gives more than this.
        least = {"batch_tokens": 1024, "batch_rows": 1}
        ways = [
            f"--set {task.name}.{name}={least[name] if size is None else size // 2}"
            for name, size in settings.items()
            if name.startswith("batch_") and size != 1
        ]
        mend = f"{' or '.join(ways)} takes less"
        if not ways:
            mend = "end what else has memory there, or evaluate a smaller model"
        raise RunError(f"{task.name}: there is too little memory ({why}): {mend}") from error


def _of_removed(model: Subject, task: Task[Any]) -> str:
    """What is said where a run has removed the checkpoint that is evaluated."""
    return (
        f"{task.name}: the checkpoint {model.path.parent} was removed while it was evaluated, as a run that "
        "trains removes older ones: evaluate the run again once it has ended, or let it keep them all "
        "(pretrain --resume --set checkpoint.keep=all)"
    )


def _in_line(result: TaskResult) -> str:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    return f"{result.task} seed {result.seed}: {scores}"


def _describe_left_out(results: Iterable[TaskResult]) -> str:
    """What the tasks left out of their files or cut, by reason; empty where they used everything."""
    found = dict.fromkeys(
        f"{count:,} {reason} ({result.task})"
        for result in results
        for reason, count in result.left_out.items()
    )
    return f"left out: {'; '.join(found)}" if found else ""


def _find_tasks(tasks: Sequence[Task[Any]] | Sequence[str] | str) -> list[Task[Any]]:
    """Tasks as they are, or those of names and families; raises UsageError for anything else."""
    given = tasks.split(",") if isinstance(tasks, str) else list(tasks)
    if all(isinstance(task, str) for task in given):
        return make_tasks([name for task in given if (name := str(task).strip())])
    found = [task for task in given if isinstance(task, Task)]
    if len(found) < len(given):
        raise UsageError("tasks are names such as 'cola', or what make_tasks gives, and not both")
    return found


def _find_seeds(seeds: Any) -> list[int]:
    """The seeds, each once; raises UsageError for what are none."""
    if isinstance(seeds, Integral) and int(seeds) >= 1:
        return list(range(int(seeds)))
    found: list[Any] = list(seeds) if isinstance(seeds, Iterable) else [None]
    if not found or not all(isinstance(seed, Integral) for seed in found):  # numpy's numbers too
        raise UsageError(
            f"seeds is {shown(seeds)}; give how many there are to be, 1 or more, or whole numbers as a list"
        )
    return list(dict.fromkeys(map(int, found)))


def default_out(model: Subject) -> Path:
    """``<run>/results/step-…`` for a checkpoint of a run, ``results/<model name>`` otherwise.

    The weights as trained, where there are averaged ones beside them, have the folder ``transformers`` in it.
    """
    if model.run is not None:
        results = RunFolder(model.run).results_of(model.step or 0)
        main = model_in(model.path.parent) == model.path
        return results if main else results / model.path.name
    return Path("results") / Path(model.name).resolve().name


def results_table(results: Sequence[TaskResult]) -> str:
    """Mean and, where there are several seeds, standard deviation of every metric, as text; of yardsticks a
    table by groups and classes of words below it.
    """
    by_task: dict[str, list[TaskResult]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    lines = []
    for task, of_task in by_task.items():
        for metric in of_task[0].metrics:
            values = [result.metrics[metric] for result in of_task]
            mean = sum(values) / len(values)
            spread = ""
            if len(values) > 1:
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                spread = f" ± {variance**0.5:.4f}"
            seeds = f"{len(values)} seeds" if len(values) > 1 else "1 run"
            lines.append((task, metric, f"{mean:.4f}{spread}", seeds))
    details = [of_task[0].details for of_task in by_task.values()]
    tables = [
        losses_in_words(_yardsticks_of(own, "loss"), _yardsticks_of(own, "count"))
        for own in details
    ]
    return "\n\n".join(map(_in_columns, [lines, *filter(None, tables)]))


def _yardsticks_of(details: Mapping[str, float], kind: str) -> dict[str, float]:
    start = f"yardstick_{kind}/"
    return {key.removeprefix(start): own for key, own in details.items() if key.startswith(start)}


def _in_columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _units(tasks: Sequence[Task[Any]], seeds: Iterable[int]) -> Iterator[tuple[Task[Any], int]]:
    """Each task with each seed; what draws nothing once."""
    seeds = list(seeds)
    for task in tasks:
        for seed in seeds if task.draws else [0]:
            yield task, seed


def check_tasks(
    model: Subject, tasks: Sequence[Task[Any]], task_data: Path, *, progress: bool = False
) -> None:
    """Check all tasks; raises one UsageError or DataError that names the problem of each."""
    problems: dict[str, ChronomaskError] = {}
    for task in tasks:
        try:
            task.check_long(model, task_data, progress)
        except (UsageError, DataError) as error:
            problems[task.name] = error
    if not problems:
        return
    fine = [task.name for task in tasks if task.name not in problems]
    named: dict[str, list[str]] = {}  # by what is wrong
    for name, error in problems.items():
        named.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
    listing = "; ".join(f"{', '.join(names)}: {text}" for text, names in named.items())
    way_out = f". Nothing is wrong with: --tasks {','.join(fine)}" if fine else ""
    kind = UsageError if any(isinstance(e, UsageError) for e in problems.values()) else DataError
    raise kind(listing + way_out)


class OtherResult(UsageError):
    """A result is there that was made otherwise than the one that is asked for: what differs."""

    def __init__(self, difference: str) -> None:
        self.difference = difference
        super().__init__(f"{difference}: choose another --out, or replace it with --force")


def _read_existing(
    model: Subject, task_data: Path, wanted: Sequence[tuple[Task[Any], int]], out: Path
) -> dict[tuple[str, int], TaskResult]:
    """Results that are there and are what would be made; raises UsageError for others."""
    there = {}
    digests: dict[str, str] = {}
    for task, seed in wanted:
        path = TaskResult.path_in(out, task.name, seed)
        if not path.is_file():
            continue
        result = TaskResult.load(path)
        differing = [] if result.model_sha256 == model.sha256 else ["weights"]
        if result.setup_sha256 not in ("", model.setup_sha256):
            differing.append("config or tokenizer")
        if task.name not in digests:
            digests[task.name] = task.data_sha256(task_data)
        if result.data_sha256 != digests[task.name]:
            differing.append("data")
        differing += [f"recipe.{name}" for name in task.differing_settings(result)]
        if differing:
            raise OtherResult(
                f"{path} already exists and was made with other {', '.join(differing)} (of {result.model})"
            )
        there[task.name, seed] = result
    return there
