"""A page's first sentence: the answer.

It names the arm that ended best and says whether the seeds carry it. Intervals decide the wording: one that
excludes 0, one that includes it, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from chronomask.report.comparison import (
    LOSS,
    LOSSES,
    MEAN_LOSS,
    Numbers,
    first_few,
    gap_text,
    interval_text,
    join_words,
    mean_text,
    p_text,
    percent,
    task_title,
    unit_of,
    verdict,
)

__all__ = ["answer"]


def answer(study: Numbers) -> str:
    """The page's first sentence: which arm ended best, and whether the seeds carry it.

    It speaks of the mean of the yardsticks; of the validation loss where runs have no such mean; and of the
    first task that was measured where nothing was validated.
    """
    by_name = {task["task"]: task for task in reversed(study["tasks"])}
    first = study["tasks"][0] if study["tasks"] else None
    task = by_name.get(MEAN_LOSS, by_name.get(LOSS, first))
    if task is None:
        return _answer_of_the_unfinished(study)
    baseline, arms = study["baseline"], task["arms"]
    if task["task"] in LOSSES and len(arms) > 1 and not study.get("losses_compare", True):
        return (
            "No loss says here which arm is better, because validation did not ask all runs the same: "
            "“Before you read on” says what differs."
        )
    if task.get("contrasts"):
        return _answer_of_contrasts(task)
    own = arms[baseline]
    others = {name: numbers for name, numbers in arms.items() if name != baseline}
    if not others:
        return _answer_of_one_arm(task, study)
    verdicts = {name: verdict(task, numbers) for name, numbers in others.items()}
    first_in_order = _in_order(task)[0]
    if set(verdicts.values()) == {"unknown"}:
        return _answer_without_intervals(task, study)
    better = [name for name in _in_order(task) if verdicts.get(name) == "better"]
    if better:
        return _answer_of_the_better(task, better[0], study)
    value = _value(task, own["mean"])
    if first_in_order == baseline:
        worse = sum(found == "worse" for found in verdicts.values())
        certain = f"of {len(others)} intervals of the differences, {worse or 'none'}"
        verb = "excludes" if worse < 2 else "exclude"
        if len(others) == 1:
            certain = "the interval of the one difference"
            verb = "excludes" if worse else "includes"
        return (
            f"No arm ended better than “{baseline}”, whose {_label(task)} is {value}; "
            f"{certain} {verb} zero."
        )
    return (
        f"No arm is shown to be better than “{baseline}”: “{first_in_order}” has the {_best_word(task)} "
        f"{_label(task)}, {_value(task, others[first_in_order]['mean'])}, and the 95 % interval of its "
        f"difference ({gap_text(task, others[first_in_order])}) includes zero."
    )


def _answer_of_one_arm(task: Numbers, study: Numbers) -> str:
    """The first sentence of a page with one arm: how it ended."""
    baseline = study["baseline"]
    own, seeds = task["arms"][baseline], len(task["seeds"])
    interval = interval_text(task, own["low"], own["high"], sign=False)
    over = f" on average over {seeds} seeds (95 % interval {interval})" if seeds > 1 else ""
    of_name = {arm["name"]: arm for arm in study["arms"]}
    right = of_name[baseline].get("validation_accuracy")
    share = ""
    if task["task"] in LOSSES and right is not None and right == right:
        share = f"; {percent(right)} of the tokens are right"
    return f"“{baseline}” ended with a {_label(task)} of {_value(task, own['mean'])}{over}{share}."


def _answer_of_the_better(task: Numbers, best: str, study: Numbers) -> str:
    """The first sentence where an arm is shown to be better, and where another has the best mean as well."""
    baseline, arms = study["baseline"], task["arms"]
    numbers, first = arms[best], _in_order(task)[0]
    ends = sorted(abs(numbers[f"difference_{end}"]) for end in ("low", "high"))
    gap = mean_text(task, abs(numbers["difference"]))
    shown = (
        f"is {gap} {'higher' if task['higher_is_better'] else 'lower'} than that of “{baseline}” (95 % "
        f"interval of the difference {_size_text(task, *ends)}).{_labels_of(best, study)}"
    )
    if mean_text(task, arms[first]["mean"]) == mean_text(task, numbers["mean"]):
        return f"“{best}” ended best: its {_label(task)} of {_value(task, numbers['mean'])} {shown}"
    return (
        f"“{first}” has the {_best_word(task)} {_label(task)}, {_value(task, arms[first]['mean'])}, but the "
        f"95 % interval of its difference from “{baseline}” ({gap_text(task, arms[first])}) includes zero. "
        f"“{best}” is shown to be better: its {mean_text(task, numbers['mean'])} {shown}"
    )


def _answer_without_intervals(task: Numbers, study: Numbers) -> str:
    """The first sentence where no difference has an interval: one seed each, or none that arms share."""
    baseline, arms = study["baseline"], task["arms"]
    first, second = _in_order(task)[:2]
    beside, what = (second, ", the next") if first == baseline else (baseline, "")
    gap = mean_text(task, abs(arms[first]["mean"] - arms[beside]["mean"]))
    one_each = all(len(arm["runs"]) <= 1 for arm in study["arms"])
    why = "with one seed each" if one_each else "as the arms share too few seeds for an interval"
    return (
        f"“{first}” ended with the {_best_word(task)} {_label(task)}, {_value(task, arms[first]['mean'])}, "
        f"{gap} {'above' if task['higher_is_better'] else 'below'} {'the baseline ' if not what else ''}"
        f"“{beside}”{what}; {why} this is no evidence."
    )


def _answer_of_the_unfinished(study: Numbers) -> str:
    """The first sentence where no arm was measured to its end."""
    curve = next((curve for curve in study["curves"] if curve["quantity"] == LOSS), None)
    if curve is None:
        return "No validation has been made yet."
    baseline = study["baseline"]
    theirs = next(arm for arm in study["arms"] if arm["name"] == baseline)
    if len(study["arms"]) > 1 and not theirs["runs"]:
        return (
            f"No run of the baseline “{baseline}” is complete, so there is nothing to compare yet."
        )
    if theirs.get("complete"):  # or it would have been measured
        if len(study["arms"]) == 1:
            return f"“{baseline}” ended with a loss that is no number: it diverged."
        return (
            f"No loss of the baseline “{baseline}” is left to compare the others with: “Before you read on” "
            "says why."
        )
    last = {name: (arm["mean"][-1], arm["step"][-1]) for name, arm in curve["arms"].items()}
    name, (loss, step) = min(last.items(), key=lambda item: item[1])
    if len(last) == 1:
        return (
            f"“{name}” is not finished: its last validation, after step {step:,.0f}, has a loss of "
            f"{loss:.3f} nats per predicted token."
        )
    return "The baseline is not finished, so there is nothing to compare yet."


def _answer_of_contrasts(task: Numbers) -> str:
    """What the declared contrasts say of the headline: those told apart after Holm's correction, those whose
    interval alone excludes zero, and how many are not told apart.
    """
    told: list[tuple[str, str]] = []  # who is better, and than whom
    alone: list[tuple[str, str]] = []
    for one in task["contrasts"]:
        found = verdict(task, one)
        if found not in ("better", "worse"):
            continue
        ahead = found == "better"
        best, other = (one["arm"], one["other"]) if ahead else (one["other"], one["arm"])
        ends = sorted(abs(one[f"difference_{end}"]) for end in ("low", "high"))
        p = one.get("p_holm")
        text = (
            f"than “{other}” by {_amount(task, one['difference'])} (95 % interval "
            f"{_size_text(task, *ends)}"
            f"{'' if p is None else f'; p {p_text(p)} after Holm’s correction'})"
        )
        (told if p is None or p <= 0.05 else alone).append((best, text))
    number = len(task["contrasts"])
    where = f"On the {LOSSES[task['task']]}" if task["task"] in LOSSES else f"On {task_title(task)}"
    if not told and not alone:
        return f"{where} {_none_told_apart(task)}"
    sentences = []
    if told:
        sentences.append(f"{where} {_said_once(told)}.")
    else:
        sentences.append(f"{where} no declared pair is told apart after Holm’s correction.")
    if alone:
        own = "its own interval" if len(alone) == 1 else "their own intervals"
        sentences.append(f"By {own} alone, {_said_once(alone)}.")
    if rest := number - len(told) - len(alone):
        are = "is" if rest == 1 else "are"
        sentences.append(f"{rest} of the {number} declared pairs {are} not told apart.")
    return " ".join(sentences)


def _said_once(better: Sequence[tuple[str, str]]) -> str:
    """``“a” is better than “b” by 1, than “c” by 2 and “d” is better than “e” by 3``."""
    than: dict[str, list[str]] = {}
    for best, text in better:
        than.setdefault(best, []).append(text)
    parts = []
    for best, (first, *others) in than.items():
        parts += [f"“{best}” is better {first}", *others]
    return join_words(first_few(parts))


def _none_told_apart(task: Numbers) -> str:
    """The end of a first sentence where no interval excludes zero, with what would have been seen."""
    number = len(task["contrasts"])
    alone, corrected = (
        max(one.get(key) or 0.0 for one in task["contrasts"])
        for key in ("detectable", "detectable_holm")
    )
    power = f" Four such studies of five would have shown a difference of {_amount(task, alone)}"
    if number > 1 and corrected:
        power += f" ({mean_text(task, corrected)} after Holm’s correction)"
    power = f"{power}." if alone else ""
    if number > 1:
        return f"none of the {number} declared pairs of arms is told apart.{power}"
    (one,) = task["contrasts"]
    ends = (one[f"difference_{end}"] for end in ("low", "high"))
    return (
        f"“{one['arm']}” and “{one['other']}” are not told apart: they are "
        f"{_amount(task, one['difference'])} apart, and the 95 % interval of the difference "
        f"({interval_text(task, *ends, sign=True)}) includes zero.{power}"
    )


def _in_order(task: Numbers) -> list[str]:
    """The arms from the best mean to the worst."""
    sign = -1 if task["higher_is_better"] else 1
    return sorted(task["arms"], key=lambda name: sign * task["arms"][name]["mean"])


def _best_word(task: Numbers) -> str:
    return "highest" if task["higher_is_better"] else "lowest"


def _label(task: Numbers) -> str:
    """What a task's number is called within a sentence."""
    return LOSSES.get(task["task"], f"result on {task_title(task)}")


def _value(task: Numbers, value: float) -> str:
    """A mean with its unit, within a sentence."""
    if task["task"] in LOSSES:
        return f"{mean_text(task, value)} nats per predicted token"
    return f"{mean_text(task, value)} ({unit_of(task)})"


def _amount(task: Numbers, value: float) -> str:
    """How large a difference is, with its unit: ``0.120 nats``, ``8.9 (Spearman, ×100)``."""
    text = mean_text(task, abs(value))
    return f"{text} nats" if task["task"] in LOSSES else f"{text} ({unit_of(task)})"


def _size_text(task: Numbers, low: float, high: float) -> str:
    """The interval of how much better an arm is, above zero at both ends: ``0.014 to 0.062``."""
    return interval_text(task, low, high, sign=True).replace("+", "")


def _labels_of(name: str, study: Numbers) -> str:
    """A sentence saying that an arm predicted more or fewer tokens than the baseline; empty if it did not."""
    counts = {arm["name"]: arm.get("masked_tokens") for arm in study["arms"]}
    own, theirs = counts.get(name), counts.get(study["baseline"])
    if not own or not theirs or abs(own / theirs - 1) <= 0.02:
        return ""
    return f" It predicted {own / theirs:.2f} times as many masked tokens."
