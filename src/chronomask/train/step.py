"""One step: rows are drawn and masked, the device is asked for everything, and then its numbers are read.

On a CUDA device the host only queues work and is ahead of what is computed. Nothing waits until the update is
queued; then, while the device works, the masks of the next step are drawn (:func:`draw_ahead`). Where masking
learns from losses they need those of this step, which are known before its last backward pass ends. Then all
of the next step is queued (:func:`queue_ahead`), so that the device works while this step's numbers are read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch

from chronomask.errors import RunError
from chronomask.masking.tally import class_sums, class_tally
from chronomask.model.device import Reading, beside
from chronomask.model.flops import lengths_in
from chronomask.model.head import padded_size
from chronomask.processes import StopRequest
from chronomask.runs.rules import progress as progress_at
from chronomask.train.determinism import seed_dropout
from chronomask.train.distributed import World
from chronomask.train.dump import not_finite
from chronomask.train.forward import Part, Predictions, parts_of, tally_losses
from chronomask.train.run import Run, is_due
from chronomask.train.sharding import gradient_norm
from chronomask.train.state import State
from chronomask.train.updates import update
from chronomask.types import Rows

__all__ = [
    "Drawn",
    "Queued",
    "Step",
    "Sums",
    "compile_ahead",
    "draw",
    "draw_ahead",
    "finish",
    "queue",
    "queue_ahead",
    "queue_update",
    "read",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The micro-batches of a step, masked and on the device."""

    parts: list[Part]
    progress: float
    tokens: int
    """of this process's rows, without padding"""
    waited: float
    """seconds until the rows were there"""


def draw(run: Run, step: int, progress: float, world: World, upcoming: Iterator[Rows]) -> Drawn:
    """Take the rows of a 0-based step and mask them with what masking has learnt by now."""
    config, began = run.config, time.perf_counter()
    rows = next(upcoming)
    waited = time.perf_counter() - began
    if run.foresight is not None:
        rows = run.foresight.attach(rows, step, world)
    # A sharded model must run equally often in every process: the process with the fewest rows decides.
    number = world.least(rows.num_rows) if run.sharded else rows.num_rows
    most = config.sizes.parts_at(step, config.micro_batches)
    with beside(world.device):
        parts = parts_of(
            run.forward, rows, run.masker, config.objective, progress, min(most, number)
        )
    tokens = int(np.count_nonzero(rows.input_ids != run.forward.pad_token_id))
    return Drawn(parts, progress, tokens, waited)


def compile_ahead(run: Run, progress: float, part: Part) -> None:
    """Compile the head for every number of predictions that the ratio leads to from ``progress`` on.

    Otherwise a ratio that moves would stop a compiled run for it in the middle. A micro-batch of the first
    step is computed with other numbers of predictions; what comes of it is thrown away. Nothing is done where
    the ratio is not known beforehand.
    """
    forward, ratio, batch = run.forward, run.config.masking.ratio, part.batch
    if forward.compiled is None or part.causal or not ratio.known_before or not batch.num_predicted:
        return
    tokens, maskable = batch.input_ids.numel(), batch.num_predicted / batch.masking_ratio
    asked = [ratio.at(max(progress, k / 200)) for k in range(201)]
    # A per cent to either side: a step does not meet its ratio to the token.
    numbers = {round(maskable * each * by) for each in asked for by in (0.99, 1.01)}
    sizes = {padded_size(min(max(number, 1), tokens), tokens) for number in numbers}
    for size in sorted(sizes - {padded_size(batch.num_predicted, tokens)}):
        spread = torch.arange(size, device=batch.positions.device) * tokens // size
        targets = batch.targets[spread % batch.num_predicted]
        few = replace(batch, positions=spread, targets=targets)
        forward.losses(replace(part, batch=few))[0].sum().backward()
        # At once: where CUDA graphs are recorded, the next one may not add to what this one gave.
        forward.model.zero_grad(set_to_none=True)


@dataclass(slots=True)
class Sums:
    """What the device was asked about a step, over all processes."""

    tallies: Reading
    """float64 [3, C + 1 + V], as :func:`~chronomask.masking.tally.class_sums` has them: by class, of causal
    rows and, where content is learnt by token, of every token; there before the last backward pass"""
    ending: Reading
    """float64 [4]: gradient norm, whether all is finite, whether the step is left out, mean of log² Z"""
    losses: list[torch.Tensor]
    """[N] of each micro-batch, on the device"""
    finite: torch.Tensor
    """bool, 0-d, on the device: whether loss and gradient norm are"""
    before: dict[str, torch.Tensor] | None = None
    """the masker's state before it learnt from the tallies; None while it has not"""


@dataclass(frozen=True, slots=True)
class Queued:
    """A step whose work is queued; numbers are sums over all processes."""

    drawn: Drawn
    predictions: Predictions
    tokens: int
    maskable: int
    masking_ratio: float
    """asked for in the rows that are masked; 0 where none is"""
    learning_rate: float
    rate_factor: float | None
    sums: Sums | None
    """None where nothing is predicted and nothing is updated"""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step leaves for the log; numbers are sums over all processes."""

    progress: float
    masking_ratio: float
    """asked for in the rows that are masked; 0 where none is"""
    masking_ratio_achieved: float
    causal_share: float
    """share of the rows that are causal"""
    loss: float | None
    learning_rate: float
    rate_factor: float | None
    """what labels made of the learning rate; None where it does not follow them"""
    gradient_norm: float | None
    z_loss: float | None
    """what was added to the loss that is minimised"""


def queue(
    run: Run,
    step: int,
    world: World,
    stop: StopRequest,
    drawn: Drawn,
    unread: Sums | None = None,
) -> Queued | None:
    """Ask the device for all of a 0-based step; None, and nothing is asked, if a process is to stop or
    could not write its last checkpoint.

    ``unread``: of the step before, where it is not known yet whether it failed.
    """
    config, parts = run.config, drawn.parts
    masked = [part for part in parts if not part.causal]
    *counts, maskable, tokens, ratio_sum, stopping = world.totals(
        *astuple(Predictions.of(parts)),
        sum(int(np.count_nonzero(part.rows.word_id >= 0)) for part in masked),
        drawn.tokens,
        sum(part.batch.masking_ratio * part.rows.num_rows for part in masked),
        stop.signal_number != 0 or run.saver.failed,
    )
    if stopping:
        return None
    predictions = Predictions(*counts)
    rate, factor = config.learning_rate.at(step, config.steps), None
    if run.mean_labels is not None:
        labels = predictions.masked + predictions.causal
        factor = config.learning_rate.factor(labels, run.mean_labels)
        rate *= factor
    sums = None
    if predictions.any:  # with nothing to predict there is no update; the schedules go on
        sums = queue_update(run, step, world, parts, predictions, rate, unread)
    return Queued(
        drawn=drawn,
        predictions=predictions,
        tokens=int(tokens),
        maskable=int(maskable),
        masking_ratio=ratio_sum / predictions.masked_rows if predictions.masked_rows else 0.0,
        learning_rate=rate,
        rate_factor=factor,
        sums=sums,
    )


def queue_update(
    run: Run,
    step: int,
    world: World,
    parts: Sequence[Part],
    predictions: Predictions,
    rate: float,
    unread: Sums | None = None,
) -> Sums:
    """Queue forward and backward passes and the update; ``predictions`` are those of all processes.

    If the step before, which is ``unread``, fails, this one changes no weights: the dump has what was before.
    """
    config, masker, forward = run.config, run.masker, run.forward
    first_token = len(run.data.class_names) + 1
    num_tokens = masker.num_feedback_classes if masker.config.content.by_token_id else 0
    tallies = torch.zeros(3, first_token + num_tokens, dtype=torch.float64, device=world.device)
    squares = torch.zeros((), dtype=torch.float64, device=world.device)  # of log Z, their mean
    losses, reading, graphs = [], None, config.compile == "graphs"
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        seed_dropout(config.seed, run.first_step + step, world.rank, number)
        if run.sharded:
            run.sharded.sum_gradients_next(is_last)
        if graphs:  # nothing that earlier graphs gave is looked at again
            torch.compiler.cudagraph_mark_step_begin()
        values, correct, log_z = forward.losses(part)
        # The next micro-batch writes to the memory of graphs again; a dump looks at all of them.
        losses.append(values.detach().clone() if graphs else values.detach())
        tally_losses(tallies[:, :first_token], part, values, correct)
        if num_tokens and not part.causal:
            tokens = masker.feedback_class(part.batch)
            tallies[:, first_token:] += class_sums(tokens, values, correct, num_tokens)
        if is_last:  # on their way before the backward pass, which the next masks need not wait for
            world.sum(tallies)
            reading = Reading(tallies)
        first = [p for p in run.parameters if p.grad is None] if graphs and not is_last else []
        predictions.contribution(part, values, log_z, config.z_loss).backward()
        if run.working_copy:
            run.working_copy.collect()
        else:
            _take_out_of_graphs(first)
        if config.z_loss:
            squares += predictions.mean_square(part, log_z.detach().double())
    assert reading is not None  # a step has rows
    if config.z_loss:
        world.sum(squares)
    if not run.sharded:
        world.sum_gradients(run.parameters)

    norm = gradient_norm([p.grad for p in run.parameters if p.grad is not None])
    finite = _finite(tallies[0, :first_token].sum(), norm)
    leave_out = ~finite  # by the device itself, so that the update is queued at once
    if unread is not None:
        leave_out = leave_out | ~unread.finite
    if config.outliers.judges:
        sums = tallies[0, : first_token - 1].sum(), tallies[0, first_token - 1]
        stands_out = run.outliers.stands_out(predictions.mean_loss(*sums)[1], norm.double())
        leave_out = leave_out if stands_out is None else leave_out | stands_out
    update(run.optimiser, rate, norm, config.gradient_clip, leave_out)
    run.round_weights()
    for parameter in run.parameters:
        parameter.grad = None
    ending = Reading(torch.stack((norm, finite, leave_out, squares)).double())
    return Sums(reading, ending, losses, finite)


def _take_out_of_graphs(parameters: list[torch.nn.Parameter]) -> None:
    """Copy the first gradients of parameters: autograd takes a graph's output as it is for ``grad``; the
    next micro-batch would overwrite it and then add to it (pytorch/pytorch#169545). Those of the last
    micro-batch are used up before a graph runs again.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clone()


def _finite(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """Whether a float64 loss and a float32 norm are finite, bool, 0-d, on their device.

    Their sum is finite where both are, and it is one question instead of two.
    """
    return (loss + norm).isfinite()


def draw_ahead(
    run: Run, state: State, world: World, upcoming: Iterator[Rows], queued: Queued
) -> Drawn | None:
    """The step after ``queued``, drawn while the device computes; None where its masks must wait.

    They wait for the whole step where masking learns from losses and a step may be left out, for a
    validation that the ratio responds to, and for weights that score rows. What masking learns here is
    taken back if the step fails.
    """
    config, masker, step = run.config, run.masker, state.step + 1
    validated = masker.watches_validation and is_due(step, config.validation.every)
    if step == config.steps or validated or run.foresight is not None:
        return None
    masked = int(queued.predictions.masked)
    if masker.needs_feedback and masked and queued.sums is not None:
        if config.outliers.judges:
            return None
        queued.sums.before = {key: value.clone() for key, value in masker.state_dict().items()}
        _learn(run, queued.sums)
    progress = progress_at(config, step, state.masked_tokens + masked)
    return draw(run, step, progress, world, upcoming)


def queue_ahead(
    run: Run, state: State, world: World, stop: StopRequest, queued: Queued, ahead: Drawn | None
) -> Queued | None:
    """The step after ``queued``, queued before the numbers of ``queued`` are read; None where it must wait.

    It waits where its masks do, for outliers, which are judged by the steps before them, and where something
    looks at the weights between the two: a validation, a checkpoint, an average. A request to stop ends it.
    """
    config, step = run.config, state.step + 1
    looked_at = any(is_due(step, each.every) for each in (config.validation, config.checkpoint))
    waits = looked_at or run.average is not None or config.outliers.judges
    if ahead is None or waits or not _computes_behind(world.device):
        return None
    return queue(run, step, world, stop, ahead, queued.sums)


def _computes_behind(device: torch.device) -> bool:
    """Whether work is only queued when it is asked for; a CPU has done it by then."""
    return device.type == "cuda"


def _learn(run: Run, sums: Sums) -> None:
    """Let masking learn from a step's losses; in force for the masks that are drawn after."""
    tallies, num_classes = sums.tallies.wait(), len(run.data.class_names)
    by_token = run.masker.config.content.by_token_id
    run.masker.update(
        class_tally(tallies[:, num_classes + 1 :] if by_token else tallies[:, :num_classes])
    )


def read(
    run: Run,
    state: State,
    world: World,
    parts: Sequence[Part],
    predictions: Predictions,
    sums: Sums,
) -> tuple[float | None, float, float]:
    """Wait for a step, and let masking learn from it: mean loss, gradient norm and z-loss.

    The mean loss is that of masked tokens, without weights, and None where none is masked. Raises RunError
    where a number is not finite.
    """
    norm, is_finite, left_out, mean_square = sums.ending.wait().tolist()
    tallies, num_classes = sums.tallies.wait(), len(run.data.class_names)
    by_class, causal_sum = tallies[:, :num_classes], float(tallies[0, num_classes])
    loss, minimised = predictions.mean_loss(float(by_class[0].sum()), causal_sum)
    if not is_finite:
        if sums.before is not None:
            run.masker.load_state_dict(sums.before)
        raise not_finite(run, state, world, minimised, norm, parts, sums.losses)
    state.window.by_class += by_class
    state.window.causal_loss_sum += causal_sum
    why = run.outliers.remember(minimised, norm)
    if left_out:
        logger.warning("step %s is left out as an outlier: %s", f"{state.step + 1:,}", why)
        state.window.skipped.append(state.step + 1)
    elif predictions.masked and sums.before is None:
        _learn(run, sums)
    return loss, norm, run.config.z_loss * mean_square


def finish(run: Run, state: State, world: World, queued: Queued) -> Step:
    """Wait for a queued step, and count it."""
    drawn, predictions = queued.drawn, queued.predictions
    # Attention of the other processes' rows is estimated by that of this one's.
    flops = world.size * sum(_flops_beside(run, part) for part in drawn.parts)
    loss, norm, z_loss = None, None, None
    if queued.sums is not None:
        loss, norm, z_loss = read(run, state, world, drawn.parts, predictions, queued.sums)
        state.window.flops_of_attention += flops
    else:
        state.window.idle_tokens += queued.tokens
    state.count(
        rows=run.config.sizes.rows_at(state.step),  # whole rows, also where they are cut
        tokens=queued.tokens,
        maskable_tokens=queued.maskable,
        masked_tokens=int(predictions.masked),
        causal_tokens=int(predictions.causal),
    )
    asked = queued.masking_ratio
    missing = 0.0 if predictions.any else asked * (queued.maskable or queued.tokens)
    _check_predicting(state, missing, asked)
    return Step(
        progress=drawn.progress,
        masking_ratio=asked,
        masking_ratio_achieved=predictions.masked / queued.maskable if queued.maskable else 0.0,
        causal_share=predictions.causal_share,
        loss=loss,
        learning_rate=queued.learning_rate,
        rate_factor=queued.rate_factor,
        gradient_norm=norm,
        z_loss=z_loss,
    )


def _flops_beside(run: Run, part: Part) -> int:
    """Operations of a micro-batch that no count of tokens tells: attention, less what late masks skip, and
    the passes that scored its rows.
    """
    pad, scope = run.forward.pad_token_id, run.config.attention
    whole = lengths_in(part.rows, pad, scope)
    flops = run.flops.of_attention(whole, part.batch.num_predicted, causal=part.causal)
    if part.early_lengths is not None:
        for layer in run.layers[: part.inputs["early"].layers]:
            flops -= round(layer.of(whole, 0) - layer.of(part.early_lengths, 0))
    if ahead := run.config.masking.content.look_ahead:  # a forward pass is a third of a step
        flops += round(ahead.passes * run.flops.of(whole, whole.sum() / ahead.passes) / 3)
    return flops


def _check_predicting(state: State, missing: float, ratio: float) -> None:
    """Warn, and then stop, where labels are asked for and there are none; ``missing``: of this step.

    A step or two may have none by chance, where a ratio is small. With 10 labels expected and none drawn it
    is no chance; a step counts for 10 at most, so that ten steps at least were tried. Raises RunError.
    """
    before = state.unpredicted
    state.unpredicted = before + min(missing, 10.0) if missing else 0.0
    what = (
        f"a masking ratio of {ratio:.4g} is asked and nothing is predicted since step "
        f"{state.predicted_step + 1:,}: the rows have no word that may be masked, or the "
        "strategy leaves every one out; chronomask inspect shows both"
    )
    if not missing:
        state.predicted_step = state.step
    elif state.unpredicted >= 100:
        raise RunError(f"stopped after step {state.step:,}: {what}")
    elif before < 10 <= state.unpredicted:
        logger.warning("step %s: %s", f"{state.step:,}", what)
