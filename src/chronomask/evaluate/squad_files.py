"""SQuAD v1.1 as it is handed out: one JSON file a split, plain or compressed.

Rajpurkar et al., "SQuAD" (EMNLP 2016).
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.hub import is_hub, load_split
from chronomask.evaluate.task import folder_of

__all__ = ["Question", "Questions", "read_questions", "split_file"]

HUB_NAME = "rajpurkar/squad"
_SUFFIXES = (".json", ".json.gz", ".json.xz")
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True, slots=True)
class Question:
    """One question on one context. Training takes the first answer, scoring all of them."""

    id: str
    text: str
    context: int
    """its context's place among the contexts"""
    answers: tuple[str, ...]
    starts: tuple[int, ...]
    """where each answer begins in the context, in characters"""


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions in file order, and the contexts they are about."""

    contexts: list[str]
    articles: NDArray[np.int64]
    """[number of contexts]: the article each is of"""
    questions: list[Question]

    def __len__(self) -> int:
        return len(self.questions)

    def take(self, index: NDArray[np.int64]) -> Questions:
        """Some of the questions, in the order of ``index``."""
        return Questions(self.contexts, self.articles, [self.questions[i] for i in index])

    def article_of_each(self) -> NDArray[np.int64]:
        """int64 [N]: the article of each question."""
        return self.articles[[question.context for question in self.questions]]


def split_file(data: Path, split: str) -> Path:
    """The file of ``train`` or ``dev``: ``<split>-v1.1.json``, or one whose name goes on from there.

    Raises UsageError if there is none or more than one.
    """
    folder = folder_of(data, "squad")
    found = [
        path
        for path in sorted(folder.glob(f"{split}-v1.1*"))
        if path.name.endswith(_SUFFIXES) and path.is_file()
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{folder / split}-v1.1.json does not exist (nor .json.gz, nor .json.xz)")
    names = ", ".join(path.name for path in found)
    raise UsageError(f"{folder} has several {split} files ({names}): leave one of them there")


def read_questions(data: Path, split: str) -> Questions:
    """All questions of ``train`` or ``dev``; raises DataError naming the place of what is wrong."""
    if is_hub(data):
        return _from_hub({"dev": "validation"}.get(split, split))
    path = split_file(data, split)
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            values = json.loads(file.read().decode("utf-8-sig"))
    except _DAMAGE as error:
        raise DataError(
            f"{path} cannot be read: {error}; it is cut off or damaged: get it again"
        ) from None
    return _parsed(values, str(path))


def _parsed(values: Any, where: str) -> Questions:
    contexts: list[str] = []
    articles: list[int] = []
    questions: list[Question] = []
    seen: set[str] = set()
    at = where
    try:
        for number, article in enumerate(values["data"]):
            for paragraph in article["paragraphs"]:
                at = f"{where}, article {number + 1} ({article.get('title', 'no title')})"
                contexts.append(paragraph["context"])
                articles.append(number)
                for item in paragraph["qas"]:
                    at = f"{where}, question {item['id']}"
                    answers = tuple(str(answer["text"]) for answer in item["answers"])
                    starts = tuple(int(answer["answer_start"]) for answer in item["answers"])
                    question = Question(
                        str(item["id"]), item["question"], len(contexts) - 1, answers, starts
                    )
                    _check(question, contexts[-1], seen, at)
                    questions.append(question)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{at}: {what}; expected data > paragraphs > context, qas > id, question, answers > "
            "text, answer_start"
        ) from None
    if not questions:
        raise DataError(f"{where} holds no questions")
    return Questions(contexts, np.asarray(articles, np.int64), questions)


def _check(question: Question, context: str, seen: set[str], at: str) -> None:
    if not question.answers:
        raise DataError(f"{at}: no answer; every question of SQuAD v1.1 has one (is this v2.0?)")
    if question.id in seen:
        raise DataError(f"{at}: the id is there twice")
    seen.add(question.id)
    for answer, start in zip(question.answers, question.starts, strict=True):
        if start < 0 or context[start : start + len(answer)] != answer:
            found = context[max(0, start) : max(0, start) + len(answer)]
            raise DataError(
                f"{at}: the answer {answer!r} is not at character {start} of its context, "
                f"where it says {found!r}"
            )


def _from_hub(split: str) -> Questions:
    rows = load_split(HUB_NAME, None, split)
    numbers: dict[str, int] = {}
    titles: dict[str, int] = {}
    articles: list[int] = []
    questions: list[Question] = []
    seen: set[str] = set()
    for row in rows:
        number = numbers.setdefault(row["context"], len(numbers))
        if number == len(articles):
            articles.append(titles.setdefault(row["title"], len(titles)))
        answers = tuple(row["answers"]["text"]), tuple(row["answers"]["answer_start"])
        questions.append(Question(row["id"], row["question"], number, *answers))
        _check(questions[-1], row["context"], seen, f"{HUB_NAME}, question {row['id']}")
    return Questions(list(numbers), np.asarray(articles, np.int64), questions)
