"""The command line: one command per room, each a thin call into it.

Exit codes: 0 done; 1 the work failed; 2 the request was wrong; 128 + signal when stopped by one.
Heavy rooms are imported inside their command, so that ``--help`` is instant.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from chronomask.cli import data, study
from chronomask.cli.options import Overrides, Quiet
from chronomask.errors import ChronomaskError, UsageError

__all__ = ["main"]

app = typer.Typer(
    help="Pre-train masked language models with masking that changes over training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(study.app, name="study")


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder to write the prepared data to.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text: .txt (documents separated by blank lines), .jsonl, .parquet, .csv, .tsv or "
            ".conllu, each also .gz, .xz or .zst; files, folders or patterns."
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with a preparation config (configs/prepare/).")
    ] = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes; 0 is one per processor core.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where they run: local, slurm or ray.", show_default="local")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Turn text into tokenised, tagged, packed rows."""
    from chronomask.config import read_yaml
    from chronomask.prepare.config import PrepareConfig
    from chronomask.prepare.pipeline import prepare as run_prepare

    values = read_yaml(config) if config else {}
    if sources:
        values["sources"] = sources
    elif "sources" not in values:
        raise UsageError("nothing to prepare: name text files or folders, or give --config")
    if workers is not None:
        values["workers"] = workers
    chosen = [] if executor is None else [f"executor.kind={executor}"]
    where = str(config or "the command line")
    parsed = PrepareConfig.parse_with(values, [*chosen, *(overrides or [])], where)
    data = run_prepare(parsed, out, force=force, progress=not quiet)
    train = data.split("train")
    print(f"{out}: {train.num_rows:,} rows of {data.row_length} tokens to train on")


@app.command()
def pretrain(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="YAML file with a run config (configs/); with --resume the run's own. Further files "
            "change the first, such as those in configs/arms/."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; needed but for --dry-run.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of prepared data, instead of the config's.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest whole checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print size, work, memory, time and first masks; train and write nothing.",
        ),
    ] = False,
    devices: Annotated[
        int, typer.Option(min=1, help="Of a dry run: devices that share a step.")
    ] = 1,
    flops: Annotated[
        float | None,
        typer.Option(
            min=1, help="Of a dry run: FLOP/s that a device sustains; measured here if not given."
        ),
    ] = None,
    row_length: Annotated[
        int | None, typer.Option(min=8, help="Of a dry run without data: tokens of a row (512).")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Pre-train a masked language model."""
    from chronomask.config import read_configs
    from chronomask.train.config import RunConfig
    from chronomask.train.loop import pretrain as run_pretrain

    configs = configs or []
    if out is None and not dry_run:
        raise UsageError("give a folder for the run: --out RUN")
    if not configs:
        if out is None or not resume or not (out / "config.yaml").is_file():
            raise UsageError("give a run config, such as configs/bert-tiny.yaml")
        configs = [out / "config.yaml"]
    values = read_configs(configs)
    if data is not None:
        values["data"] = str(data)
    where = ", ".join(map(str, configs))
    parsed = RunConfig.parse_with(values, overrides or [], where=where)
    if dry_run:
        from chronomask.train.dry_run import as_text
        from chronomask.train.dry_run import dry_run as look_ahead

        print(
            as_text(
                look_ahead(parsed, devices=devices, flops_per_second=flops, row_length=row_length)
            )
        )
        return
    assert out is not None
    summary = run_pretrain(parsed, out, resume=resume, progress=not quiet)
    if summary:
        loss = summary["validation_loss"]
        shown = "no held-out rows" if loss is None else f"{loss:.4f}"
        print(f"{out}: {summary['steps']:,} steps; validation loss at 15 %: {shown}")
        print(f"model: {out / summary['checkpoint'] / 'transformers'}")


@app.command()
def replay(
    dump: Annotated[
        Path, typer.Argument(help="Folder dump/step-… of a run that met a non-finite number.")
    ],
    device: Annotated[str, typer.Option(help="Where to compute it: cpu or cuda.")] = "cpu",
) -> None:
    """Compute again the step at which a run stopped for a loss or gradient that was not finite."""
    from chronomask.train.dump import replay as replay_step

    step = replay_step(dump, device)
    print(f"step {step.step:,}: loss {step.loss}, gradient norm {step.gradient_norm}")
    rows = ", ".join(map(str, step.rows)) or "none: a gradient overflowed"
    print(f"rows with a loss that is not finite: {rows}")


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="Run folder (its newest checkpoint), checkpoint, model folder, or hub name.",
        ),
    ],
    tasks: Annotated[str, typer.Option(help="Tasks and families, such as glue,squad or cola,rte.")],
    data: Annotated[
        Path, typer.Option(help="Folder of the tasks' files; 'hub' takes GLUE and SQuAD by name.")
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Fine-tuning seeds: 0 to one less.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; else RUN/results/step-… or results/MODEL."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a recipe: epochs=1 for all, mrpc.epochs=5 or squad.stride=64 for some.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many examples of each part, for a quick look.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Every so many checkpoints of a run, into OUT/step-…; 1 is all."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes, a checkpoint each; with --every.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace results that are there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on downstream tasks: one result file per task and seed."""
    names = tuple(filter(None, map(str.strip, tasks.split(","))))
    if every is not None:
        from chronomask.evaluate.curve import Plan, evaluate_curve
        from chronomask.evaluate.evaluate import results_table

        plan = Plan(names, data, seeds, tuple(overrides or ()), limit, force)
        run = Path(model)
        place = out or run / "results"
        curve = evaluate_curve(run, plan, place, every=every, workers=workers, progress=not quiet)
        for step, of_step in curve.items():
            print(f"step {step:,}\n{results_table(of_step)}")
        print(f"results: {place}")
        return
    if workers != 1:
        raise UsageError("--workers has no effect without --every: one model is one process")
    from chronomask.evaluate.evaluate import default_out, results_table
    from chronomask.evaluate.evaluate import evaluate as run_evaluate
    from chronomask.evaluate.subject import find_subject
    from chronomask.evaluate.tasks import make_tasks

    chosen = make_tasks(names, overrides or [], limit)
    subject = find_subject(model)
    folder = out or default_out(subject)
    results = run_evaluate(
        subject, chosen, data, range(seeds), folder, force=force, progress=not quiet
    )
    print(results_table(results))
    print(f"results: {folder}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to compare.")],
    out: Annotated[
        Path, typer.Option(help="Folder (or .html file) to write the report to.")
    ] = Path("report"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Masking over training",
) -> None:
    """Draw runs: one self-contained HTML page, and every plotted number as CSV."""
    from chronomask.report.page import write_report
    from chronomask.report.tables import arms_table

    page = write_report(list(runs), out, title)
    print(arms_table(list(runs)))
    print(f"report: {page}")


@app.command()
def inspect(
    text: Annotated[str | None, typer.Argument(help="Text to show masking on.")] = None,
    file: Annotated[Path | None, typer.Option(help="Text file to show masking on.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared data: its tokenizer, and its rows without a text.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows of the data to show.")] = 2,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Tokenizer folder; without one every word is a token.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(help="Run or masking config; repeatable to see several side by side."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder: its config, and its class weights over time.")
    ] = None,
    overrides: Overrides = None,
    progress: Annotated[
        str, typer.Option(help="Moments of training to show, between 0 and 1.")
    ] = "0,0.5,1",
    out: Annotated[Path | None, typer.Option(help="Write the picture to this .html file.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Keys the masks shown.")] = 0,
) -> None:
    """Show what masking does to a text, at the start, in the middle and at the end of training."""
    from chronomask.show.show import Request, inspect_masking

    request = Request(
        text=text,
        file=file,
        data=data,
        rows=rows,
        tokenizer=tokenizer,
        configs=tuple(config or ()),
        run=run,
        overrides=tuple(overrides or ()),
        progress=progress,
        seed=seed,
    )
    print(inspect_masking(request, out, colour=sys.stdout.isatty()))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path(
        "runs/quickstart"
    ),
    steps: Annotated[int, typer.Option(min=20, help="Optimiser steps of each arm.")] = 360,
    quiet: Quiet = False,
) -> None:
    """Train four arms on English text that is already on this machine, and compare them."""
    from chronomask.study.quickstart import quickstart as run_quickstart

    print(run_quickstart(out, steps=steps, progress=not quiet))


def main() -> None:
    """Entry point: deliberate refusals become one message on stderr and an exit code."""
    # Threads that wait without spinning: on a shared machine spinning ones starve everybody.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except ChronomaskError as error:
        print(f"chronomask: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
