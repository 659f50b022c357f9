"""What a loss or gradient that is not finite leaves behind, and how to compute it once more.

    RUN/dump/step-00000003/
      report.json              the step (1-based), its loss and gradient norm, and what :func:`replay` needs
      rows-00000.safetensors   rows of each process: `micro-batch/field` as in types.Rows, and `at_fault`
      step-00000002/           a checkpoint of the state before the step, config included

No masked batch is kept: masks and dropout follow from rows, state, seed and step. The dump of a run of
one process on a CPU replays bit for bit; other devices and several processes to rounding.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chronomask.errors import DataError, RunError, UsageError
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.model.device import choose_device, refuse_emulation
from chronomask.model.open import open_model, open_tokenizer
from chronomask.model.trial import settle
from chronomask.runs.layout import checkpoints_in, damage
from chronomask.storage import read_object, remove_all, share, write_json
from chronomask.train import checkpoint
from chronomask.train.determinism import seed_dropout
from chronomask.train.distributed import World
from chronomask.train.forward import (
    Forward,
    Part,
    Predictions,
    entering,
    parts_of,
    rows_at_fault,
    tally_losses,
)
from chronomask.train.low_precision import WorkingCopy
from chronomask.train.run import Run
from chronomask.train.sharding import gradient_norm
from chronomask.train.state import State
from chronomask.types import Rows

__all__ = ["Replayed", "not_finite", "replay"]

_REPORT = "report.json"
_AGAIN = "copy the dump again, or let pretrain --resume meet the step once more"
_ROW_FIELDS = tuple(field.name for field in fields(Rows))


def not_finite(
    run: Run,
    state: State,
    world: World,
    loss: float,
    norm: float,
    parts: Sequence[Part],
    losses: Sequence[torch.Tensor],
) -> RunError:
    """The error of a step whose update was not made, after dumping it; all processes call this."""
    bad = rows_at_fault(parts, losses)
    folder = run.folder.dump_of(state.step + 1)
    try:
        _write(folder, run, state, world, loss, norm, parts, bad)
        again = shlex.join(["chronomask", "replay", str(folder)])
        kept = f"It is kept in {folder}: {again} computes it again"
    except (RunError, UsageError, OSError, SafetensorError) as error:
        kept = f"It could not be dumped: {error}"
    where = _where(bad, parts, world)
    saved = checkpoints_in(run.folder.checkpoints)
    branching = (
        f", or go on from before: pretrain --branch {shlex.quote(str(saved[0]))} --out ANOTHER"
        if saved
        else ""
    )
    clip = run.config.gradient_clip
    clipping = "set gradient_clip=1.0" if clip is None else f"lower gradient_clip (now {clip:g})"
    peak = run.config.learning_rate.peak
    mend = f"Lower learning_rate.peak (now {peak:g}), lengthen its warm-up or {clipping}"
    if not state.step and not math.isfinite(loss):
        mend = (
            "No update came before it, so no setting of training made it so: begin with a model whose "
            "weights give a finite loss"
        )
    return RunError(
        f"step {state.step + 1:,}: loss {loss}, gradient norm {norm}, {where}; the update was "
        f"not made. {kept}. {mend}, and start again in another folder{branching}"
    )


def _where(bad: Sequence[int], parts: Sequence[Part], world: World) -> str:
    """In which rows a loss was not finite; all processes call this."""
    in_all = world.totals(len(bad))[0]
    if in_all and not bad:
        return "in training rows of another process, which names them"
    rows = bad or [row for part in parts for row in part.rows.row_id.tolist()]
    more = f" and {len(rows) - 16} more" if len(rows) > 16 else ""
    somewhere = "" if bad else "somewhere "  # a gradient overflowed
    return f"{somewhere}in training rows {', '.join(map(str, rows[:16]))}{more}"


@dataclass(frozen=True, slots=True)
class Replayed:
    """A dumped step computed again; ``rows``: ids of the rows with a loss that is not finite."""

    step: int
    loss: float
    gradient_norm: float
    rows: list[int]


def replay(folder: str | Path, device: str = "cpu") -> Replayed:
    """Forward and backward of the step dumped in ``folder``, all its processes' rows in one.

    Raises UsageError for a device that is not there, DataError if ``folder`` is no dump or was damaged,
    RunError for one of another format.
    """
    folder = Path(folder)
    target = choose_device(device)
    report = _read_report(folder)
    saved = _state_before(folder)
    config = checkpoint.config_of(saved)
    tokenizer = open_tokenizer(saved.model_path)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    masker = Masker(config.masking, vocabulary, report["class_names"], config.seed)
    masker.load_state_dict(saved.content())
    model = open_model(saved.model_path)
    rows_of = [_read_rows(folder / _rows_name(rank)) for rank in range(report["world_size"])]
    length = rows_of[0][0].row_length
    settle(model, tokenizer, config.row_lengths(length), attention=config.attention)
    model.to(target)  # pyright: ignore[reportArgumentType]
    precision = report.get("precision", config.precision)  # older dumps name none
    refuse_emulation(target, precision, "replay it with --device cpu")
    working_copy = WorkingCopy(model) if config.bf16_weights and precision == "bf16" else None
    computing = model if working_copy is None else working_copy.model
    forward = Forward(
        computing,
        target,
        precision,
        config.attention,
        report["pad_token_id"],
        masks_enter=entering(config.late_masks, model),
    )

    parts = [
        (rank, number, part)
        for rank, own in enumerate(rows_of)
        for number, rows in enumerate(own)
        for part in parts_of(forward, rows, masker, config.objective, report["progress"], 1)
    ]
    predictions = Predictions.of([part for _, _, part in parts])
    sums = torch.zeros(3, len(report["class_names"]) + 1, dtype=torch.float64, device=target)
    losses = []
    for rank, number, part in parts:
        seed_dropout(config.seed, saved.first_step + saved.step, rank, number)
        loss, correct, log_z = forward.losses(part)
        predictions.contribution(part, loss, log_z, config.z_loss).backward()
        if working_copy:
            working_copy.collect()
        losses.append(loss.detach())
        tally_losses(sums, part, loss, correct)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return Replayed(
        step=report["step"],
        loss=predictions.mean_loss(float(sums[0, :-1].sum()), float(sums[0, -1]))[1],
        gradient_norm=float(gradient_norm(gradients)),
        rows=rows_at_fault([part for _, _, part in parts], losses),
    )


def _write(
    folder: Path,
    run: Run,
    state: State,
    world: World,
    loss: float,
    norm: float,
    parts: Sequence[Part],
    bad: Sequence[int],
) -> None:
    """Write the dump of the step to come; the first process begins it, all add their rows.

    Where one process cannot write its part, all of them raise an error.
    """
    snapshot = run.snapshot(state, copied=False, kept=world.is_first)
    report = {
        "step": state.step + 1,
        "loss": repr(loss),
        "gradient_norm": repr(norm),
        "progress": state.progress(run.config),
        "world_size": world.size,
        "class_names": list(run.data.class_names),
        "pad_token_id": run.forward.pad_token_id,
        "precision": run.forward.precision,
    }
    with world.together():
        if snapshot is not None:
            remove_all(folder, ignore_errors=True)  # the same step failed before and was resumed
            run.saver.write_to(folder, snapshot)
            write_json(folder / _REPORT, report)
    tensors = {"at_fault": torch.tensor(bad, dtype=torch.int64)}
    for number, part in enumerate(parts):
        for name in _ROW_FIELDS:
            value = getattr(part.rows, name)
            if value is not None:
                tensors[f"{number}/{name}"] = torch.from_numpy(value.copy())
    with world.together():
        save_file(tensors, folder / _rows_name(world.rank))
        share(folder / _rows_name(world.rank))


def _rows_name(rank: int) -> str:
    return f"rows-{rank:05d}.safetensors"


def _read_report(folder: Path) -> dict[str, Any]:
    """What the dump says of its step; raises DataError for what is no dump, with those below it."""
    report = read_object(folder / _REPORT)
    if report is None:
        found = sorted([*folder.glob(f"step-*/{_REPORT}"), *folder.glob(f"dump/step-*/{_REPORT}")])
        there = ", ".join(str(path.parent) for path in found)
        raise DataError(
            f"{folder} is not the dump of a step: it has no {_REPORT}; "
            + (f"give one of those below it: {there}" if found else "a run has its own in RUN/dump")
        )
    # Dumps of earlier versions have no "precision", so it is not required.
    missing = {"step", "progress", "world_size", "class_names", "pad_token_id"} - report.keys()
    if missing:
        raise DataError(
            f"{folder / _REPORT} has no {', '.join(sorted(missing))}: the dump was damaged; {_AGAIN}"
        )
    return report


def _state_before(folder: Path) -> checkpoint.Checkpoint:
    """The checkpoint of the state before the step; raises DataError where there is none that is whole."""
    for path in checkpoints_in(folder):
        wrong = damage(path)
        if wrong is not None:
            raise DataError(f"{path} is damaged ({wrong}); {_AGAIN}")
        return checkpoint.read(path)
    raise DataError(f"{folder} holds no checkpoint of the state before the step; {_AGAIN}")


def _read_rows(path: Path) -> list[Rows]:
    """The micro-batches of one process, in order; raises DataError where they cannot be read."""
    try:
        tensors = load_file(path)
        del tensors["at_fault"]
    except (OSError, SafetensorError, KeyError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise DataError(f"{path} {why}; {_AGAIN}") from None
    parts: dict[int, dict[str, object]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        parts.setdefault(int(number), {})[name] = tensor.numpy()
    return [Rows(**parts[number]) for number in sorted(parts)]  # pyright: ignore[reportArgumentType]
