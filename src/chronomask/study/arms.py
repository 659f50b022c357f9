"""An arm is the base run with the fields it declares; nothing else may differ.

Beside fields of the run config an arm may hold

- ``base``: a run config of its own to start from. Where it differs from the study's base, it must differ
  in fields that the arm declares;
- ``equal_labels``: ``steps`` or ``ratio``. The arm is changed to predict as many tokens as the baseline:
  it trains for fewer or more steps with its schedule stretched over them, or its ratios are scaled by one
  factor. The field so changed counts as declared.

Its ``masking.content.weights`` may be ``{arm: NAME}``: the class weights that the run of that arm with the
same seed ended with, which is therefore trained before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from chronomask.config import diff, kind_of
from chronomask.config_layers import merge, nested
from chronomask.data.mixture import open_data
from chronomask.errors import UsageError, nearest, shown
from chronomask.runs.layout import RunFolder
from chronomask.runs.rules import expect, maskable_tokens, unknown_before
from chronomask.study.config import StudyConfig
from chronomask.study.settings import naming_settings
from chronomask.train.config import RunConfig

__all__ = ["Arm", "check_declared", "resolve_arms"]

_RESERVED = ("base", "equal_labels")
_WEIGHTS = "masking.content.weights"
_OF_THE_STUDY = ("name", "data", "seed")
_LONGEST = 64
"""How many times longer than planned an arm may train to have as many labels."""
_TRIES = 64
"""Factors tried; one is enough where labels are proportional to ratios."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to mask: ``config`` is its run with seed 0 in place of each seed."""

    name: str
    config: RunConfig
    declared: tuple[str, ...]
    """dotted fields, or groups of fields, in which it may differ from the base"""
    differs: Mapping[str, tuple[Any, Any]]
    """dotted field → value of the base, value of the arm"""
    equal_labels: str | None
    weights_of: str | None = None
    """the arm whose runs' last class weights its runs of the same seed take; ``config`` has none instead"""
    own_fields: tuple[str, ...] = ()
    """those that it must be given itself: the declared ones, or all if it starts from a config of its own"""

    def run_config(self, seed: int, source: RunFolder | None = None) -> RunConfig:
        """Its run of a seed; ``source``: the run that ended with the weights it takes, if it takes any.

        Raises UsageError where that run is not complete or has no weights.
        """
        config = self.config.model_copy(update={"seed": seed})
        if source is None:
            return config
        values = config.to_dict()
        values["masking"]["content"]["weights"] = str(source.path)
        return RunConfig.parse(values, f"arm '{self.name}'")

    def declares(self, key: str) -> bool:
        """Whether a dotted field of its runs is its own to set, and not the base's."""
        return any(key == field or key.startswith(f"{field}.") for field in self.own_fields)


def resolve_arms(study: StudyConfig, data: str) -> dict[str, Arm]:
    """All arms by name, trained on the prepared folder ``data``; raises UsageError for unfair ones."""
    with naming_settings():
        base = RunConfig.parse({**study.base, "data": data}, "base")
    names = [study.baseline, *(name for name in study.arms if name != study.baseline)]
    arms: dict[str, Arm] = {}
    for name in names:
        arm = _resolve(name, study.arms[name], base, arms.get(study.baseline))
        _refuse_equal(arm, arms)
        arms[name] = arm
    for arm in arms.values():
        _check_source(arm, arms)
    return {name: arms[name] for name in study.arms}


def check_declared(base: RunConfig, arm: RunConfig, declared: tuple[str, ...]) -> None:
    """Raise UsageError if the two differ in more than the declared fields and what the study sets."""
    allowed = (*declared, *_OF_THE_STUDY)
    undeclared = {
        key: pair
        for key, pair in diff(base, arm).items()
        if not any(key == field or key.startswith(f"{field}.") for field in allowed)
    }
    if undeclared:
        listing = "; ".join(
            f"{key} is {theirs!r}, not {ours!r}" for key, (ours, theirs) in undeclared.items()
        )
        raise UsageError(
            f"arm '{arm.name}' differs from the base in fields it does not declare: {listing}. "
            "Declare them in the arm if they belong to what is compared; else make them equal"
        )


def _resolve(
    name: str,
    fields: Mapping[str, Any],
    base: RunConfig,
    baseline: Arm | None,
) -> Arm:
    """An arm as the study writes it, with its whole config; refused if it hides a difference."""
    where = f"arm '{name}'"
    changes = _changes({k: v for k, v in fields.items() if k not in _RESERVED}, where)
    weights_of = _take_source(changes)
    start = fields.get("base")
    if start is not None and not isinstance(start, dict):
        raise UsageError(f"{where}: base is {start!r}; give a run config or the path of one")
    if start is not None:
        values = RunConfig.parse({**start, "data": base.data}, f"{where}: base").to_dict()
    else:
        values = base.to_dict()
    declared = tuple(_declared_fields(changes, base.to_dict()))
    with naming_settings(name, declared):
        config = RunConfig.parse(merge(values, changes), where)
    if config.hours is not None:
        raise UsageError(
            f"{where}: hours decides the steps where the run trains, and a study compares runs whose steps "
            "are known: set hours null, and give steps"
        )
    config = config.model_copy(update={"name": name, "seed": 0})
    mode = fields.get("equal_labels")
    if mode is not None:
        if mode not in ("steps", "ratio"):
            raise UsageError(f"{where}: equal_labels is {mode!r}; valid: steps, ratio")
        if baseline is None:
            raise UsageError(f"{where} is the baseline: it cannot have equal_labels with itself")
        config = _with_equal_labels(config, baseline.config, mode)
        config = RunConfig.parse(config.to_dict(), f"{where} as equal_labels: {mode} makes it")
        declared += ("steps",) if mode == "steps" else ("masking.ratio",)
    check_declared(base, config, declared)
    differs = {k: v for k, v in diff(base, config).items() if k not in _OF_THE_STUDY}
    if weights_of is not None:
        before = differs.get(_WEIGHTS, (None, None))[0]
        differs[_WEIGHTS] = (before, f"those that “{weights_of}” ended with, seed by seed")
    own = declared if start is None else tuple(RunConfig.model_fields)
    return Arm(name, config, declared, differs, mode, weights_of, own)


def _take_source(changes: dict[str, Any]) -> str | None:
    """The arm that ``masking.content.weights`` names as ``{arm: NAME}``, taken out of them; or None."""
    *groups, last = _WEIGHTS.split(".")
    group: Any = changes
    for key in groups:
        group = group.get(key) if isinstance(group, dict) else None
    weights = group.get(last) if isinstance(group, dict) else None
    if not isinstance(weights, dict) or set(weights) != {"arm"}:
        return None
    name = weights["arm"]
    if not isinstance(name, str):  # the weight of a class of that name
        return None
    group[last] = {}
    return name


def _check_source(arm: Arm, arms: Mapping[str, Arm]) -> None:
    """Refuse weights of an arm that is not there, that has none, or that waits for this one."""
    if arm.weights_of is None:
        return
    key = f"arm '{arm.name}': {_WEIGHTS}.arm"
    source = arms.get(arm.weights_of)
    if source is None:
        raise UsageError(
            f"{key} is {shown(arm.weights_of)}, which is no arm; {nearest(arm.weights_of, arms)}"
        )
    content = source.config.masking.content
    if not content.needs_classes:
        having = [name for name, own in arms.items() if own.config.masking.content.needs_classes]
        others = [name for name in having if name != arm.name]
        raise UsageError(
            f"{key} is '{source.name}', whose content '{kind_of(content)}' ends with no weights of classes: "
            + (f"name one of {', '.join(others)}" if others else "add an arm with content ptw")
        )
    chain = [arm.name, source.name]
    while (following := arms[chain[-1]].weights_of) is not None:
        if following not in arms or following in chain[1:]:
            break
        chain.append(following)
    if chain[-1] == arm.name:
        raise UsageError(
            f"{key} leads back to the arm itself: {' → '.join(chain)}. Name an arm that learns its weights, "
            "such as one with content ptw"
        )


def _with_equal_labels(config: RunConfig, baseline: RunConfig, mode: str) -> RunConfig:
    """The run changed to predict as many tokens as the baseline does, by its schedules."""
    for run in (config, baseline):
        if (why := unknown_before(run)) is not None:
            raise UsageError(
                f"{run.name}: how many tokens it predicts is known only once it has trained ({why}), "
                "so it cannot take part in equal_labels"
            )
        if run.objective.has_causal_rows:
            raise UsageError(
                f"{run.name}: equal_labels counts masked tokens, and objective "
                f"'{kind_of(run.objective)}' predicts next tokens beside them: leave equal_labels out"
            )
    target = expect(baseline, _counted_at(baseline, config)).labels
    maskable_at = _counted_at(config, baseline)

    def labels_of(run: RunConfig) -> float:
        return expect(run, maskable_at).labels

    if not labels_of(config):
        raise UsageError(f"{config.name} predicts nothing, so equal_labels cannot be met")
    if mode == "ratio":
        return _with_ratios_for(config, target, labels_of)
    return _with_steps_for(config, target, labels_of, _LONGEST * max(config.steps, baseline.steps))


def _counted_at(config: RunConfig, other: RunConfig) -> Callable[[int], float]:
    """Of how many tokens of a row the ratio is a share at a step, in a unit shared with ``other``.

    Those that may be masked; all of a row where the rows of a batch share one budget. Where both count alike,
    and neither cuts its rows nor counts its progress in labels, the number does not matter; else the prepared
    data must be there, since what can be masked in it decides.
    """
    runs = (config, other)
    if any(run.length_warmup is not None for run in runs):
        what = "length_warmup"
    elif any(run.masking.progress == "masked_tokens" for run in runs):
        what = "masking.progress 'masked_tokens'"
    elif len({run.masking.budget == "batch" for run in runs}) > 1:
        what = "masking.budget 'batch'"
    else:
        return lambda step: 1.0
    try:
        data = open_data(config.data)
    except UsageError as error:
        raise UsageError(
            f"{config.name}: with {what}, equal_labels must count what can be masked in the prepared "
            f"data ({error}); prepare it first and name its folder as base.data"
        ) from None
    if config.masking.budget == "batch":
        return lambda step: float(data.row_length)
    return maskable_tokens(config, data)


def _with_steps_for(
    config: RunConfig, target: float, labels_of: Callable[[RunConfig], float], most: int
) -> RunConfig:
    """The run with the number of steps, not far above ``most``, whose labels come closest to ``target``."""

    def of(steps: int) -> RunConfig:
        return config.model_copy(update={"steps": steps})

    low, high = 0, 1  # more steps than low are needed, and no more than high
    while labels_of(of(high)) < target:
        if high > most:
            raise UsageError(
                f"arm '{config.name}' predicts fewer tokens than the baseline in any number of steps, "
                "since its ratio falls to 0; use equal_labels: ratio, or a schedule that ends higher"
            )
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if labels_of(of(middle)) < target:
            low = middle
        else:
            high = middle
    near = (of(low), of(high)) if low else (of(high),)
    return min(near, key=lambda run: abs(labels_of(run) - target))


def _with_ratios_for(
    config: RunConfig, target: float, labels_of: Callable[[RunConfig], float]
) -> RunConfig:
    """The run with all its ratios multiplied by the one factor that gives ``target`` labels."""
    factor, scaled = 1.0, config
    for _ in range(_TRIES):
        labels = labels_of(scaled)
        if abs(labels / target - 1) < 1e-6:
            return scaled
        factor *= target / labels
        try:
            ratio = config.masking.ratio.times(factor)
        except UsageError as error:
            raise UsageError(f"arm '{config.name}': {error}; use equal_labels: steps") from None
        masking = config.masking.model_copy(update={"ratio": ratio})
        scaled = config.model_copy(update={"masking": masking})
    raise UsageError(
        f"arm '{config.name}': the ratios of '{kind_of(config.masking.ratio)}' cannot be scaled as one to "
        "predict as many tokens as the baseline; use equal_labels: steps"
    )


def _refuse_equal(arm: Arm, others: Mapping[str, Arm]) -> None:
    for other in others.values():
        same_weights = arm.weights_of == other.weights_of
        if same_weights and not set(diff(arm.config, other.config)) - {"name"}:
            raise UsageError(
                f"arms '{other.name}' and '{arm.name}' are equal: their runs would be the same bit for "
                "bit. Remove one, or say what differs"
            )


def _changes(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of a run config that an arm changes, dots taken apart as ``--set`` does."""
    for key in fields:
        first = str(key).partition(".")[0]
        if first not in RunConfig.model_fields:
            valid = [name for name in RunConfig.model_fields if name not in _OF_THE_STUDY]
            raise UsageError(
                f"{where}: unknown key '{key}'; {nearest(first, (*_RESERVED, *valid))}"
            )
        if first in _OF_THE_STUDY:
            raise UsageError(f"{where} sets '{first}', which all arms of a study share")
    return nested(fields)


def _declared_fields(
    changes: Mapping[str, Any], before: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Dotted fields that changes name; naming a ``kind``, or a group that is null ``before``, declares all
    that belongs to it.
    """
    for key, value in changes.items():
        is_off = before.get(key, ...) is None
        if isinstance(value, dict) and value and "kind" not in value and not is_off:
            within = before.get(key)
            within = within if isinstance(within, dict) else {}
            yield from _declared_fields(value, within, f"{prefix}{key}.")
        elif key == "kind":
            yield prefix.removesuffix(".")
        else:
            yield f"{prefix}{key}"
