"""The sentences of a page below its answer: what was done and found.

None claims more than its numbers carry.

Three cases decide the wording of every difference: an interval that excludes 0, one that includes it, and
one seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from chronomask.report.arms import group_mean
from chronomask.report.comparison import (
    FREQUENCIES,
    LOSS,
    LOSSES,
    MEAN_LOSS,
    PAIRS,
    Numbers,
    difference_text,
    families,
    first_few,
    gap_text,
    is_downstream,
    join_words,
    percent,
    task_title,
    unit_of,
    verdict,
)
from chronomask.runs.plateau import architecture_of, still_since, what_helped
from chronomask.runs.read import Run
from chronomask.yardsticks import CONTENT, FUNCTION

__all__ = ["difference_sentences", "findings", "reach_sentences"]

_FAR = 0.05
"""How far from the ratio of validation an arm's last ratio lies where that is said."""


def findings(study: Numbers, runs: Mapping[int, Run]) -> list[str]:
    """What was done, what came out, and how far it carries, a finding each; ``runs``: arms' mean runs."""
    loss = [task for task in study["tasks"] if task["task"] == LOSS]
    losses = [task for task in study["tasks"] if task["task"] in LOSSES]
    others = [task for task in study["tasks"] if task["task"] not in LOSSES]
    of_model = [task for task in others if not is_downstream(task)]
    downstream = [task for task in others if is_downstream(task)]
    several = len([arm for arm in study["arms"] if arm["runs"]]) > 1
    one_seed = all(len(arm["runs"]) <= 1 for arm in study["arms"])
    if not study.get("losses_compare", True):
        loss = losses = []
    groups = [[_what_ran(study)], _loss_range(loss)]
    baseline, declared = study["baseline"], study.get("contrasts", ())
    groups += [
        difference_sentences([task], baseline, declared=declared)
        for task in losses
        if not one_seed and not _is_answered(task, study)
    ]
    if downstream:
        on = f"the {len(downstream)} downstream tasks" if len(downstream) > 1 else ""
        groups.append(difference_sentences(downstream, baseline, on, declared))
    if of_model:
        named = join_words([task_title(task) for task in of_model])
        on = f"the {len(of_model)} measures of the models themselves ({named})"
        on = on if len(of_model) > 1 else ""
        groups.append(difference_sentences(of_model, baseline, on, declared))
    groups.append(_tests(study))
    if several and not one_seed:
        groups.append(reach_sentences(study))
    if several:
        groups.append(_labels(study))
        groups.append(_far_from_yardstick(study))
    groups.append(_at_frequencies(study, runs))
    sentences = [" ".join(group) for group in groups if group]
    sentences += _classes(runs)
    if not several and one_seed:
        sentences.append("One run shows how training went; it compares nothing.")
    elif several and one_seed:
        seeds = {run["seed"] for arm in study["arms"] for run in arm["runs"]}
        same = f", all with seed {seeds.pop()}" if len(seeds) == 1 else ""
        sentences.append(
            f"Every arm was run once{same}: another seed would move these losses too, so differences "
            "between arms are not evidence that one way of masking is better."
        )
    return sentences


def difference_sentences(
    tasks: Sequence[Numbers], baseline: str, on: str = "", declared: Sequence[Sequence[str]] = ()
) -> list[str]:
    """What the differences from the baseline on these tasks carry; ``on``: what they are together.

    ``declared``: the study's contrasts. Where there are some, every other difference that is named is called
    exploratory.
    """
    exploratory = {arm for task in tasks for arm in task["arms"]} if declared else set[str]()
    exploratory -= {name for pair in declared if baseline in pair for name in pair}
    found: dict[str, list[tuple[Numbers, str, Numbers]]] = {}
    for task in tasks:
        for arm, numbers in task["arms"].items():
            if arm != baseline:
                found.setdefault(verdict(task, numbers), []).append((task, arm, numbers))
    total = sum(map(len, found.values()))
    if not total:
        return []
    on = f"On {on or join_words([task_title(task) for task in tasks])}"
    unknown = found.get("unknown", [])
    if len(unknown) == total:
        return [
            f"{on}, no interval covers the choice of seeds, because the arms share too few: the "
            "differences are shown, and no claim is made about them."
        ]
    sentences = []
    for kind in ("better", "worse"):
        hits = found.get(kind, [])
        if hits:
            opening = f"{on}, {_share(len(hits), total)} with “{baseline}”"
            if sentences:  # the one before has said on what, and with which baseline
                opening = f"{len(hits)} of the {total}"
            have = (
                "have intervals that exclude" if len(hits) > 1 else "has an interval that excludes"
            )
            named = _name_hits(hits, one_task=len(tasks) == 1, exploratory=exploratory)
            sentences.append(f"{opening} {have} zero with the arm {kind}: {named}.")
    still_open = found.get("open", [])
    if len(still_open) == total == 1:
        sentences.append(
            f"{on}, the interval of the one comparison with “{baseline}” includes zero: these runs show "
            "neither a difference nor that there is none."
        )
    elif len(still_open) == total:
        sentences.append(
            f"{on}, {_share(0, total)} with “{baseline}” has an interval that excludes "
            "zero: these runs do not show that any arm is better or worse, nor that they are equal."
        )
    elif still_open:
        others = (
            "The other interval includes"
            if len(still_open) == 1
            else f"The intervals of the other {len(still_open)} include"
        )
        sentences.append(f"{others} zero, which shows neither a difference nor that there is none.")
    if any(len(task["seeds"]) == 1 for task in tasks):
        sentences.append(
            "With one pre-training seed the intervals hold for these checkpoints alone: another seed may "
            "reverse them."
        )
    return sentences


def reach_sentences(study: Numbers) -> list[str]:
    """How soon each arm reached the baseline's final validation loss, in steps."""
    baseline = study["baseline"]
    curve = next((r for r in study["reach"] if r["quantity"] == LOSS), None)
    if curve is None:
        return []
    faster, later, missed, undecided = [], [], [], []
    for arm, axes in curve["arms"].items():
        if arm == baseline:
            continue
        step = axes["step"]
        share, low, high = (step.get(key) for key in ("share", "share_low", "share_high"))
        if "share_low" not in step:
            undecided.append(arm)
        elif high is not None and high < 1:
            span = "" if low is None else f" ({100 * low:.0f} to {100 * high:.0f} %)"
            faster.append(f"“{arm}” after {100 * share:.0f} %{span}")
        elif low is None:
            missed.append(f"“{arm}”")
        elif low > 1 and share is None:
            later.append(f"“{arm}” after {100 * low:.0f} % at the earliest, if at all")
        elif low > 1:
            end = "% or more" if high is None else f"to {100 * high:.0f} %"
            later.append(f"“{arm}” after {100 * share:.0f} % ({100 * low:.0f} {end})")
        else:
            undecided.append(arm)
    sentences = []
    what = f"The final validation loss of “{baseline}”"
    for when, found in (("earlier", faster), ("later", later)):
        if found:
            sentences.append(
                f"{what} was reached {when}, in share of its steps with 95 % interval, by "
                f"{join_words(first_few(found))}."
            )
            what = "It"
    if missed:
        sentences.append(
            f"{what} was not reached within training, at the 95 % level, by {join_words(missed)}."
        )
    decided = faster or later or missed
    if decided and study.get("contrasts"):
        sentences.append("No such share was declared to be tested: this is exploratory.")
    if undecided and decided:
        sentences.append("These runs do not show whether the other arms are faster.")
    elif undecided:
        sentences.append(
            f"These runs do not show whether any arm reaches the final validation loss of “{baseline}” in "
            "fewer steps."
        )
    return sentences


def _what_ran(study: Numbers) -> str:
    """How many arms, seeds and steps there were, what they share, and what they were evaluated on."""
    arms = [arm for arm in study["arms"] if arm["runs"]]
    counts = sorted({len(arm["runs"]) for arm in arms})
    lengths = sorted({round(arm["steps"]) for arm in arms if arm.get("steps") is not None})
    steps = ""
    if lengths:
        span = f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}"
        steps = f" for {span} steps"
    names = [task_title(task) for task in study["tasks"] if task["task"] not in LOSSES]
    tasks = f", and evaluated on {join_words(names)}" if names else ""
    if len(arms) == 1:
        seeds = "" if counts == [1] else f" with {counts[0]} seeds"
        return f"“{arms[0]['name']}” was trained{seeds}{steps}{tasks}."
    each = "one seed each" if counts == [1] else f"{counts[0]} seeds each"
    if len(counts) > 1:
        each = f"{counts[0]} to {counts[-1]} seeds"
    shared, same = "", ", on the same data in the same order"
    if study.get("shared_start", True):
        shared = f"{same} from the same initial weights"
    elif others := study.get("other_weights"):
        named = join_words(first_few([f"“{name}”" for name in others]))
        shared = f"{same}, {named} from other initial weights than “{study['baseline']}”"
    return (
        f"{len(arms)} ways to mask were trained with {each}{steps}{shared}{tasks}; "
        f"“{study['baseline']}” is the baseline."
    )


def _loss_range(loss: Sequence[Numbers]) -> list[str]:
    """Between which losses the arms ended."""
    if not loss or len(loss[0]["arms"]) < 2:
        return []
    means = {name: numbers["mean"] for name, numbers in loss[0]["arms"].items()}
    best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return [
        f"Validation losses lie between {means[best]:.3f} nats per predicted token (“{best}”) and "
        f"{means[worst]:.3f} (“{worst}”), {means[worst] - means[best]:.3f} apart."
    ]


def _is_answered(task: Numbers, study: Numbers) -> bool:
    """Whether the page's answer has all that there is to say of a task: its arms, in declared contrasts."""
    declared = {
        arm for pair in study.get("contrasts", ()) if study["baseline"] in pair for arm in pair
    }
    return task is families(study["tasks"])[0][0] and declared >= task["arms"].keys()


def _tests(study: Numbers) -> list[str]:
    """What is left of the differences after a correction for their number, of the headline and the others.

    Where contrasts were declared, the page's answer has the headline's.
    """
    pairs = len(study.get("contrasts", ()))
    declared = bool(pairs)
    sentences = []
    for family in families(study["tasks"])[declared:]:
        tested = [
            (task, arm, numbers)
            for task in family
            for arm, numbers in _tests_of(task, declared=declared)
            if numbers.get("p_holm") is not None
        ]
        if not tested:
            continue
        total = pairs * len({task["task"] for task, _, _ in tested}) or len(tested)
        first = family[0]["task"]
        on = f"the {LOSSES[first]}" if first in LOSSES else task_title(family[0])
        if len(family) > 1:
            others = bool(sentences) or declared
            on = f"{len(family)} other measures" if others else f"{len(family)} measures"
        left = [item for item in tested if item[2]["p_holm"] <= 0.05]
        found = "no difference remains at 5 %"
        if left:
            verb = "remains" if len(left) == 1 else "remain"
            named = _name_hits(left, one_task=len(family) == 1)
            found = f"{len(left)} {verb} at 5 %: {named}"
        correction = "after Holm’s correction over" if total > 1 else "of"
        sentences.append(f"On {on}, {correction} {_number_of_tests(total, pairs)}, {found}.")
    return sentences


def _number_of_tests(total: int, declared: int) -> str:
    """``the one comparison``, ``the 3 declared contrasts``, ``4 tests (the 2 declared contrasts on each)``"""
    if not declared:
        return f"the {total} comparisons" if total > 1 else "the one comparison"
    of = f"the {declared} declared contrasts" if declared > 1 else "the one declared contrast"
    return of if total == declared else f"{total} tests ({of} on each)"


def _far_from_yardstick(study: Numbers) -> list[str]:
    """A sentence saying that arms ended at another ratio than the loss is measured at, which favours those
    near it.
    """
    known = [arm for arm in study["arms"] if math.isfinite(arm.get("validated_ratio") or math.nan)]
    ratios = {round(arm["validated_ratio"], 6) for arm in known}
    if len(ratios) != 1:
        return []
    (measured,) = ratios
    far = [
        f"“{arm['name']}” ({percent(arm['last_ratio'])})"
        for arm in known
        if arm["last_ratio"] is not None and abs(arm["last_ratio"] - measured) > _FAR
    ]
    if not far:
        return []
    company = (
        "the mean of the yardsticks, with ratios from 5 to 50 % and a single mask, depends less on it"
        if any(task["task"] == MEAN_LOSS for task in study["tasks"])
        else "compare it with another measure"
    )
    return [
        f"The validation loss is measured at {percent(measured)}, and {join_words(first_few(far))} ended at "
        f"another ratio: a loss at one ratio favours arms that end near it; {company}."
    ]


def _at_frequencies(study: Numbers, runs: Mapping[int, Run]) -> list[str]:
    """Which arms end no better than a table of neighbouring pairs of words would, since when, and what helped
    others.
    """
    curve = next((curve for curve in study["curves"] if curve["quantity"] == LOSS), None)
    references = {} if curve is None else curve.get("references") or {}
    if curve is None or not references:
        return []
    unigram, pairs = references[FREQUENCIES], references[PAIRS]
    last = {name: arm["mean"][-1] for name, arm in curve["arms"].items()}
    above = [name for name, loss in last.items() if loss > pairs]
    if not above:
        return []
    named = join_words(first_few([f"“{name}”" for name in above]))
    if len(above) == len(last):
        named = {1: "The model", 2: "Both arms"}.get(len(last), f"All {len(last)} arms")
    ends = "ends" if len(above) == 1 else "end"
    losses = sorted(last[name] for name in above)
    span = f"{losses[0]:.2f}" if len(losses) == 1 else f"{losses[0]:.2f} to {losses[-1]:.2f}"
    since = [
        still_since(curve["arms"][name]["step"], curve["arms"][name]["mean"]) for name in above
    ]
    stands = "Its loss has" if len(above) == 1 else "Their losses have"
    stands = (
        f"{stands} hardly moved since step {max(filter(None, since)):,}. " if all(since) else ""
    )
    helped = what_helped([architecture_of(run) for run in runs.values() if run.name in above])
    return [
        f"{named} {ends} with a validation loss of {span} nats, above the {pairs:.2f} of a table of "
        f"neighbouring pairs (words’ frequencies alone: {unigram:.2f}): so far "
        f"{'it makes' if len(above) == 1 else 'they make'} less of the words around than such a table would. "
        f"{stands}{helped}."
    ]


def _tests_of(task: Numbers, *, declared: bool) -> list[tuple[str, Numbers]]:
    """What is tested on a task: the declared contrasts, or every arm against the baseline."""
    if declared:
        return [(f"{one['arm']} − {one['other']}", one) for one in task["contrasts"]]
    return list(task["arms"].items())


def _labels(study: Numbers) -> list[str]:
    """Which arms learn from more or fewer predictions than the baseline, the range being theirs alone."""
    counts = {
        arm["name"]: arm["masked_tokens"] for arm in study["arms"] if arm.get("masked_tokens")
    }
    own = counts.get(study["baseline"])
    if not own:
        return []
    unequal = {name: count / own for name, count in counts.items() if abs(count / own - 1) > 0.02}
    if not unequal:
        return []
    if len(unequal) == 1:
        ((name, times),) = unequal.items()
        return [
            f"“{name}” predicts {times:.2f} times as many masked tokens as the baseline, so its difference "
            "is not due to the schedule alone."
        ]
    fewest, most = min(unequal.values()), max(unequal.values())
    kind = "more" if fewest > 1 else "fewer" if most < 1 else "more or fewer"
    span = f"{fewest:.2f}" if f"{fewest:.2f}" == f"{most:.2f}" else f"{fewest:.2f} to {most:.2f}"
    return [
        f"{len(unequal)} arms predict {kind} masked tokens than the baseline ({span} times as many), so "
        "their differences are not due to the schedule alone."
    ]


def _classes(runs: Mapping[int, Run]) -> list[str]:
    losses = []
    for run in runs.values():
        if len(run.validation):
            content, function = (
                group_mean(run.validation, "class_loss", group) for group in (CONTENT, FUNCTION)
            )
            if not math.isnan(content) and not math.isnan(function):
                losses.append((content, function))
    if not losses:
        return []
    content, function = (sum(column) / len(losses) for column in zip(*losses, strict=True))
    harder = "harder" if content > function else "easier"
    where = "" if len(losses) == 1 else ", averaged over the arms"
    return [
        f"Content words end up {harder} to predict than function words: {content:.2f} against "
        f"{function:.2f} nats{where}."
    ]


def _name_hits(
    items: Sequence[tuple[Numbers, str, Numbers]],
    *,
    one_task: bool = False,
    exploratory: Collection[str] = (),
) -> str:
    """Differences with their intervals, the first few; those of the ``exploratory`` arms are called so."""
    named = [
        f"“{arm}”{'' if one_task else f' on {task_title(task)}'} {difference_text(task, n['difference'])} "
        f"({gap_text(task, n)}; {unit_of(task)}{'; exploratory' if arm in exploratory else ''})"
        for task, arm, n in items
    ]
    return join_words(first_few(named))


def _share(hits: int, total: int) -> str:
    """``the one comparison``, ``2 of 3 comparisons``, ``none of 3 comparisons``."""
    if total == 1:
        return "the one comparison"
    return f"{hits or 'none'} of {total} comparisons"
