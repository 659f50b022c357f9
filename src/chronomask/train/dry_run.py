"""What a run would be: sizes, work, memory, time, and the masks of its first step. Nothing is trained.

The model lies on torch's ``meta`` device, so that a large one costs no more than a small one. Without
prepared data the same is said of rows of an assumed length and the architecture's own vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.mixture import MixedData, open_data
from chronomask.data.order import shorten_rows
from chronomask.errors import UsageError, amount
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.model.build import checkpoint_activations, skeleton
from chronomask.model.device import peak_flops, precision_on
from chronomask.model.flops import count_flops, lengths_in
from chronomask.model.memory import Memory
from chronomask.model.open import open_tokenizer
from chronomask.runs.rules import expect, maskable_tokens, refuse_unsuited, unknown_before
from chronomask.train.checkpoint import branch_point, model_of
from chronomask.train.config import RunConfig
from chronomask.train.distributed import refuse_layerdrop
from chronomask.train.hours import number_of_validations, refuse_no_average
from chronomask.train.memory import memory_of_step
from chronomask.train.operations import Operations
from chronomask.train.validation import expect_few, expect_no_response
from chronomask.types import Rows
from chronomask.yardsticks import VALIDATION_RATIO, YARDSTICKS

__all__ = ["ON_AN_H200", "DryRun", "as_text", "cost_in_words", "dry_run"]

ON_AN_H200 = 3.5e14
"""FLOP/s that BERT-base sustained in training on one NVIDIA H200 (docs/gpu.md): 627,000 tokens/s of 5.57e8
operations each.
"""
_SOURCES = {
    "given": "as given",
    "measured": "a dense product measured here; a model reaches less; --flops takes another",
    "of an H200": "BERT-base on one H200, for this config is meant for a GPU and there is none here; "
    "--flops takes another",
}


@dataclass(frozen=True, slots=True)
class DryRun:
    """The figures of a run that was not made; counts are of the whole run unless they say otherwise."""

    parameters: int
    row_length: int
    vocab_size: int
    rows: int
    epochs: float | None
    """visits of the data; None without data"""
    no_data: str | None
    """folder where the data would be, empty where none is named; None where they are there"""
    tokens: float
    """without padding"""
    mean_ratio: float | None
    """asked, over all tokens that may be masked; None where ``unknown`` says why"""
    predicted: float | None
    """masked ones; None where ``unknown`` says why"""
    next_tokens: float
    """that causal rows predict beside them, or a few fewer"""
    unknown: str | None
    """why the number of predicted tokens is known only once the run has trained"""
    flops_per_token: float
    """forwards and backwards, predictions and attention shared out over all tokens"""
    flops: float
    memory: Memory
    """of one device, at the largest step and the highest ratio"""
    precision: Literal["fp32", "bf16"]
    """in force, and that of ``memory``"""
    devices: int
    flops_per_second: float
    """of one device"""
    rate_is: Literal["given", "measured", "of an H200"]
    """measured: of a dense product, here, which no model reaches; of an H200: :data:`ON_AN_H200`"""
    seconds: float
    steps: int
    """of the run; with ``hours``, what fits into them at the rate above, nothing but training counted"""
    rate_follows: str | None
    """what the learning rate of a step is multiplied by; None where it follows steps alone"""
    validation_share: float = 0.0
    """of the operations of training and validations together, what the validations take"""
    validations: int = 0
    few: str | None = None
    """that validations rest on few predictions, as far as it can be told before"""
    constant: str | None = None
    """that a ratio cannot respond to the loss before the end, and why"""
    first_masks: dict[str, Any] | None = field(default=None)
    """``rows``, ``maskable``, ``predicted``, ``ratio_asked``, ``ratio_achieved`` of the first step; where it
    has very many rows, of some of them"""


def dry_run(
    config: RunConfig,
    *,
    devices: int = 1,
    flops_per_second: float | None = None,
    row_length: int | None = None,
    vocab_size: int | None = None,
    without_data: bool = False,
) -> DryRun:
    """Look ahead at a run; writes nothing. Raises UsageError for what training would refuse.

    ``devices`` share each step; ``flops_per_second``: what one sustains; if not given, it is measured
    here, or that of an H200 for a config that is meant for a GPU, where there is none; ``row_length`` and
    ``vocab_size``: for a config whose data is not there; 512 tokens and the vocabulary of
    the architecture if not given. ``without_data``: the config's data count as not there, whatever lies in
    the folder of their name.
    """
    if config.hours is not None:
        look = partial(
            dry_run,
            devices=devices,
            row_length=row_length,
            vocab_size=vocab_size,
            without_data=without_data,
        )
        return _look_at_hours(config, config.hours, flops_per_second, look)
    there = not without_data and (isinstance(config.data, tuple) or Path(config.data).exists())
    data = open_data(config.data) if there else None
    if data is not None:
        refuse_unsuited(config, data)
    if data is not None and row_length is not None:
        raise UsageError(f"rows of {data.path} have {data.row_length} tokens: leave out row_length")
    config.sizes.refuse_too_few(devices)
    length = data.row_length if data is not None else row_length or 512
    if config.length_warmup is not None:
        config.length_warmup.pieces_at(0, length)
    tokenizer = None if data is None else open_tokenizer(data.tokenizer_path)
    causal = config.objective.has_causal_rows
    origin = branch_point(config)
    model = skeleton(
        model_of(config, origin),
        tokenizer,
        row_length=length,
        attention=config.attention,
        causal=causal,
        branched=origin is not None,
        vocab_size=None if data is not None else vocab_size,
    )
    refuse_layerdrop(model.config, devices)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    flops = count_flops(model)

    text = _Text(length) if data is None else _read_text(config, data)
    tokens_per_row, maskable_at = text.tokens_per_row, text.maskable_at
    num_rows = config.sizes.rows_before(config.steps)
    tokens = num_rows * tokens_per_row
    expected = expect(config, maskable_at)
    config.learning_rate.refuse_no_labels(expected.labels + expected.next_tokens)
    unknown = unknown_before(config)
    operations = Operations(config, model, flops, text.lengths, tokens_per_row)
    work = operations.total(maskable_at)

    device = _find_device(config, flops_per_second)
    memory = memory_of_step(
        config,
        model,
        devices=devices,
        row_length=length,
        maskable=expected.maskable / num_rows,
        bf16=device.bf16,
        on_cuda=device.on_cuda,
    )
    validations = number_of_validations(config, config.steps)
    held_out = None if data is None else data.split("held_out").num_rows
    few = None if data is None else expect_few(data.split("held_out"), config.validation)
    one = _flops_of_validation(config, operations, text.lengths, held_out) * tokens_per_row
    # A mean of the weights is validated beside them.
    validating = validations * one * (2 if config.averaging is not None else 1)
    return DryRun(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        row_length=length,
        vocab_size=model.config.vocab_size,
        rows=num_rows,
        epochs=None if data is None else num_rows / data.split("train").num_rows,
        no_data=None if there else "" if without_data else str(config.data),
        tokens=tokens,
        mean_ratio=None if unknown else expected.mean_ratio,
        predicted=None if unknown else expected.labels,
        next_tokens=expected.next_tokens,
        unknown=unknown,
        flops_per_token=work / tokens,
        flops=work,
        memory=memory,
        precision="bf16" if device.bf16 else "fp32",
        devices=devices,
        flops_per_second=device.rate,
        rate_is=device.rate_is,
        seconds=work / (device.rate * devices),
        steps=config.steps,
        rate_follows=_rate_follows(config, (expected.labels + expected.next_tokens) / config.steps),
        first_masks=text.first_masks,
        validation_share=validating / (work + validating),
        validations=validations,
        few=few,
        constant=expect_no_response(config, held_out),
    )


def _look_at_hours(
    config: RunConfig, hours: float, rate: float | None, look: Callable[..., DryRun]
) -> DryRun:
    """The run of as many steps as fit into ``hours``; ``rate``: FLOP/s of a device, None to find them."""
    one = look(config.model_copy(update={"hours": None}), flops_per_second=rate)
    steps = max(1, int(config.steps * 3600 * hours / one.seconds))
    refuse_no_average(config, steps)
    fitting = config.model_copy(update={"hours": None, "steps": steps})
    return replace(look(fitting, flops_per_second=one.flops_per_second), rate_is=one.rate_is)


class _Text:
    """What is known of the rows; of none yet, that they are full and all of it may be masked."""

    def __init__(self, row_length: int) -> None:
        self.tokens_per_row = float(row_length)
        """without padding"""
        self.lengths = np.array([row_length])
        """tokens of what attends to itself alone: rows, or documents"""
        self.maskable_at: Callable[[int], float] = lambda step: self.tokens_per_row
        """tokens of a row that may be masked, by step"""
        self.first_masks: dict[str, Any] | None = None


def _read_text(config: RunConfig, data: PreparedData | MixedData) -> _Text:
    """The same of the data's rows, of which the first step's stand for all in the lengths of documents."""
    text, split = _Text(data.row_length), data.split("train")
    text.tokens_per_row = split.num_tokens / split.num_rows
    text.maskable_at = maskable_tokens(config, data)
    rows = _first_rows(config, data)
    text.first_masks = _first_masks(
        config, data, next(shorten_rows([rows], config.length_warmup, 0))
    )
    if config.attention == "documents":
        text.lengths = lengths_in(rows, data.manifest.pad_token_id, "documents")
    else:
        text.lengths = np.array([round(text.tokens_per_row)])
    return text


@dataclass(frozen=True, slots=True)
class _Device:
    """What the run is computed on: a device of this machine, or one that the config is meant for."""

    on_cuda: bool
    bf16: bool
    rate: float
    """FLOP/s"""
    rate_is: Literal["given", "measured", "of an H200"]


def _find_device(config: RunConfig, rate: float | None) -> _Device:
    """The device, and ``rate`` as what it sustains, where that is given."""
    here = torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")
    cuda = config.device == "cuda" or here.type == "cuda"
    cuda |= config.device == "auto" and config.precision == "bf16"  # meant for a GPU elsewhere
    elsewhere = cuda and here.type == "cpu"
    meant_for_bf16 = elsewhere and config.precision == "auto"
    bf16 = meant_for_bf16 or precision_on(here, config.precision) == "bf16"
    if rate:
        return _Device(cuda, bf16, rate, "given")
    if elsewhere:
        return _Device(cuda, bf16, ON_AN_H200, "of an H200")
    return _Device(cuda, bf16, peak_flops(here, config.precision), "measured")


def _flops_of_validation(
    config: RunConfig, operations: Operations, lengths: np.ndarray, held_out: int | None
) -> float:
    """Operations of one validation for each token of a row: forward passes alone, a third of a step's.

    ``held_out``: rows that there are, None for as many as are asked for.
    """
    rows = config.validation.rows if held_out is None else min(config.validation.rows, held_out)
    passes = [(rows, VALIDATION_RATIO)]
    for own in YARDSTICKS:
        hidden = 1 / float(lengths.mean()) if own.ratio is None else own.ratio
        passes.append((own.num_rows(rows), hidden))
    return sum(number * operations.plain(hidden) / 3 for number, hidden in passes)


def _rate_follows(config: RunConfig, labels: float) -> str | None:
    how = config.learning_rate.follow_labels
    rule = "the root of its labels" if how == "sqrt" else "its labels"
    return None if how is None else f"times {rule} over {labels:,.0f}, the run's mean"


_MOST_ROWS = 16_384
"""Rows of the first step that are looked at."""


def _first_rows(config: RunConfig, data: PreparedData | MixedData) -> Rows:
    """The rows of the first step, or as many of the first of them as the first of several devices has."""
    loader = RowLoader(
        data.split("train"),
        seed=config.seed,
        rows_per_step=config.sizes,
        world_size=-(-config.sizes.rows_at(0) // _MOST_ROWS),
    )
    return loader.rows_at(0)


def _first_masks(config: RunConfig, data: PreparedData | MixedData, rows: Rows) -> dict[str, Any]:
    """Masks of the first step as training would draw them, counted."""
    vocabulary = Vocabulary.from_tokenizer(open_tokenizer(data.tokenizer_path))
    masker = Masker(config.masking, vocabulary, data.class_names, config.seed)
    rows = rows.select(~config.objective.is_causal(rows, config.seed, 0.0))
    if not rows.num_rows:
        return {"rows": 0, "maskable": 0, "predicted": 0, "ratio_asked": 0.0, "ratio_achieved": 0.0}
    if config.masking.content.look_ahead:  # of no model yet, so all are alike
        rows = replace(rows, scores=np.zeros(rows.input_ids.shape, np.float32))
    batch = masker(rows.to("cpu"), 0.0)
    maskable = int(np.count_nonzero(rows.word_id >= 0))
    return {
        "rows": rows.num_rows,
        "maskable": maskable,
        "predicted": int(batch.num_predicted),
        "ratio_asked": float(batch.masking_ratio),
        "ratio_achieved": int(batch.num_predicted) / max(1, maskable),
    }


def cost_in_words(device_seconds: float, price_per_hour: float | None) -> str:
    """Device-hours, and what they cost at a price an hour, in whatever money that is in."""
    hours = device_seconds / 3600
    text = f"{hours:,.3g} device-hours" if hours < 1000 else f"{hours:,.0f} device-hours"
    if price_per_hour is None:
        return f"{text}; --price-per-hour says what they cost"
    return f"{text}, {hours * price_per_hour:,.2f} at {price_per_hour:,.10g} an hour"


def as_text(run: DryRun, price_per_hour: float | None = None) -> str:
    """The figures for people; ``price_per_hour``: of a device."""
    memory = run.memory
    parts = ", ".join(
        f"{name} {getattr(memory, name) / 1e9:.2f}"
        for name in ("parameters", "gradients", "optimiser", "casts", "activations", "logits")
    )
    lines = [
        ("parameters", f"{run.parameters:,}"),
        ("steps", f"{run.steps:,}"),
        ("rows", f"{run.rows:,} of {run.row_length} tokens" + _epochs(run)),
        ("tokens", f"{run.tokens:.4g}"),
        ("predicted tokens", _describe_predicted(run)),
        ("FLOPs per token", f"{run.flops_per_token:.4g} (forwards and backwards)"),
        ("FLOPs", f"{run.flops:.4g}"),
        ("memory of a device", f"{memory.total / 1e9:.2f} GB in {run.precision} ({parts})"),
        ("rate of a device", f"{run.flops_per_second:.4g} FLOP/s ({_SOURCES[run.rate_is]})"),
        ("time", f"{_time(run.seconds)} on {run.devices} device{'s' if run.devices > 1 else ''}"),
        ("cost", cost_in_words(run.seconds * run.devices, price_per_hour)),
        (
            "validation",
            f"{run.validations:,} time{'' if run.validations == 1 else 's'}, {run.validation_share:.2%} of "
            "all operations; not in the time",
        ),
        ("first step's masks", _first(run)),
    ]
    if run.few is not None:
        lines.append(("few predictions", run.few))
    if run.constant is not None:
        lines.append(("constant ratio", run.constant))
    if run.rate_follows is not None:
        lines.append(("rate of a step", run.rate_follows))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _epochs(run: DryRun) -> str:
    if run.epochs is None:
        where = f"in {run.no_data}" if run.no_data else "named"
        return f" (no data {where}: length assumed, vocabulary of {run.vocab_size:,})"
    return f" ({run.epochs:.3g} times the data)"


def _describe_predicted(run: DryRun) -> str:
    more = f", and {run.next_tokens:.4g} next tokens" if run.next_tokens else ""
    if run.predicted is None:
        return f"known only once it has trained: {run.unknown}{more}"
    return f"{run.predicted:.4g} (mean ratio {run.mean_ratio:.4f}){more}"


def _first(run: DryRun) -> str:
    first = run.first_masks
    if first is None:
        return "none: no data"
    rows = amount(first["rows"], "rows")
    return (
        f"{first['predicted']:,} of {first['maskable']:,} maskable tokens in {rows}: "
        f"{first['ratio_achieved']:.4f}, asked {first['ratio_asked']:.4f}"
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 86400:.1f} days"
