"""``chronomask evaluate``: one model, or a run's checkpoints; ``compare``: several models."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chronomask.cli.options import Quiet, config_flag
from chronomask.cli.output import tell
from chronomask.errors import UsageError

if TYPE_CHECKING:
    from chronomask.evaluate.task import Task

_RUN = "Several checkpoints of a run"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="Run folder (its newest checkpoint), checkpoint, model folder, or hub name.",
        ),
    ],
    tasks: Annotated[
        str,
        typer.Option(metavar="LIST", help="Tasks and families, such as glue,squad or cola,rte."),
    ],
    task_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Files of the tasks; 'hub' takes GLUE and SQuAD from the Hugging Face hub. The task mlm "
            "takes the run's own prepared data where no folder is named, or one without prepared data.",
        ),
    ] = None,
    old_data: Annotated[Path | None, typer.Option("--data", hidden=True)] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Fine-tuning seeds: 0 to N − 1.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Where results go; by default RUN/results/step-… or results/MODEL.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        config_flag(
            "KEY=VALUE",
            "Change settings of tasks: epochs=1 for all, mrpc.epochs=5 or squad.stride=64 for some.",
            "--set",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Examples of each part to use, for a quick look."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace existing results.")] = False,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Every N-th checkpoint of a run, into OUT/step-…; 1 is all.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            help="Processes, each with one checkpoint at a time.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
    quiet: Quiet = False,
) -> None:
    """Measure a model on downstream tasks: one result file per task and seed."""
    if old_data is not None:
        raise UsageError(
            f"--data {old_data}: the tasks' files are named with --task-data; --data is prepared data, "
            "which evaluate does not take"
        )
    from chronomask.evaluate.tasks import make_tasks

    names = tuple(filter(None, map(str.strip, tasks.split(","))))
    overrides = list(overrides or [])
    chosen = make_tasks(names, overrides, limit)
    looking = [task for task in chosen if not task.names_its_data]
    of_prepared_data = all(task.of_prepared_data for task in looking)
    if task_data is not None and not of_prepared_data:
        own = list(_prepared_elsewhere(looking, task_data, Path(model)))
        overrides += own
        chosen = make_tasks(names, overrides, limit) if own else chosen
    if task_data is None and not looking:
        task_data = Path()  # in which nothing is looked for
    elif task_data is None and of_prepared_data:
        task_data = _data_of_run(Path(model), "--task-data ")
    if task_data is None:
        from chronomask.evaluate.subject import find_subject

        if Path(model).exists():
            find_subject(model)  # what is no model has no tasks' files
        elif of_prepared_data:
            raise UsageError(
                f"{model} is not a folder here, so there is no run whose data it could be measured on: "
                "name a run's folder, or the prepared data with --task-data FOLDER"
            )
        raise UsageError("name the folder of the tasks' files: --task-data FOLDER")
    if workers != 1 and every is None:
        raise UsageError(
            "--workers applies only with --every: a single model is evaluated by one process"
        )
    if every is not None:
        from chronomask.evaluate.curve import Plan, evaluate_curve
        from chronomask.evaluate.evaluate import results_table

        plan = Plan(names, task_data, seeds, tuple(overrides), limit, force)
        run = Path(model)
        place = out or run / "results"
        curve = evaluate_curve(run, plan, place, every=every, workers=workers, progress=not quiet)
        for step, of_step in curve.items():
            tell(f"step {step:,}\n{results_table(of_step)}")
        tell(f"results: {place}")
        return

    from chronomask.evaluate.evaluate import default_out, results_table
    from chronomask.evaluate.evaluate import evaluate as run_evaluate
    from chronomask.evaluate.subject import find_subject

    for task in chosen:
        task.check_packages()  # before a model is looked for
    subject = find_subject(model)
    folder = out or default_out(subject)
    results = run_evaluate(
        subject, chosen, task_data, range(seeds), folder, force=force, progress=not quiet
    )
    tell(results_table(results))
    tell(f"results: {folder}")


def compare(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS",
            help="Folders that evaluate wrote, a model each, or runs (the newest of their results).",
        ),
    ],
    every_metric: Annotated[
        bool, typer.Option("--every-metric", help="Not the primary metric of each task alone.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="As CSV, a line a model and metric.")] = False,
) -> None:
    """Print the results of several models side by side."""
    from chronomask.report.compare import compare as table_of

    if markdown and csv:
        raise UsageError("--markdown and --csv: choose one of them")
    table = table_of(results, every_metric=every_metric)
    tell(table.csv() if csv else table.markdown() if markdown else table)
    if csv:
        tell("\n".join(table.notes), end="", aside=True)


def _prepared_elsewhere(tasks: Sequence[Task[Any]], task_data: Path, model: Path) -> Iterator[str]:
    """For each task of prepared data that beside those of others has none: the override that names the run's.

    Raises UsageError where the model is of no run.
    """
    from chronomask.evaluate.task import folder_of
    from chronomask.folders import is_prepared_data

    for task in tasks:
        place = folder_of(task_data, task.family)
        if not task.of_prepared_data or is_prepared_data(place):
            continue
        setting = f"{task.name}.{task.data_setting}="
        data = _data_of_run(model, f"--set {setting}")
        if data is None and not model.exists() and len(model.parts) != 2:
            continue  # nor is it a hub's: that there is no such model is said when it is opened
        if data is None:
            raise UsageError(
                f"{task.name}: {place} is not prepared data, and {model} is of no run that has its own: "
                f"name it with --set {setting}FOLDER"
            )
        yield setting + json.dumps(str(data), ensure_ascii=False)


def _data_of_run(model: Path, flag: str) -> Path | None:
    """The prepared data of the run that a model is or is a checkpoint of; None of no run.

    ``flag``: what other data are named with.
    Raises UsageError for a run on a mixture, and for data that are gone.
    """
    from chronomask.runs.layout import RunFolder
    from chronomask.train.config import RunConfig

    for path in (model, *model.absolute().parents[:3]) if model.exists() else ():
        run = RunFolder(path)
        if run.config.is_file() and run.checkpoints.is_dir():
            run.check_config()
            config = RunConfig.of_run(run)
            paths = config.at(run).data_paths
            first, *others = paths
            if others:
                raise UsageError(
                    f"{run.path} was trained on a mixture of {', '.join(paths)}: name the part to measure it "
                    f"on, such as {flag}{shlex.quote(first)}"
                )
            if not Path(first).exists():
                raise UsageError(
                    f"{first}, which {run.path} was trained on, is not there: if it was moved, give "
                    f"{flag}FOLDER"
                )
            return Path(first)
    return None
