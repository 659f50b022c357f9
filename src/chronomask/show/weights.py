"""Class weights for a picture: those a run has learnt, or illustrative ones where nothing is learnt.

Weights that follow losses are known only from training. Without a run, a picture takes the losses
per part of speech that the authors of PTW publish, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker
from chronomask.runs.read import Run
from chronomask.show.subject import Subject
from chronomask.types import NO_CLASS, ClassTally

__all__ = ["PUBLISHED_LOSS", "ClassWeights", "masker_at"]

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
        masker.hold(ratio=float(run.metrics["masking_ratio"][_line(run, progress)]))
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
    """The weights that the run has logged nearest to ``progress``, held in the masker."""
    logged = run.metrics.per_class.get("class_weight", {})
    line = _line(run, progress)
    values = {name: float(logged[name][line]) for name in masker.class_names if name in logged}
    values = {name: value for name, value in values.items() if math.isfinite(value)}
    if not any(name in values for name in masker.class_names[NO_CLASS + 1 :]):
        raise UsageError(
            f"run {run.path} has logged no weights of the classes shown "
            f"({', '.join(masker.class_names)}); leave out --run for illustrative weights"
        )
    values = {name: values.get(name, 0.5) for name in masker.class_names}
    masker.hold(class_weights=list(values.values()))
    at = float(run.metrics["progress"][line])
    values = masker.class_weights(progress)  # what is logged is learnt; the strength is that of now
    assert values is not None
    return ClassWeights(values, f"learnt by run {run.name}, logged at progress {at:.3g}")


def _line(run: Run, progress: float) -> int:
    """Index of the logged line nearest to ``progress``."""
    logged = run.metrics["progress"]
    if not len(logged) or not np.isfinite(logged).any():
        raise UsageError(f"run {run.path} has logged no step yet; leave out --run, or wait")
    return int(np.nanargmin(np.abs(logged - progress)))
