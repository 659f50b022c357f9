"""The rules of a run that others than training must know: what may change on resume, and its plan.

A run's plan is what its config alone decides: the progress of each step, the ratio asked there, and how
many tokens it will predict. Training, dry runs and studies ask here, so that they cannot disagree.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from chronomask.config import Config, diff, kind_of
from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.mixture import MixedData
from chronomask.data.order import LengthWarmUp, Sizes, cut_rows
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.objective import Objective

__all__ = [
    "CHANGEABLE",
    "Expected",
    "RunPlan",
    "Stretch",
    "check_masking",
    "expect",
    "has_padding",
    "maskable_tokens",
    "mean_labels",
    "progress",
    "refuse_unsuited",
    "stretches",
    "unchangeable",
    "unknown_before",
]

CHANGEABLE = (
    "name", "data", "device", "compile", "activation_checkpointing", "peak_flops", "threads",
    "loader_workers", "micro_batches", "sharding", "deterministic", "log_every", "loggers",
    "checkpoint.", "validation.", "validation.batch_rows",
)  # fmt: skip
"""Keys (or prefixes of keys) that may differ between a checkpoint and the run that resumes it.

They decide where, how fast and how closely watched training runs, not what it computes; the data is
compared by its fingerprint, and ``micro_batches``, ``device``, ``sharding``, ``deterministic`` and
``validation.batch_rows`` change the order of sums alone. :func:`unchangeable` has the exceptions: it may take
"validation." out, and ``validation.batch_rows`` stays changeable then, so it is named by itself.
"""

_MOST_BLOCKS = 4096
"""Blocks of steps at most, spread over the run, at which the ratio schedule is looked at."""
_SAMPLED_ROWS = 4096
"""Rows whose maskable tokens are counted: an epoch of small data, a fair sample of large."""


class RunPlan(Protocol):
    """The part of a run's config (:class:`~chronomask.train.config.RunConfig`) that its plan needs."""

    @property
    def masking(self) -> MaskingConfig: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def steps(self) -> int: ...
    @property
    def sizes(self) -> Sizes: ...
    @property
    def length_warmup(self) -> LengthWarmUp | None: ...
    @property
    def masked_token_budget(self) -> int | None: ...


def unchangeable(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Fields in which two run configs differ although they must not: dotted key → (before, now).

    Where the ratio responds to the validation loss, how that loss is measured is part of training; where a
    micro-batch meets the ratio as a whole, so is how rows are cut into them.
    """
    masking = getattr(now, "masking", None)
    decides: set[str] = set()
    if getattr(getattr(masking, "ratio", None), "watches", None) == "validation":
        decides.add("validation.")
    if getattr(masking, "budget", None) == "batch":
        decides.add("micro_batches")
    free = [key for key in CHANGEABLE if key not in decides]
    return {
        key: pair
        for key, pair in diff(before, now).items()
        if not any(key == own or (own.endswith(".") and key.startswith(own)) for own in free)
    }


def progress(plan: RunPlan, step: int, masked_tokens: float) -> float:
    """Training progress in [0, 1] at 0-based ``step``, ``masked_tokens`` predicted before it."""
    if plan.masking.progress == "masked_tokens":
        assert plan.masked_token_budget is not None  # the config sees to it
        return min(1.0, masked_tokens / plan.masked_token_budget)
    if plan.masking.progress == "tokens":
        return min(1.0, plan.sizes.rows_before(step) / plan.sizes.rows_before(plan.steps))
    return step / plan.steps


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run will ask for, as far as its config tells."""

    labels: float
    """masked tokens of the whole run"""
    maskable: float
    """tokens of the whole run that could have been masked"""
    highest_ratio: float
    next_tokens: float
    """that causal rows predict, or a few fewer: nothing precedes the first of a document"""

    @property
    def mean_ratio(self) -> float:
        """Asked, over all tokens that could be masked."""
        return self.labels / self.maskable if self.maskable else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps of a plan that follow each other, as the one in their middle is."""

    first: int
    end: int
    """0-based; the first step after them"""
    progress: float
    rows: int
    maskable: float
    """tokens of a whole row that may be masked"""
    ratio: float
    """the share of them that is to be masked, in a row that is masked"""
    causal_share: float
    """of the rows"""


def stretches(
    plan: RunPlan, maskable_at: Callable[[int], float], most: int = _MOST_BLOCKS
) -> Iterator[Stretch]:
    """The steps of a plan in ``most`` stretches at most; what is unknown beforehand as in :func:`expect`."""
    labels = 0.0
    edges = np.unique(np.linspace(0, plan.steps, min(most, plan.steps) + 1).astype(int))
    for first, end in pairwise(edges.tolist()):
        middle = (first + end - 1) // 2
        now = progress(plan, middle, labels)
        ratio, share = plan.masking.ratio.at(now), plan.objective.causal_share(now)
        rows, maskable = (
            plan.sizes.rows_before(end) - plan.sizes.rows_before(first),
            maskable_at(middle),
        )
        yield Stretch(first, end, now, rows, maskable, ratio, share)
        labels += rows * maskable * (1 - share) * ratio


def expect(plan: RunPlan, maskable_at: Callable[[int], float]) -> Expected:
    """The labels and ratios of a whole run: what it will have where :func:`unknown_before` is None.

    A ratio that responds to the loss counts as it is before any response, so labels are an upper bound.
    ``maskable_at``: how many tokens of a whole row may be masked at 0-based step s, from
    :func:`maskable_tokens`, or a constant where only runs that cut rows alike are compared.
    """
    labels, maskable, highest, next_tokens = 0.0, 0.0, 0.0, 0.0
    for now in stretches(plan, maskable_at):
        tokens = now.rows * now.maskable
        labels += tokens * (1 - now.causal_share) * now.ratio
        maskable += tokens * (1 - now.causal_share)
        next_tokens += tokens * now.causal_share
        highest = max(highest, now.ratio)
    return Expected(labels, maskable, highest, next_tokens)


def maskable_tokens(plan: RunPlan, data: PreparedData | MixedData) -> Callable[[int], float]:
    """Mean number of tokens of a row of ``data`` that may be masked at a step of the run.

    Counted on a sample of rows, or on all of them if there are few. Rows that are cut have fewer: a
    word that a cut parts is masked in neither piece.
    """
    split = data.split("train")
    loader = RowLoader(split, seed=0, rows_per_step=min(_SAMPLED_ROWS, max(1, split.num_rows)))
    rows = loader.rows_at(0)
    warm_up = plan.length_warmup

    @cache
    def of_pieces(pieces: int) -> float:
        return np.count_nonzero(cut_rows(rows, pieces).word_id >= 0) / rows.num_rows

    def at(step: int) -> float:
        return of_pieces(1 if warm_up is None else warm_up.pieces_at(step, data.row_length))

    return at


def mean_labels(plan: RunPlan, data: PreparedData | MixedData) -> float:
    """The tokens that a step predicts in the mean over the run, as :func:`expect` counts them."""
    expected = expect(plan, maskable_tokens(plan, data))
    labels = expected.labels
    if plan.masking.budget == "batch":  # the ratio is a share of whole rows
        whole = expect(plan, lambda step: float(data.row_length))
        labels = min(whole.labels, expected.maskable)
    return (labels + expected.next_tokens) / plan.steps


def has_padding(data: PreparedData | MixedData) -> bool:
    """Whether any row that a run trains on or validates with ends in padding."""
    splits = (data.split(name) for name in ("train", "held_out"))
    return any(split.num_tokens < split.num_rows * data.row_length for split in splits)


def refuse_unsuited(plan: RunPlan, data: PreparedData | MixedData) -> None:
    """Raise UsageError where the masking of a run needs what its data does not have."""
    content = plan.masking.content
    if content.needs_scores and data.manifest.scores is None:
        raise UsageError(
            f"masking.content '{kind_of(content)}' weighs positions by the scores of the data, and "
            f"{data.path} has none: add them with  chronomask data score {shlex.quote(str(data.path))} "
            "informativeness"
        )
    if plan.masking.strategy.needs_ngrams and data.manifest.ngrams is None:
        raise UsageError(
            "masking.strategy 'pmi' masks collocations together, and none were searched for in "
            f"{data.path}: find them with  chronomask data ngrams {shlex.quote(str(data.path))}"
        )


def check_masking(plan: RunPlan, data: PreparedData) -> None:
    """Raise UsageError, before anything is trained, for masking that a run cannot have on its data."""
    from chronomask.masking.masker import Masker, Vocabulary
    from chronomask.model.open import open_tokenizer

    refuse_unsuited(plan, data)
    vocabulary = Vocabulary.from_tokenizer(open_tokenizer(data.tokenizer_path))
    Masker(plan.masking, vocabulary, data.class_names)


def unknown_before(plan: RunPlan) -> str | None:
    """Why the number of labels is known only once the run has trained; None where it is known."""
    if not plan.masking.ratio.known_before:
        return "its ratio responds to the loss"
    if plan.masking.content.selection == "published":
        content = kind_of(plan.masking.content)
        return f"the published walk of content '{content}' does not meet the ratio that is asked"
    return None
