"""Loss on held-out rows: at a fixed 15 %, uniform over tokens, and on every yardstick.

The masks are keyed by row and by nothing of the run, so the losses of two runs on the same data are
those of the same predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import ceil
from typing import Any

import numpy as np
import torch

from chronomask.config import kind_of
from chronomask.data.folder import PreparedSplit
from chronomask.data.loader import rows_of_pass, validation_batches
from chronomask.data.mixture import MixedSplit
from chronomask.errors import UsageError
from chronomask.masking.masker import Masker
from chronomask.masking.tally import class_means, class_sums
from chronomask.masking.yardsticks import masker_of
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.plateau import still_since, what_helped
from chronomask.train.config import RunConfig, ValidationConfig
from chronomask.train.distributed import World
from chronomask.train.forward import Forward
from chronomask.types import MaskedBatch, Rows
from chronomask.yardsticks import (
    FEW_PREDICTIONS,
    VALIDATION_RATIO,
    YARDSTICKS,
    expected_predictions,
    few_in_words,
    results_of,
    telling_predictions,
)

__all__ = [
    "bounds_in_words",
    "expect_few",
    "expect_no_response",
    "plateau_in_words",
    "validate",
    "warn_of_few",
    "warn_of_other_rows",
]

logger = logging.getLogger(__name__)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # other shapes than training's: not worth compiling
def validate(
    forward: Forward,
    masker: Masker,
    split: PreparedSplit | MixedSplit,
    class_names: Sequence[str],
    config: ValidationConfig,
    world: World,
    *,
    label: str | None = None,
) -> tuple[dict[str, Any], np.ndarray] | None:
    """Loss (nats per predicted token), accuracy, both per class, and the yardsticks of
    :func:`~chronomask.yardsticks.results_of`; with what :func:`~chronomask.runs.held_out.write_rows` keeps of
    every row, float64 [6, 2, rows]. None without held-out rows.

    Every process takes its share of the batches; all get the result. ``masker``: from
    :func:`~chronomask.masking.masker.fixed_masker`. ``label``: what its progress is called, which counts
    the rows of all processes and every pass over them; None shows none.
    """
    shape = (1 + len(YARDSTICKS), 3, len(class_names))
    sums = torch.zeros(shape, dtype=torch.float64, device=world.device)
    num_rows = min(config.rows, split.num_rows)
    of_rows = torch.zeros((shape[0], 2, num_rows), dtype=torch.float64, device=world.device)
    forward = replace(forward, compiled=None, tokens=None)
    forward.model.eval()
    batches = _batches(masker, split, config)
    total = num_rows + sum(yardstick.num_rows(num_rows) for yardstick in YARDSTICKS)
    with NOT_SHOWN if label is None else Progress(label, total, "rows", brief=True) as shown:
        while turn := list(islice(batches, world.size)):
            # Left without a batch in the last turn, a process runs one again: if the model is shared out,
            # the others need it to.
            which, first, rows, batch = turn[min(world.rank, len(turn) - 1)]
            part = forward.place(rows, batch)
            loss, correct, _ = forward.losses(part)
            if world.rank < len(turn):
                sums[which] += class_sums(part.batch.target_class, loss, correct, len(class_names))
                place = first + part.batch.positions // rows.row_length
                of_rows[which] += class_sums(place, loss, correct, num_rows)[:2]
            shown.advance(sum(part_rows.num_rows for _, _, part_rows, _ in turn))
    forward.model.train()
    sums, of_rows = world.sum(sums).cpu(), world.sum(of_rows).cpu()
    loss_sum, count, correct_sum = sums[0].sum(1).tolist()
    if not count:
        return None
    values = {
        "masking_ratio": VALIDATION_RATIO,
        "loss": loss_sum / count,
        "accuracy": correct_sum / count,
        "num_predicted": int(count),
        **class_means(sums[0], class_names),
        **results_of(sums[1:], class_names),
    }
    return values, of_rows.numpy()


def warn_of_few(
    masker: Masker, split: PreparedSplit | MixedSplit, config: ValidationConfig
) -> None:
    """Warn where fewer rows are held out than asked, or where the loss at the fixed ratio or the mean of the
    yardsticks rests on too few predictions to tell much; ``masker``: as for :func:`validate`.
    """
    if not split.num_rows:
        logger.warning(
            "no rows of the data are held out, so nothing is validated: prepare the text with held_out: 0.05"
        )
        return
    if split.num_rows < config.rows:
        logger.warning(
            "validation.rows asks for %s held-out rows, and the data has %s: all of them are used; "
            "prepare with a larger held_out for more",
            f"{config.rows:,}",
            f"{split.num_rows:,}",
        )
    numbers = [0] * (1 + len(YARDSTICKS))
    for which, _, _, batch in _batches(masker, split, config):
        numbers[which] += batch.num_predicted
    at_ratio, *others = numbers
    few = few_in_words(at_ratio, others)
    if few is None or not at_ratio:
        return
    times = FEW_PREDICTIONS / max(1, telling_predictions(at_ratio, others))
    needed = ceil(1.05 * times * min(config.rows, split.num_rows))  # rows are not all alike
    logger.warning(
        "%s. About %s held-out rows are enough for that and for the mean of the yardsticks: %s",
        few,
        f"{needed:,}",
        f"set validation.rows={needed}"
        if needed <= split.num_rows
        else f"prepare more text, or a larger held_out, for the data has {split.num_rows:,}",
    )


def warn_of_other_rows(before: ValidationConfig, now: ValidationConfig, num_rows: int) -> None:
    """Say that a run that goes on is validated on other held-out rows from here on, of ``num_rows``."""
    was, rows = min(before.rows, num_rows), min(now.rows, num_rows)
    same = []
    if was != rows:
        same.append(f"validation.rows={before.rows}")
    if before.shuffled != now.shuffled:
        same.append(f"validation.order={'shuffled' if before.shuffled else 'data'}")
    if same:
        all_there = "of the yardsticks " if was == rows == num_rows else ""
        logger.warning(
            "losses %sfrom here on are of other held-out rows than those before; with %s they stay the same",
            all_there,
            " and ".join(same),
        )


def expect_few(split: PreparedSplit | MixedSplit, config: ValidationConfig) -> str | None:
    """What :func:`warn_of_few` will find, judged by sizes alone; None where predictions are enough."""
    if not split.num_rows:
        return "no rows of the data are held out, so nothing is validated"
    rows = min(config.rows, split.num_rows)
    share = rows / split.num_rows
    parts = max(rows, round(split.num_documents * share))
    return few_in_words(*expected_predictions(round(split.num_tokens * share), parts))


def expect_no_response(config: RunConfig, held_out: int | None) -> str | None:
    """Why a ratio that responds to the loss stays as it is to the run's end; None where it may respond, or
    follows progress alone. ``held_out``: rows of the data, None where these are not there.

    Raises UsageError where it responds to validations and there are none.
    """
    ratio, every, before_last = config.masking.ratio, config.validation.every, config.steps - 1
    if ratio.watches is None:
        return None
    # In a branch it goes on from what the run before had observed.
    needed = ratio.responds_after if config.branch is None else 1
    own = type(ratio).model_fields.keys() & {"watch", "every", "patience"}
    named = f"masking.ratio '{kind_of(ratio)}'"
    each = 1
    if ratio.watches == "training":
        seen, losses = before_last, "losses of steps"
        each = getattr(ratio, "every", 1)  # of which as many make one observation
        fitting = before_last * each // needed
        mend = f"masking.ratio.every={max(1, fitting)}" if "every" in own else ""
        longer = "" if fitting and mend else f"steps={needed // (each if mend else 1) + 1}"
    else:
        seen, losses = (every and before_last // every) + config.validation.at_start, "validations"
        fitting = before_last // needed
        mend = f"validation.every={max(1, fitting)}"
        longer = "" if fitting else f"steps={needed + 1}"
        nothing = f"{named} responds to the validation loss, and nothing is validated"
        watch = "masking.ratio.watch=training" if "watch" in own else "another masking.ratio"
        if held_out == 0:
            raise UsageError(
                f"{nothing}, for no rows of the data are held out: prepare the text with held_out: 0.05, or "
                f"set {watch}"
            )
        if not every:
            raise UsageError(f"{nothing} before the run's end: set {mend} or lower, or {watch}")
    if seen >= needed:
        return None
    patience = seen // each - 1
    lower = f", or masking.ratio.patience={patience}" if "patience" in own and patience > 0 else ""
    return (
        f"{named} stays as it is at first: it responds after {needed:,} {losses} at the earliest, and "
        f"{seen:,} come before the last step: set {' and '.join(filter(None, (mend, longer)))}{lower}"
    )


def bounds_in_words(entropy: Mapping[str, float]) -> str:
    """What a run's validation losses stand beside; ``entropy``: as ``environment.json`` has it."""
    return (
        f"words’ frequencies alone give a validation loss of {entropy['unigram']:.2f} nats, a table of pairs "
        f"{entropy['bigram']:.2f}"
    )


def plateau_in_words(lines: Sequence[Mapping[str, Any]], architecture: Any) -> str | None:
    """A sentence saying that a run predicts worse than a table of neighbouring pairs, and since when its loss
    has hardly moved.

    ``lines``: its validations so far, as in ``validation.jsonl``; ``architecture``: the config of its model,
    to which nothing is recommended that it has, or None where it was given. None for a run that does better.
    """
    last = lines[-1]
    if last["loss"] <= last["bigram_bound"]:
        return None
    since = still_since([line["step"] for line in lines], [line["loss"] for line in lines])
    unigram, pairs = last["unigram_entropy"], last["bigram_bound"]
    uses = (
        "hardly uses the words around"
        if last["loss"] - pairs > unigram - last["loss"]
        else "makes less of the words around than such a table would"
    )
    stands = "" if since is None else f" and has hardly moved since step {since:,}"
    helped = what_helped([None if architecture is None else architecture.to_dict()])
    return (
        f"the validation loss is {last['loss']:.2f} nats{stands}: words’ frequencies alone give "
        f"{unigram:.2f}, a table of pairs {pairs:.2f}, so the model {uses}. {helped}"
    )


def _batches(
    masker: Masker, split: PreparedSplit | MixedSplit, config: ValidationConfig
) -> Iterator[tuple[int, int, Rows, MaskedBatch]]:
    """Every batch with its tokens hidden: 0 at the fixed ratio, then the yardsticks, from 1 on; and which of
    the held-out rows its first one is.
    """
    chosen = partial(
        validation_batches, split, batch_rows=config.batch_rows, shuffled=config.shuffled
    )
    at_once = rows_of_pass(split.row_length, config.batch_rows)
    for number, rows in enumerate(chosen(config.rows)):
        yield 0, number * at_once, rows, masker(rows, 0.0)
    num_rows = min(config.rows, split.num_rows)
    for which, yardstick in enumerate(YARDSTICKS, 1):
        hide = masker_of(yardstick, masker.vocabulary)
        for number, rows in enumerate(chosen(yardstick.num_rows(num_rows))):
            yield which, number * at_once, rows, hide(rows)
