"""The sentences of a study's page: each claims what its interval carries, and says what it does not.

Three cases decide every wording: an interval that excludes 0, one that includes it, and one seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from chronomask.report.comparison import (
    Numbers,
    interval_text,
    signed,
    task_title,
    unit_of,
    verdict,
)

__all__ = ["difference_sentences", "reach_sentences", "study_sentences"]

_MOST_NAMED = 4


def study_sentences(study: Numbers) -> list[str]:
    """What was compared, what came out, and how far it carries."""
    tasks = study["tasks"]
    loss = [task for task in tasks if task["task"] == "validation_loss"]
    others = [task for task in tasks if task["task"] != "validation_loss"]
    sentences = [_what_ran(study)]
    for task in loss:
        sentences += difference_sentences([task], study["baseline"])
    if others:
        sentences += difference_sentences(others, study["baseline"])
    sentences += _tests(study)
    sentences += reach_sentences(study)
    return [*sentences, *_labels(study)]


def difference_sentences(tasks: Sequence[Numbers], baseline: str) -> list[str]:
    """What the differences from the baseline on these tasks carry."""
    found: dict[str, list[tuple[Numbers, str, Numbers]]] = {}
    for task in tasks:
        for arm, numbers in task["arms"].items():
            if arm != baseline:
                found.setdefault(verdict(task, numbers), []).append((task, arm, numbers))
    total = sum(map(len, found.values()))
    if not total:
        return []
    on = (
        f"On {task_title(tasks[0])}" if len(tasks) == 1 else f"On the {len(tasks)} downstream tasks"
    )
    unknown = found.get("unknown", [])
    if len(unknown) == total:
        return [
            f"{on}, every arm was trained with one seed, so no interval allows for another seed: the "
            "differences are shown, and nothing is claimed of them."
        ]
    one_seed = [task for task in tasks if len(task["seeds"]) == 1]
    sentences = []
    for kind in ("better", "worse"):
        hits = found.get(kind, [])
        if hits:
            sentences.append(
                f"{on}, {_share(len(hits), total)} with “{baseline}” "
                f"{'have intervals that exclude' if len(hits) > 1 else 'has an interval that excludes'} "
                f"zero with the arm {kind}: {_listed(hits, one_task=len(tasks) == 1)}."
            )
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
    if one_seed:
        sentences.append(
            "With one pre-training seed the intervals speak of these very checkpoints: another seed may "
            "turn them."
        )
    return sentences


def reach_sentences(study: Numbers) -> list[str]:
    """How soon each arm reached the baseline's final validation loss, in steps."""
    baseline = study["baseline"]
    curve = next((r for r in study["reach"] if r["quantity"] == "validation_loss"), None)
    if curve is None:
        return []
    faster, slower, undecided = [], [], []
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
        elif low is None or low > 1:
            slower.append(f"“{arm}”")
        else:
            undecided.append(arm)
    sentences = []
    if faster:
        sentences.append(
            f"The final validation loss of “{baseline}” was reached earlier, in share of its steps with "
            f"95 % interval, by {_and(_first(faster))}."
        )
    if slower:
        sentences.append(f"It was not reached within their training, at 95 %, by {_and(slower)}.")
    if undecided and (faster or slower):
        sentences.append("For the other arms it cannot be told whether they are faster.")
    elif undecided:
        sentences.append(
            f"Whether any arm reaches the final validation loss of “{baseline}” in fewer steps cannot be "
            "told from these runs."
        )
    return sentences


def _what_ran(study: Numbers) -> str:
    arms = [arm for arm in study["arms"] if arm["runs"]]
    seeds = max((len(arm["runs"]) for arm in arms), default=0)
    names = [task_title(task) for task in study["tasks"] if task["task"] != "validation_loss"]
    tasks = f", and evaluated on {_and(names)}" if names else ""
    each = "one seed" if seeds == 1 else f"{seeds} seeds each"
    return (
        f"{len(arms)} ways to mask were trained with {each}, on the same data in the same order from "
        f"the same initial weights{tasks}; “{study['baseline']}” is the baseline."
    )


def _tests(study: Numbers) -> list[str]:
    tested = [
        (task, arm, numbers)
        for task in study["tasks"]
        for arm, numbers in task["arms"].items()
        if numbers.get("p_holm") is not None
    ]
    if not tested:
        return []
    left = [item for item in tested if item[2]["p_holm"] <= 0.05]
    if left:
        return [
            f"After Holm’s correction over all comparisons ({len(tested)}), "
            f"{len(left)} {'remain' if len(left) > 1 else 'remains'} at 5 %: {_listed(left)}."
        ]
    if study["smallest_p"] > 0.05:
        return [
            f"The permutation tests cannot decide here: with so few seeds no p can be below "
            f"{study['smallest_p']:.2g}. About one in twenty of such intervals misses the truth by chance, "
            f"and there are {len(tested)} here."
        ]
    return [
        f"After Holm’s correction over all comparisons ({len(tested)}), no difference remains at 5 %."
    ]


def _labels(study: Numbers) -> list[str]:
    counts = {
        arm["name"]: arm["masked_tokens"] for arm in study["arms"] if arm.get("masked_tokens")
    }
    own = counts.get(study["baseline"])
    if not own:
        return []
    unequal = [name for name, count in counts.items() if abs(count / own - 1) > 0.02]
    if not unequal:
        return []
    return [
        f"{len(unequal)} arms predict more or fewer tokens than the baseline "
        f"({min(counts.values()) / own:.2f} to {max(counts.values()) / own:.2f} times as many), so their "
        "differences are not the schedule’s alone."
        if len(unequal) > 1
        else f"“{unequal[0]}” predicts {counts[unequal[0]] / own:.2f} times as many tokens as the "
        "baseline, so its difference is not the schedule’s alone."
    ]


def _listed(items: Sequence[tuple[Numbers, str, Numbers]], *, one_task: bool = False) -> str:
    named = [
        f"“{arm}”{'' if one_task else f' on {task_title(task)}'} {signed(task, n['difference'])} "
        f"({interval_text(task, n['difference_low'], n['difference_high'], sign=True)}; {unit_of(task)})"
        for task, arm, n in items[:_MOST_NAMED]
    ]
    return _and(_first([*named, *[""] * (len(items) - len(named))]))


def _first(parts: Sequence[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = len(parts) - _MOST_NAMED
    return [*parts[:_MOST_NAMED], f"{more} more in the table"] if more > 0 else list(parts)


def _share(hits: int, total: int) -> str:
    """``the one comparison``, ``2 of 3 comparisons``, ``none of 3 comparisons``."""
    if total == 1:
        return "the one comparison"
    return f"{hits or 'none'} of {total} comparisons"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
