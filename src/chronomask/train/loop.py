"""The training loop, read top to bottom.

Step s: its rows (a function of data, seed and s) are cut into micro-batches and masked with the step's
ratio and the class weights learned before s, all of them before anything is computed, so that the
number of predicted tokens over all micro-batches and processes is known. Each micro-batch adds the
gradient of (sum of its losses / that number); where masking weighs losses, of their weighted sum divided
by what masking says. Causal rows, where the objective has some, are micro-batches of their own, and their
losses have a mean of their own. A z-loss is added to what is minimised, and to no loss that is logged.
Gradients are summed over processes, clipped and applied, unless one is not finite; losses per class are
pooled and fed back to the masker, in force from s + 1 on.
"""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from signal import SIGTERM
from typing import Any, cast

import numpy as np
import torch

from chronomask.data.order import shorten_rows
from chronomask.errors import RunError, Stopped
from chronomask.masking.tally import class_means
from chronomask.model.attention import without_cudnn
from chronomask.model.device import cuda_graphs, peak_memory, refuse_emulation, use_own_cores
from chronomask.model.flash import own_kernels_after
from chronomask.model.head import compile_budget
from chronomask.model.isolation import isolation
from chronomask.processes import StopRequest, listen
from chronomask.runs.continuation import goes_on, on_trial
from chronomask.runs.held_out import write_rows
from chronomask.runs.layout import TRIAL, RunFolder
from chronomask.storage import AGAIN, as_a_shell_has_it, read_object, remove_all, write_json
from chronomask.text_files import read_text
from chronomask.train import distributed, hours
from chronomask.train.agreement import refuse_other_folder
from chronomask.train.config import RunConfig
from chronomask.train.determinism import determinism
from chronomask.train.distributed import World
from chronomask.train.faults import telling_what_fails
from chronomask.train.log import RunLog
from chronomask.train.memory import (
    telling_of_opening,
    telling_what_takes_less,
    warn_of_little_memory,
)
from chronomask.train.open import compiles, open_run
from chronomask.train.run import Run, is_due
from chronomask.train.state import State
from chronomask.train.step import (
    Step,
    compile_ahead,
    draw,
    draw_ahead,
    finish,
    queue,
    queue_ahead,
)
from chronomask.train.summary import summarise
from chronomask.train.validation import bounds_in_words, plateau_in_words, validate
from chronomask.types import Rows
from chronomask.yardsticks import kept_of

__all__ = ["pretrain"]

logger = logging.getLogger(__name__)

Measured = tuple[dict[str, Any], np.ndarray]
"""What a validation gives: what is logged of it, and the losses of every row."""


def pretrain(
    config: RunConfig | Mapping[str, Any] | str | Path | Sequence[Mapping[str, Any] | str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Train as ``config`` says and keep everything in the folder ``out``; returns the summary.

    ``config``: a config, a dict of its keys, the path of one as YAML, a recipe's name such as
    "bert-small", or a list of these, each changing those before; ``changes``: keys of :class:`RunConfig`
    that differ, such as ``data="data"`` or ``steps=1000``.

    With ``resume`` the run in ``out`` continues from its newest whole checkpoint, as if it had never
    stopped; a run that is complete returns its summary at once. Raises UsageError before any work
    for an invalid config, a folder that holds another run, or a checkpoint of one; RunError
    for a non-finite loss or a full disk; :class:`~chronomask.errors.Stopped` after SIGTERM
    or SIGINT, once the state is saved.
    """
    config = RunConfig.of(config, **changes)
    folder = RunFolder(as_a_shell_has_it(out))
    folder.check_free(resume)
    with (
        isolation(),
        determinism(config.deterministic),
        own_kernels_after(),
        without_cudnn(),  # a model's own attention may be given a mask
        distributed.join(config.device) as world,
        listen() as stop,
        world.hold(folder),
        _saying_how_it_goes_on(folder),
        compile_budget() if compiles(config, world.device) else nullcontext(),
        cuda_graphs() if config.compile == "graphs" else nullcontext(),
    ):
        if config.threads is None:
            use_own_cores()
        else:
            torch.set_num_threads(config.threads)
        config.sizes.refuse_too_few(world.size)
        refuse_emulation(world.device, config.precision, "set precision=fp32")
        found = None
        if config.hours is not None:
            refuse_other_folder(world, folder)
            config, found = _fix_steps(config, folder, world, stop, resume=resume)
        with telling_of_opening(world, folder):
            run, state = open_run(config, folder, world, resume=resume)
        if run.finished is not None:
            if world.is_first:
                logger.warning(
                    "%s has all its steps: nothing is left to train; pretrain --branch %s goes on from them",
                    folder.path, shlex.quote(str(folder.path)),
                )  # fmt: skip
            return run.finished
        if found is None:
            warn_of_little_memory(run, world)
        if found is not None and world.is_first:
            noted = read_object(folder.environment) or {}
            write_json(folder.environment, noted | {"budget": found})
        with world.together():
            log = RunLog(
                run.folder.path,
                step=-1 if run.begins else state.step,
                steps=config.steps,
                name=str(run.config.name),
                active=world.is_first,
                progress=progress,
                loggers=config.loggers,
                config=run.config.to_dict(),
                logged_every=run.logged_every,
            )
        upcoming = cast("Generator[Rows]", iter(run.loader))  # closing it ends the reading threads
        with log, closing(upcoming), closing(run.saver):
            if (entropy := _entropy(run)) is not None:
                log.tell(bounds_in_words(entropy))
            cut = shorten_rows(upcoming, config.length_warmup, state.step)
            with telling_what_fails(run), telling_what_takes_less(run, world):
                _train(run, state, world, stop, log, cut)
            return summarise(run, state, log)


@contextmanager
def _saying_how_it_goes_on(folder: RunFolder) -> Iterator[None]:
    """What a run could not write is told with how the run goes on: the same command again is refused."""
    try:
        yield
    except RunError as error:
        if folder.is_run():
            error.args = (str(error).replace(AGAIN, goes_on()),)
        raise


def _fix_steps(
    config: RunConfig, folder: RunFolder, world: World, stop: StopRequest, *, resume: bool
) -> tuple[RunConfig, dict[str, Any] | None]:
    """The config with the number of steps that ``hours`` gives, and how it was found.

    A run that is resumed has the number that it began with. The first process decides for all. Raises
    UsageError where not one step fits, Stopped where a process is asked to stop meanwhile.
    """
    assert config.hours is not None
    steps = hours.fixed_steps(config, folder) if resume else None
    if steps is not None:
        return config.replace([f"steps={steps}"]), None
    began = hours.clock()
    with on_trial():
        costs = _try_out(config, folder, world, stop)
    left = 3600 * config.hours - (hours.clock() - began)
    own = hours.steps_within(config, costs, left) if world.is_first else 0
    steps = int(world.totals(own)[0])
    found = hours.describe(config, costs, steps)
    return config.replace([f"steps={steps}"]), found


def _try_out(config: RunConfig, folder: RunFolder, world: World, stop: StopRequest) -> hours.Costs:
    """What a run's parts take here, from a trial within its folder that is thrown away."""
    trial = RunFolder(folder.path / TRIAL)
    if world.is_first:
        remove_all(trial.path, ignore_errors=True)
    world.wait()
    chatter, clock = logging.getLogger("chronomask"), hours.clock
    level, thrown_away = chatter.level, True
    chatter.setLevel(logging.ERROR)  # the run itself says it again
    try:
        at = clock()
        with telling_of_opening(world, trial):
            run, state = open_run(hours.trial_config(config), trial, world, resume=False)
        times = [clock() - at]
        chatter.setLevel(level)
        warn_of_little_memory(run, world)
        chatter.setLevel(logging.ERROR)

        def measure(work: Callable[..., object], *arguments: Any, **named: Any) -> object:
            began = clock()
            found = work(*arguments, **named)
            times.append(clock() - began)
            return found

        log = RunLog(
            trial.path, step=-1, steps=config.steps, name="", active=world.is_first, progress=False
        )
        upcoming = cast("Generator[Rows]", iter(run.loader))
        less = telling_what_takes_less(run, world)
        with log, closing(upcoming), closing(run.saver), telling_what_fails(run), less:
            for number in range(hours.TRIAL_STEPS):
                state.step = number * run.config.steps // hours.TRIAL_STEPS
                if measure(_step_alone, run, state, world, stop, upcoming) is None:
                    raise Stopped(
                        f"stopped on request while speed was measured: nothing is trained yet; {goes_on()}",
                        stop.signal_number or SIGTERM,
                    )
            measure(_validate, run, state, log, world)
            measure(_save, run, state, log, world, background=False)
    except RunError:
        thrown_away = False  # it names a dump that lies there; the next start removes it
        raise
    finally:
        chatter.setLevel(level)
        if world.is_first and thrown_away:
            remove_all(trial.path, ignore_errors=True)
    opening, *steps, validation, saving = times
    return hours.Costs.of(config, opening, steps, validation=validation, saving=saving)


def _step_alone(
    run: Run, state: State, world: World, stop: StopRequest, upcoming: Iterator[Rows]
) -> Step | None:
    """A step from its rows to its numbers; None if a process was asked to stop."""
    drawn = draw(run, state.step, state.progress(run.config), world, upcoming)
    queued = queue(run, state.step, world, stop, drawn)
    return None if queued is None else finish(run, state, world, queued)


def _train(
    run: Run,
    state: State,
    world: World,
    stop: StopRequest,
    log: RunLog,
    upcoming: Iterator[Rows],
) -> None:
    """All remaining steps."""
    config = run.config
    if run.forward.compiled is not None:
        log.tell(
            f"compiling the model for {world.device.type} before its first step, which may take minutes"
        )
    if run.begins and config.validation.at_start:
        _validate(run, state, log, world)
    if run.begins and config.checkpoint.at_start:
        _save(run, state, log, world, background=False)
    ahead, queued, first = None, None, True
    while state.step < config.steps:
        began = time.perf_counter()
        if queued is None:
            drawn = ahead or draw(run, state.step, state.progress(config), world, upcoming)
            if first:
                compile_ahead(run, drawn.progress, drawn.parts[0])
                first = False
            queued = queue(run, state.step, world, stop, drawn)
            del drawn  # which would keep this batch on the device
        if queued is None:  # on request, or as a write failed, which this one tells
            _save(run, state, log, world, background=False)
            raise Stopped(
                f"stopped after step {state.step:,} of {config.steps:,} on request; "
                f"the state is saved in {run.folder.path}: {goes_on()}",
                stop.signal_number or SIGTERM,  # another process may be the one that was asked
            )
        ahead = draw_ahead(run, state, world, upcoming, queued)
        following = queue_ahead(run, state, world, stop, queued, ahead)
        waited, step = queued.drawn.waited, finish(run, state, world, queued)
        queued = following  # what it holds of this step on the device is free now
        if run.average is not None:
            run.average.take(state.step, config.steps)
        state.add_time(time.perf_counter() - began, waited)

        last = state.step == config.steps
        metrics = None
        if last or is_due(state.step, config.log_every):
            metrics = _metrics(run, state, step, world)
            log.write("metrics", metrics)
        log.advance(state.step, metrics)
        if last or is_due(state.step, config.validation.every):
            _validate(run, state, log, world)
        if last or is_due(state.step, config.checkpoint.every):
            _save(run, state, log, world, background=config.checkpoint.asynchronous and not last)


def _metrics(run: Run, state: State, step: Step, world: World) -> dict[str, Any]:
    """One line of metrics.jsonl; begins a new window."""
    window, config = state.window, run.config
    flops = window.flops_of_attention
    predicted = window.masked_tokens + window.causal_tokens
    flops += run.flops.per_token * (window.tokens - window.idle_tokens)
    flops += run.flops.per_prediction * predicted
    speed = window.tokens / window.seconds
    rows_left = config.sizes.rows_before(config.steps) - state.rows_seen
    tokens_left = rows_left * state.tokens_seen / state.rows_seen
    rate = flops / (world.size * window.seconds)
    if run.peak_flops:  # what a busy device was measured at, or a config says, may be too little
        run.peak_flops = max(run.peak_flops, rate)
    line: dict[str, Any] = {
        "step": state.step,
        "progress": step.progress,
        "tokens_seen": state.tokens_seen,
        "maskable_tokens": state.maskable_tokens,
        "masked_tokens": state.masked_tokens,
        "masking_ratio": step.masking_ratio,
        "masking_ratio_achieved": step.masking_ratio_achieved,
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "gradient_norm": step.gradient_norm,
        "tokens_per_second": speed,
        "predicted_tokens_per_second": window.masked_tokens / window.seconds,
        "data_wait_share": window.seconds_waiting / window.seconds,
        "mfu": rate / run.peak_flops if run.peak_flops else None,
        "mfu_of_data_sheet": rate / run.data_sheet_flops if run.data_sheet_flops else None,
        "peak_memory_bytes": peak_memory(world.device),
        "seconds": state.seconds,
        "seconds_left": tokens_left / speed if speed else None,
        **class_means(window.by_class, run.data.class_names),
    }
    if step.rate_factor is not None:
        line["rate_factor"] = step.rate_factor
    if config.z_loss:
        line["z_loss"] = step.z_loss
    if run.forward.masks_enter is not None:
        line["masks_enter"] = run.forward.masks_enter(step.progress)
    if config.objective.has_causal_rows:
        number = window.causal_tokens
        line["causal_share"] = step.causal_share
        line["causal_loss"] = window.causal_loss_sum / number if number else None
        line["causal_tokens"] = state.causal_tokens
    if config.outliers.judges:
        line["skipped_steps"] = window.skipped
    weights = run.masker.class_weights()
    if weights is not None:
        line["class_weight"] = weights
        line["content_strength"] = config.masking.content.strength_at(step.progress)
    line |= config.masking.in_force(step.progress)
    state.begin_window()
    return line


def _validate(run: Run, state: State, log: RunLog, world: World) -> None:
    """Validate, log it, and let a responsive ratio see the loss; nothing without held-out rows.

    Where weights are averaged the result is that of the mean; what the weights as trained give goes beside
    it as ``raw_…``, and to the ratio.
    """
    found = _measure(run, world, log.label_of("validation"))
    if found is None:
        return
    result, of_rows = found
    run.masker.observe_validation(result["loss"])
    if run.average is not None:
        raw, (result, of_rows) = result, _measure_average(run, world, found, log)
        state.raw = {"loss": raw["loss"], "accuracy": raw["accuracy"], **kept_of(raw)}
    state.validation_loss, state.validation_accuracy = result["loss"], result["accuracy"]
    state.yardsticks = kept_of(result)
    counted = {
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "masked_tokens": state.masked_tokens,
        "seconds": state.seconds,
    }
    if (entropy := _entropy(run)) is not None:
        counted |= {"unigram_entropy": entropy["unigram"], "bigram_bound": entropy["bigram"]}
    log.write("validation", counted | result)
    if world.is_first:
        write_rows(run.folder.validation_rows, state.step, of_rows)
    if world.is_first and entropy is not None:
        _warn_of_plateau(run, state)


def _entropy(run: Run) -> dict[str, Any] | None:
    """What a run noted of its data's entropy when it began."""
    return (read_object(run.folder.environment) or {}).get("entropy")


def _measure(run: Run, world: World, label: str | None) -> Measured | None:
    """What :func:`validate` says of the model as it is, its progress under ``label``."""
    with telling_what_takes_less(run, world, validating=True):
        return validate(
            run.forward,
            run.validation_masker,
            run.data.split("held_out"),
            run.data.class_names,
            run.config.validation,
            world,
            label=label,
        )


def _measure_average(run: Run, world: World, of_raw: Measured, log: RunLog) -> Measured:
    """The same of the averaged weights, with how many were averaged, and that of the raw ones under its own
    names.
    """
    assert run.average is not None
    with run.average.in_place():
        run.round_weights()
        label = log.label_of("validation of the mean")
        found = (_measure(run, world, label) or of_raw) if run.average.number else of_raw
    run.round_weights()
    (result, of_rows), raw = found, of_raw[0]
    shared = ("masking_ratio", "num_predicted", "class_count", "yardstick_count")
    beside = {f"raw_{key}": value for key, value in raw.items() if key not in shared}
    return {**result, "averaged_steps": run.average.number, **beside}, of_rows


def _warn_of_plateau(run: Run, state: State) -> None:
    """Say past a quarter of the run, and at its end, if it has learnt next to nothing."""
    steps = run.config.steps
    before = state.step - (run.config.validation.every or steps)
    if before < steps / 4 <= state.step or state.step == steps:
        lines = [json.loads(line) for line in read_text(run.folder.validation).splitlines()]
        given = run.config.model.kind == "checkpoint"  # as it is, and not to be built otherwise
        architecture = None if given else run.forward.model.config
        if (said := plateau_in_words(lines, architecture)) is not None:
            logger.warning("%s", said)


def _save(run: Run, state: State, log: RunLog, world: World, *, background: bool) -> None:
    snapshot = run.snapshot(state, copied=background, kept=world.is_first)
    with world.together():
        if snapshot is not None:
            log.sync()
            run.saver.save(snapshot, background=background)
