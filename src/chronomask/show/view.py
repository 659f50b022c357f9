"""What a picture shows, before it is drawn: one view per config, one moment per progress.

Weights that follow losses are known only from training. Without a run, a picture takes the losses per part
of speech that the authors of PTW publish, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from chronomask.config import Config
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker
from chronomask.masking.objective import LateMasks, Objective
from chronomask.masking.ratio import Schedule
from chronomask.runs.read import Run
from chronomask.show.measure import (
    EPOCHS,
    Shown,
    Statistics,
    count_masked,
    shown_as,
    statistics,
    word_pieces,
)
from chronomask.show.request import NamedMasking
from chronomask.show.subject import Subject
from chronomask.types import NO_CLASS, ClassTally, Rows

__all__ = [
    "PUBLISHED_LOSS",
    "ClassWeights",
    "Moment",
    "Token",
    "View",
    "classes_shown",
    "in_force",
    "look",
    "masker_at",
    "tokens_of",
]

PUBLISHED_LOSS = {
    "ADV": 2.6, "ADJ": 2.55, "VERB": 2.4, "NOUN": 2.3, "PROPN": 2.1,
    "PRON": 0.96, "ADP": 0.83, "AUX": 0.68, "DET": 0.57, "PUNCT": 0.42,
}  # fmt: skip
"""Nats per token after 200,000 steps, read off the plots of Yang, Zhang and Zhao (ACL 2023, arXiv
2208.10806). A class they do not report is put at the mean of these."""


@dataclass(frozen=True, slots=True)
class ClassWeights:
    """Weight of each class, where the numbers come from, and which of them nobody has measured."""

    values: dict[str, float]
    origin: str
    assumed: frozenset[str] = frozenset()


def masker_at(
    config: MaskingConfig, subject: Subject, progress: float, seed: int, run: Run | None
) -> tuple[Masker, ClassWeights | None]:
    """A masker in the state that it has at ``progress``, and its class weights if it has any.

    Raises UsageError when the config needs classes that the subject lacks, or the run has logged
    no weights of these classes.
    """
    masker = Masker(config, subject.vocabulary, subject.class_names, seed)
    if run is not None and not config.ratio.known_before:
        line = _line(run, progress)
        if line is not None:
            masker.hold(ratio=float(run.metrics["masking_ratio"][line]))
    values = masker.class_weights(progress)
    if values is None:
        return masker, None
    if not config.content.learns:
        return masker, ClassWeights(values, "given in the configuration")
    return masker, _illustrative_weights(masker, progress) if run is None else _weights_of_run(
        masker, progress, run
    )


def _illustrative_weights(masker: Masker, progress: float) -> ClassWeights:
    """The weights once the masker has observed the published losses, each for one token."""
    names = masker.class_names
    known = [name for name in names if name in PUBLISHED_LOSS]
    if progress == 0:
        origin = "before the first step nothing is known: all alike"
    elif not known:
        origin = "no losses are known for these classes: all alike; --run takes those of a run"
    else:
        mean = float(np.mean([PUBLISHED_LOSS[name] for name in known]))
        losses = np.array([PUBLISHED_LOSS.get(name, mean) for name in names])
        once, never = np.ones(len(names), np.int64), np.zeros(len(names), np.int64)
        masker.update(ClassTally(losses, once, never))
        origin = "illustrative: from published losses, not from a run"
    values = masker.class_weights(progress)
    assert values is not None
    guessed = frozenset(names) - set(known) if known and progress > 0 else frozenset()
    return ClassWeights(values, origin, guessed)


def _weights_of_run(masker: Masker, progress: float, run: Run) -> ClassWeights:
    """The weights that the run has logged last by ``progress``, held in the masker."""
    logged = run.metrics.per_class.get("class_weight", {})
    line = _line(run, progress)
    values = {name: logged[name] for name in masker.class_names if name in logged}
    values = {name: float(found[line or 0]) for name, found in values.items()}
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    if not any(name in values for name in masker.class_names[NO_CLASS + 1 :]):
        raise UsageError(
            f"run {run.path} has logged no weights of the classes shown "
            f"({', '.join(masker.class_names)}); leave out --run for illustrative weights, or give the "
            "run's own data by --data"
        )
    if line is None:
        first = float(np.nanmin(run.metrics["progress"]))
        values = masker.class_weights(progress)
        assert values is not None
        origin = f"all alike: run {run.name} has logged none before progress {first:.3g}"
        return ClassWeights(values, origin)
    values = {name: values.get(name, 0.5) for name in masker.class_names}
    masker.hold(class_weights=list(values.values()))
    at = float(run.metrics["progress"][line])
    values = masker.class_weights(progress)  # what is logged is learnt; the strength is that of now
    assert values is not None
    return ClassWeights(values, f"learnt by run {run.name}, logged at progress {at:.3g}")


def _line(run: Run, progress: float) -> int | None:
    """Index of the last line that was logged by ``progress``, None before the first."""
    logged = run.metrics["progress"]
    if not len(logged) or not np.isfinite(logged).any():
        raise UsageError(f"run {run.path} has logged no step yet; leave out --run, or wait")
    by_then = np.where(logged <= progress, logged, -np.inf)  # one that is no number is not by then
    line = int(np.argmax(by_then))
    return line if np.isfinite(by_then[line]) else None


@dataclass(frozen=True, slots=True)
class Moment:
    """Masking at one moment of training.

    ``asked``: the ratio; ``shown`` int8 [B, T] of :class:`Shown` and ``input_ids`` int64 [B, T], what
    the model is given, both of the first epoch; ``weights`` None where all classes are alike.
    """

    progress: float
    asked: float
    shown: np.ndarray
    input_ids: np.ndarray
    weights: ClassWeights | None
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class View:
    """One config at several moments; ``curve`` float64 [101]: the ratio asked over training."""

    name: str
    config: MaskingConfig
    objective: Objective
    late_masks: LateMasks | None
    summary: str
    curve: np.ndarray
    moments: tuple[Moment, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """One token as it is drawn.

    ``gap`` stands before it; ``text`` are its letters; ``instead``: what the model sees in its place,
    for a random replacement; ``first``: whether a word begins; ``pieces`` of its word, 0 = special.
    """

    gap: str
    text: str
    class_name: str
    shown: Shown
    instead: str
    first: bool
    pieces: int


def look(
    masking: NamedMasking, subject: Subject, progress: tuple[float, ...], seed: int, run: Run | None
) -> View:
    """Mask the subject at each moment and measure it. Raises what :func:`masker_at` raises."""
    config, moments, rows = masking.config, [], subject.rows
    if config.content.look_ahead and rows.scores is None:  # no model is here to ask: all are alike
        rows = replace(rows, scores=np.zeros(rows.input_ids.shape, np.float32))
    for at in progress:
        masker, weights = masker_at(config, subject, at, seed, run)
        batch = masker(rows, at)
        counts = count_masked(masker, rows, at)
        moments.append(
            Moment(
                progress=at,
                asked=masker.ratio_at(at),
                shown=shown_as(subject.rows, batch, subject.vocabulary.mask_token_id),
                input_ids=batch.input_ids,
                weights=weights,
                statistics=statistics(subject.rows, counts, EPOCHS, len(subject.class_names)),
            )
        )
    parts = [_spell(part) for part in (config.ratio, config.content, config.strategy)]
    if config.weighs_losses:
        parts.append(f"losses weighed by {_spell(config.loss_weight)}, per {config.loss_per}")
    if config.content.look_ahead:
        parts.append("scores, which the model makes in training, are all alike here")
    return View(
        name=masking.name,
        config=config,
        objective=masking.objective,
        late_masks=masking.late_masks,
        summary=" · ".join(parts),
        curve=np.array([config.ratio.at(k / 100) for k in range(101)]),
        moments=tuple(moments),
    )


def tokens_of(subject: Subject, row: int, moment: Moment | None = None) -> list[Token]:
    """The tokens of a row at a moment (plain without one), those that are padding left out."""
    words = subject.rows.word_id[row]
    pieces = word_pieces(subject.rows.word_id[row : row + 1])[0]
    shown = np.zeros(words.size, np.int8) if moment is None else moment.shown[row]
    tokens = []
    for k, text in enumerate(subject.pieces[row]):
        if not text and not shown[k]:
            continue
        state = Shown(int(shown[k]))
        instead = ""
        if moment is not None and state is Shown.RANDOM:
            instead = subject.spell(int(moment.input_ids[row, k]))
        tokens.append(
            Token(
                gap=subject.gaps[row][k],
                text=text,
                class_name=subject.class_names[subject.rows.token_class[row, k]],
                shown=state,
                instead=instead,
                first=bool(k == 0 or words[k] < 0 or words[k] != words[k - 1]),
                pieces=int(pieces[k]),
            )
        )
    return tokens


def in_force(view: View, mask: str) -> list[tuple[str, list[str]]]:
    """What else of masking follows progress, and what it is at each moment; nothing for what stays.

    The strength of content, the strategy, the ratios of single rows, the chances of replacements, and the
    share of rows that predict next tokens instead. ``mask``: how the mask token is written.
    """
    config, times = view.config, [moment.progress for moment in view.moments]
    replaced = [config.replace_probs(at) for at in times]
    rows = {
        "strength of content": [f"{config.content.strength_at(at):.3g}" for at in times],
        "strategy": [_spell(config.strategy.at(at), deep=True) for at in times],
        "nine tenths of rows": [_range_of_rows(config.ratio, at) for at in times],
        f"shown as {mask}, as another": [
            f"{100 * mask:.0f} %, {100 * other:.0f} %" for mask, other in replaced
        ],
        "rows of next tokens": [f"{view.objective.causal_share(at):.3g}" for at in times],
        "skipped by masked tokens": [
            "" if view.late_masks is None else view.late_masks.describe_at(at) for at in times
        ],
    }
    usual = {
        "strength of content": len(set(rows["strength of content"])) == 1,
        "strategy": len(set(rows["strategy"])) == 1,
        "nine tenths of rows": not config.ratio.draws_rows,
        f"shown as {mask}, as another": len(set(replaced)) == 1,
        "rows of next tokens": not view.objective.has_causal_rows,
        "skipped by masked tokens": view.late_masks is None,
    }
    return [(name, values) for name, values in rows.items() if not usual[name]]


def _range_of_rows(ratio: Schedule, progress: float) -> str:
    """The ratios between which nine tenths of the rows lie."""
    low, high = ratio.of_rows(progress, np.array([0.05, 0.95])).tolist()
    return f"{100 * min(low, high):.0f} % to {100 * max(low, high):.0f} %"


def classes_shown(rows: Rows, views: Sequence[View], class_names: tuple[str, ...]) -> list[int]:
    """Classes that occur among the maskable tokens: the highest last weight first, then by share.

    The order is that of the first view with weights, the same for all views and moments. The class
    "none" comes last, and is left out if it does not occur.
    """
    share = views[0].moments[-1].statistics.class_in_text
    last = [view.moments[-1].weights for view in views]
    weights = next((w.values for w in last if w is not None), {})
    there = np.unique(rows.token_class[rows.word_id >= 0]).tolist()
    return sorted(
        there, key=lambda c: (c == NO_CLASS, -weights.get(class_names[c], 0.5), -share[c])
    )


def _spell(part: Config, deep: bool = False) -> str:
    """A config's kind and plain values: ``linear 0.3 → 0.15`` becomes "linear (start 0.3, end 0.15)".

    ``deep``: also the configs within it, such as the parts of a mixture with their shares.
    """
    values = part.to_dict()
    kind = values.pop("kind", "")
    if values.get("strength") == 1.0:
        del values["strength"]  # as the schedule gives its weights: nothing to tell
    plain = [f"{k} {v:g}" for k, v in values.items() if isinstance(v, int | float)]
    plain += [f"{k} {v}" for k, v in values.items() if isinstance(v, str)]
    if deep:
        held = [getattr(part, name) for name in values]
        inner = [
            item for value in held for item in (value if isinstance(value, tuple) else [value])
        ]
        plain += [_spell(item, deep) for item in inner if isinstance(item, Config)]
    spelt = ", ".join(plain)
    return f"{kind} ({spelt})" if plain and kind else kind or spelt
