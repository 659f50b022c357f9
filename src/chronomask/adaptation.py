"""What an adaptation is asked for, and what it came to: its measures before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chronomask.config_layers import Layer

if TYPE_CHECKING:
    from chronomask.evaluate.subject import Subject
    from chronomask.runs.result import TaskResult

__all__ = ["Adaptation", "NewWords", "Plan", "extend_card", "public_name"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for beside checkpoint, text and folder."""

    epochs: float = 1.0
    """passes over the text, unless ``layers`` name the steps"""
    layers: Sequence[Layer] = ()
    """changes of the run's config, over the recipe ``adapt``"""
    preparation: Sequence[Layer] = ()
    """changes of the preparation"""
    also: str | Path | None = None
    """other text, or prepared data, to measure on before and after: it shows what is forgotten"""
    tasks: Sequence[str] = ()
    """downstream tasks to measure before and after"""
    task_data: Path | None = None
    """folder of their files"""
    task_settings: Sequence[str] = ()
    """changes of their recipes, such as ``cola.epochs=2``, and of the loss, such as ``mlm.batch_rows=1``"""
    seeds: int = 1
    """fine-tuning seeds of each task"""
    new_words: int | None = None
    """words of the text to add to the vocabulary, at most; None: the tokenizer stays as it is"""
    min_count: int = 10
    """how often a new word must occur in the text"""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """What came of it."""

    model: Path
    """the continued model, which transformers opens"""
    run: Path
    """the run"""
    before: Mapping[str, Sequence[TaskResult]] = field(repr=False)
    """results of the checkpoint: of the text (``data``), of other text (``also``), of ``tasks``"""
    after: Mapping[str, Sequence[TaskResult]] = field(repr=False)
    """the same of the continued model"""
    words: NewWords | None = None
    """the new vocabulary, if there is one"""

    def __str__(self) -> str:
        """Every measure before and after, as a table, and what new words did."""
        table = _as_text(_table(self.before, self.after))
        return table if self.words is None else f"{table}\n{self.words}"

    def summary(self) -> dict[str, Any]:
        """What happened, for programs: a line a measure, and the new vocabulary."""
        lines = [
            {"measured_on": where, "measure": metric, "before": old, "after": new}
            for where, metric, old, new in _table(self.before, self.after)
        ]
        if self.words is None:
            return {"measures": lines}
        per_word = {"before": self.words.before, "after": self.words.after}
        return {"measures": lines, "new_words": self.words.num, "tokens_per_word": per_word}


@dataclass(frozen=True, slots=True)
class NewWords:
    """The new vocabulary of a model."""

    num: int
    """words that were added"""
    before: float
    """mean number of tokens of a word of the text"""
    after: float
    """the same with the new words"""

    def __str__(self) -> str:
        """A sentence on the vocabulary, and one on how to read the losses."""
        return (
            f"{self.num:,} new words: a word of your text is {self.after:.2f} tokens, before "
            f"{self.before:.2f}. Losses per token are of different tokens before and after; "
            "loss_per_word, in nats per hidden word, compares them."
        )


_LICENCE = ("license", "license_name", "license_link")
"""Fields of a card that state a licence; the hub asks for the name of one that it does not know."""
_NAMES = {"data": "your text", "also": "the other text", "tasks": ""}


def _table(
    before: Mapping[str, Sequence[TaskResult]], after: Mapping[str, Sequence[TaskResult]]
) -> list[tuple[str, str, float, float]]:
    """Where it was measured, the measure, its mean over seeds before and after."""
    return [
        (_NAMES[group] or task, metric, old, new)
        for group, results in before.items()
        for (task, metric), old in _means(results).items()
        for new in [_means(after[group])[task, metric]]
    ]


def _means(results: Sequence[TaskResult]) -> dict[tuple[str, str], float]:
    values: dict[tuple[str, str], list[float]] = {}
    for result in results:
        for metric, value in result.metrics.items():
            values.setdefault((result.task, metric), []).append(value)
    return {key: sum(each) / len(each) for key, each in values.items()}


def _as_text(table: Sequence[tuple[str, str, float, float]]) -> str:
    cells = [
        ("measured on", "measure", "before", "after", "change"),
        *(
            (where, metric, f"{old:.4f}", f"{new:.4f}", f"{new - old:+.4f}")
            for where, metric, old, new in table
        ),
    ]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if k < 2 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def hub_name(model: Subject) -> str | None:
    """The name by which the hub knows a model; None of a folder that is not in the hub's cache."""
    from chronomask.model.open import name_in_cache

    folder = Path(model.name)
    return name_in_cache(folder) if folder.exists() else model.name


def public_name(model: Subject) -> str:
    """A hub name; of a folder, which has no name that others could look up, the last part says most."""
    return hub_name(model) or Path(model.name).resolve().name


def extend_card(text: str, first: Subject, done: Adaptation) -> str:
    """A run's card with the checkpoint it continued, its licence if it states one, and the table.

    ``base_model`` is a link on the hub, so a folder's name does not stand there.
    """
    head, body = _parts_of_card(text)
    name = public_name(first)
    base, _ = _parts_of_card(_base_card(first))
    if (linked := hub_name(first)) is not None:
        head["base_model"] = linked
    head |= {key: base[key] for key in _LICENCE if key in base}
    rows = "\n".join(
        f"| {where} | {metric} | {old:.4f} | {new:.4f} |"
        for where, metric, old, new in _table(done.before, done.after)
    )
    words = "" if done.words is None else f"{done.words}\n\n"
    section = (
        f"## Continued from {name}\n\n"
        "Measured before and after with the same masks; losses are in nats per predicted token of "
        "held-out text.\n\n"
        f"| measured on | measure | before | after |\n|---|---|---|---|\n{rows}\n\n{words}"
    )
    where = body.find("## Masking")
    body = body[:where] + section + body[where:] if where >= 0 else body + section
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def _base_card(model: Subject) -> str:
    file = model.path / "README.md"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _parts_of_card(text: str) -> tuple[dict[str, Any], str]:
    """The YAML head of a model card, and the rest; an empty head where it has none that can be read."""
    if not text.startswith("---\n"):
        return {}, text
    head, closed, body = text.removeprefix("---\n").partition("\n---\n")
    try:
        values = yaml.safe_load(head)
    except yaml.YAMLError:
        values = None
    return (values, body) if closed and isinstance(values, dict) else ({}, text)
