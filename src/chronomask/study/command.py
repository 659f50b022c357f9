"""What ``chronomask study``, ``report`` and ``quickstart`` do: text out, refusals before any work."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chronomask import recipes
from chronomask.errors import (
    ChronomaskError,
    OutOfTime,
    RunError,
    UsageError,
    amount,
    check_installed,
    need,
)
from chronomask.folders import what_it_is
from chronomask.locks import lock
from chronomask.progress import be_silent, say
from chronomask.storage import as_a_shell_has_it, refuse_file
from chronomask.study import STUDY_FILE, has_lost_its_file, lost_file

if TYPE_CHECKING:
    from chronomask.config_layers import Layer
    from chronomask.runs.read import Run
    from chronomask.study.config import StudyConfig
    from chronomask.study.execute import Outcome
    from chronomask.study.times import Allowance
    from chronomask.study.units import Study, Unit

__all__ = [
    "plan",
    "quickstart",
    "report",
    "report_in_words",
    "report_of_study",
    "run",
    "status",
    "study",
]

logger = logging.getLogger(__name__)

QUICKSTART = recipes.FOLDER / "study" / "quickstart.yaml"
"""Four arms, one seed, no tasks."""


def study(
    config: StudyConfig | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    workers: int = 1,
    minutes: float | None = None,
    progress: bool = True,
    **changes: Any,
) -> Path:
    """Begin or continue a study in the folder ``out``, compare its arms and write its page; the page's path.

    ``config``: a config, a dict of its keys, the path of one as YAML, or a recipe's name such as "tiny";
    ``changes``: keys of :class:`StudyConfig` that differ, such as ``seeds=(0, 1)``. ``workers``: processes;
    with GPUs each has one of its own, in turn. ``minutes``: what the call may take
    until all units are done; comparing them comes on top of it.

    Raises UsageError before any work for what cannot be compared or done; RunError, once everything else
    is done, if a unit failed; OutOfTime where ``minutes`` were too few, and the same call goes on.
    """
    allowance = _allow(minutes)

    from chronomask.study.config import study_of
    from chronomask.study.open import open_study

    opened = open_study(study_of(config, **changes), as_a_shell_has_it(out))
    _do(opened, opened.in_order(), workers=workers, quiet=not progress, allowance=allowance)
    return _compare_and_write(opened, progress)


def run(
    path: Path | None,
    out: Path,
    *,
    changes: Sequence[Layer] = (),
    workers: int = 1,
    only: str | None = None,
    unit: int | None = None,
    minutes: float | None = None,
    price_per_hour: float | None = None,
    rate: str | None = None,
    quiet: bool = False,
) -> str:
    """What ``chronomask study run`` does and says; without a file, with the study that is in ``out``.

    ``minutes``: what the call may take; ``price_per_hour`` of a device and ``rate`` are for the plan alone.

    Raises as :func:`study` does.
    """
    allowance = _allow(minutes)
    for other, given in (("--only", only), ("--minutes", minutes)):
        if given is not None and unit is not None:
            raise UsageError(f"give one of {other} and --unit")
    study = _open(path, out, changes)

    from chronomask.study.execute import run_one, share_of
    from chronomask.study.open import begin
    from chronomask.study.suitability import check_masking_of_arms
    from chronomask.study.units import check_task_data, check_versions

    if unit is not None:
        check_masking_of_arms(study)
        check_task_data(study)
        own = [one for one in study.units if one.number == unit and not study.is_complete(one)]
        check_versions(study, own)
        if path is not None:  # else others may be at work in the folder: it is only read
            begin(study)
        run_one(study, unit, be_silent if quiet else say)
        return f"done: {study.units[unit]}"
    units = study.in_order() if only is None else share_of(study, only)
    _do(
        study,
        units,
        workers=workers,
        price_per_hour=price_per_hour,
        rate=rate,
        quiet=quiet,
        allowance=allowance,
        again=[*(() if only is None else ("--only", only)), "--workers", str(workers)],
    )
    text = f"{out}: {len(units)} of {len(units)} units complete"
    if only is not None:
        return text
    if allowance is not None and allowance.left <= 0:
        command = shlex.join(["chronomask", "study", "report", str(out)])
        return f"{text}; no time is left to compare them, which  {command}  does"
    return f"{text}\nreport: {_compare_and_write(study, not quiet)}"


def plan(
    path: Path | None,
    out: Path,
    *,
    changes: Sequence[Layer] = (),
    workers: int = 1,
    only: str | None = None,
    minutes: float | None = None,
    price_per_hour: float | None = None,
    rate: str | None = None,
) -> str:
    """What ``chronomask study plan`` says: the plan that ``study run`` begins with. Nothing is written.

    Where files of tasks are missing, the data lack what an arm's masking needs, or other versions made what
    is there, it ends with what ``study run`` would say of that.
    """
    allowance = _allow(minutes)
    study = _open(path, out, changes)

    from chronomask.study.execute import share_of
    from chronomask.study.suitability import check_masking_of_arms
    from chronomask.study.units import check_task_data, check_versions

    units = study.in_order() if only is None else share_of(study, only)
    text = _plan(study, units, workers, price_per_hour, rate, allowance)
    try:
        check_masking_of_arms(study)
        check_task_data(study, from_hub=False)
        check_versions(study, [unit for unit in units if not study.is_complete(unit)])
    except UsageError as error:
        text = f"{text}\nnot ready to run: {error}"
    return text


def status(out: Path) -> str:
    """How far the study in a folder is: a line of sums, then one per arm, with a cell per seed."""
    from chronomask.study.work import has_failed

    study = _open(None, out)
    complete: set[int] = set()
    damaged, failed = [], []
    for unit in study.in_order():
        try:
            if study.is_complete(unit):
                complete.add(unit.number)
            elif has_failed(study, unit):
                failed.append(f"failed last time: {unit} (log: {study.log(unit)})")
        except ChronomaskError as error:
            damaged.append(f"damaged: {unit}: {error}")
    prepared = "prepared" if 0 in complete else "not prepared yet"
    table = [
        ["arm", *(f"seed {seed}" for seed in study.config.seeds)],
        *(
            [arm, *(_cell(study, arm, s, complete) for s in study.config.seeds)]
            for arm in study.arms
        ),
    ]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return "\n".join(
        [
            f"{out}: {len(complete)} of {len(study.units)} units complete; data {prepared}",
            *(
                "  ".join(
                    text.ljust(width) for text, width in zip(row, widths, strict=True)
                ).rstrip()
                for row in table
            ),
            *damaged,
            *failed,
            *filter(None, [study.left_over()]),
        ]
    )


def report_of_study(out: Path) -> Path:
    """Compare what is complete of the study in a folder and write its page; the page's path."""
    return _compare_and_write(_open(None, out), progress=True)


def report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path = "report",
    title: str | None = None,
    reference: str | Path | None = None,
) -> Path:
    """Write the page of runs, one line an arm, or of a study: ``out/report.html``, whose path it returns.

    ``runs``: a run folder or several, the first of them of the baseline; or the folder of a study, drawn as
    it was last compared. ``title``: of the page, else the study's name, or "Masking over training". Beside it
    are the numbers as ``csv/*.csv``. ``reference``: "shipped", or a CSV file of curves to lay under the loss
    (docs/reading-the-report.md).
    The same files give the same bytes. Raises UsageError for no folder, one given
    twice or one that is neither, and DataError for files that cannot be read.
    """
    return _report(runs, as_a_shell_has_it(out), title, reference)[0]


def report_in_words(
    runs: Sequence[Path], out: Path, title: str | None, reference: str | None = None
) -> str:
    """What ``chronomask report`` says: the arms as a table, and the page's path."""
    check_installed("matplotlib", "report", "Drawing a report")
    page, arms = _report(runs, out, title, reference)

    from chronomask.report.arms import arms_table

    return f"{arms_table(arms)}\nreport: {page}" if arms else f"report: {page}"


def quickstart(out: Path, steps: int | None = None, quiet: bool = False) -> str:
    """The study of four arms that needs nothing but this machine; its arms as a table, and its page.

    What is there already is used again, so an interrupted quickstart goes on where it stopped, as the study
    that it was begun as. ``steps``: other ones than those of that study, or of the recipe.
    """
    from chronomask.config_layers import Layer
    from chronomask.report.arms import arms_table
    from chronomask.runs.read import read_run

    changes = []
    if steps is not None:
        every = max(1, steps // 2)
        changes = [Layer(f"--steps {steps}", {"base.steps": steps, "base.validation.every": every})]
    study = _open(None if (out / STUDY_FILE).is_file() else QUICKSTART, out, changes)
    _do(study, study.in_order(), quiet=quiet, shown=not quiet)
    page = _compare_and_write(study, not quiet)
    arms = {
        arm: [read_run(study.run_of(arm, seed).path) for seed in study.config.seeds]
        for arm in study.arms
    }
    return f"{arms_table(arms)}\n\nreport: {page}"


def _open(path: Path | None, out: Path, changes: Sequence[Layer] = ()) -> Study:
    own = out / STUDY_FILE
    if path is None and not own.is_file():
        if has_lost_its_file(out):
            raise UsageError(lost_file(out))
        raise UsageError(
            f"{out} holds no study{what_it_is(out)}; give a recipe, such as tiny, or the study's YAML file"
        )

    from chronomask.study.config import load_study

    config = load_study(own if path is None else path, changes)

    from chronomask.study.open import open_study

    return open_study(config, out)


def _do(
    study: Study,
    units: Sequence[Unit],
    *,
    workers: int = 1,
    price_per_hour: float | None = None,
    rate: str | None = None,
    quiet: bool = False,
    shown: bool = False,
    allowance: Allowance | None = None,
    again: Sequence[str] = (),
) -> None:
    """Do units; ``shown``: a single worker's print to the terminal, not to their logs.

    ``again``: options of the command that goes on where this call ends for lack of time.
    """
    from chronomask.study.open import begin
    from chronomask.study.suitability import check_masking_of_arms
    from chronomask.study.units import check_task_data, check_versions

    if study.config.prepare is not None:
        need("zstandard", "prepare", "Preparing the study's text")
    check_masking_of_arms(study)
    check_task_data(study)
    check_versions(study, [unit for unit in units if not study.is_complete(unit)])

    from chronomask.study.execute import run_study

    text = "" if shown or quiet else _plan(study, units, workers, price_per_hour, rate, allowance)
    if left_over := study.left_over():
        logger.warning("%s", left_over)
    begin(study)
    tell = be_silent if quiet else say
    if text:
        tell(text)
    outcome = run_study(study, units, workers=workers, tell=tell, shown=shown, allowance=allowance)
    ended = None
    if allowance is not None:
        ended = _out_of_time(study, units, outcome, allowance, again)
    if outcome.failed:
        failures = _failures(study, outcome.failed, len(outcome.left_out))
        raise RunError(failures if ended is None else f"{failures}\n{ended}")
    if ended is not None:
        raise ended


def _plan(
    study: Study,
    units: Sequence[Unit],
    workers: int,
    price_per_hour: float | None,
    rate: str | None,
    allowance: Allowance | None,
) -> str:
    """The plan of these units, in words, with what this machine has."""
    from chronomask.study.execute import cuda_devices
    from chronomask.study.plan import plan_in_words
    from chronomask.study.times import given_rates

    return plan_in_words(
        study,
        units,
        workers,
        devices=max(1, len(cuda_devices())),
        price_per_hour=price_per_hour,
        rates=None if rate is None else given_rates(rate),
        allowance=allowance,
    )


def _allow(minutes: float | None) -> Allowance | None:
    """The time of a call, counted from now; refuses what is no time."""
    if minutes is None:
        return None
    if not 0 < minutes < math.inf:
        raise UsageError(f"minutes is {minutes}: give a number above 0, such as 9")

    from chronomask.study.times import Allowance

    return Allowance(60 * minutes)


def _out_of_time(
    study: Study,
    units: Sequence[Unit],
    outcome: Outcome,
    allowance: Allowance,
    again: Sequence[str],
) -> ChronomaskError | None:
    """What is done, what is left and the command that goes on, None if nothing is; an error of use where no
    call of that length would end it.
    """
    from chronomask.runs.layout import checkpoints_in

    left = [unit for unit in units if not study.is_complete(unit)]
    if not left:
        return None
    minutes = f"{allowance.seconds / 60:g}"
    too_long, more = "", minutes
    if outcome.too_long:
        longest, seconds = max(outcome.too_long, key=lambda own: own[1])
        # A twentieth of a call is for ending it; the rest of what is added is for its start.
        more = str(math.ceil(1.2 * seconds / 60))
        too_long = (
            f"; {len(outcome.too_long)} of them are not begun, for they take longer than a call ({longest}: "
            f"about {seconds / 60:.1f} minutes), so give --minutes {more}"
        )
    kinds = Counter(str(unit.kind) for unit in left)
    counts = ", ".join(f"{number:,} to {kind}" for kind, number in kinds.items())
    runs = [study.run(unit).checkpoints for unit in left if unit.kind == "pretrain"]
    begun = sum(bool(checkpoints_in(checkpoints)) for checkpoints in runs)
    saved = f" ({begun:,} begun and saved)" if begun else ""
    command = ["chronomask", "study", "run", "--out", str(study.folder), *again, "--minutes"]
    stuck = len(outcome.too_long) == len(left) and not (outcome.done or outcome.stopped)
    text = (
        f"{study.folder}: {len(units) - len(left):,} of {amount(len(units), 'units')} complete after "
        f"{allowance.used / 60:.1f} of {allowance.length}; left: {counts}{saved}{too_long}. "
        f"It goes on with  {shlex.join([*command, more if stuck else minutes])}"
    )
    return UsageError(text) if stuck else OutOfTime(text)


def _report(
    runs: str | Path | Sequence[str | Path],
    out: Path,
    title: str | None,
    reference: str | Path | None,
) -> tuple[Path, Mapping[str, Sequence[Run]]]:
    """The page, and the runs of each arm; none for a study."""
    from chronomask.report.comparison import FILE, read_curves, told_as_damage

    refuse_file(out, "a report, with report.html and its numbers as csv/*.csv,")
    known = None if reference is None else read_curves(str(reference))
    folders = [
        as_a_shell_has_it(folder) for folder in ([runs] if isinstance(runs, str | Path) else runs)
    ]
    for folder in folders:
        if (folder / FILE).is_file():
            if len(folders) > 1:
                raise UsageError(
                    f"{folder} is a study: its page stands alone. Name its runs to draw them with others, "
                    f"such as {folder / 'runs' / 'ARM' / 'seed-0'}"
                )
            from chronomask.report.page import write_page_of_study

            with told_as_damage(folder / FILE):
                return write_page_of_study(folder, out, known, title, progress=True), {}
        if (folder / STUDY_FILE).is_file():
            raise UsageError(
                f"{folder} is a study that was not compared yet: "
                + shlex.join(["chronomask", "study", "report", str(folder)])
            )
    from chronomask.runs.read import read_runs

    read = read_runs(folders, progress=True)

    from chronomask.report.page import write_page
    from chronomask.study.contrasts import compare_runs

    comparison, arms = compare_runs(read, title or "Masking over training")
    return write_page(comparison, arms, out, known), arms


def _compare_and_write(study: Study, progress: bool) -> Path:
    from chronomask.report.page import write_page_of_study
    from chronomask.study.contrasts import compare_study
    from chronomask.study.gather import from_study

    file = study.folder / STUDY_FILE
    file.open("r+b").close()  # raises where it is gone, or nothing may be written
    # Calls in one folder may end at once, and would write the same files.
    with lock(file, seconds=math.inf):
        gathered = from_study(study, progress=progress)
        compare_study(study, gathered)
        return write_page_of_study(study.folder, read=gathered.runs)


def _cell(study: Study, arm: str, seed: int, complete: set[int]) -> str:
    own = [unit for unit in study.units if (unit.arm, unit.seed) == (arm, seed)]
    training = next(unit for unit in own if unit.kind == "pretrain")
    results = [unit for unit in own if unit.kind == "evaluate"]
    if training.number not in complete:
        step, steps = _last_step(study, training), study.arms[arm].config.steps
        return f"step {step:,} of {steps:,}" if step else "–"
    if not results:
        return "trained"
    done = sum(unit.number in complete for unit in results)
    return f"trained, {done} of {len(results)} results"


def _last_step(study: Study, unit: Unit) -> int:
    """The last logged step of an unfinished run."""
    path = study.run(unit).metrics
    if not path.is_file():
        return 0
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):
            continue  # the last line may be half-written
    return 0


def _failures(study: Study, failed: Sequence[tuple[Unit, str]], left_out: int) -> str:
    lines = [f"{unit}: {why} (log: {study.log(unit)})" for unit, why in failed]
    needing = "unit that needs them was" if left_out == 1 else "units that need them were"
    more = f"; {left_out} {needing} left out" if left_out else ""
    return f"{amount(len(failed), 'units')} failed{more}:\n  " + "\n  ".join(lines)
