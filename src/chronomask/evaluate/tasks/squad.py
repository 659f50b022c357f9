"""SQuAD v1.1: fine-tuning a span head, and the best span over all windows of every dev question."""

from __future__ import annotations

import gzip
import json
import lzma
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.nn import functional
from transformers import AutoModelForQuestionAnswering

from chronomask.errors import DataError, UsageError
from chronomask.evaluate.finetune import (
    AtLeastOne,
    FineTuning,
    Loss,
    Positive,
    Prepared,
    at_most,
    check_fine_tuning,
    choose_rate,
    fine_tune,
    open_seeded,
    outputs,
)
from chronomask.evaluate.hub import content_sha256, is_hub, load_split
from chronomask.evaluate.metrics import exact_match, f1
from chronomask.evaluate.spans import Span, Windows, best_spans, make_windows, merge_spans
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, folder_of, recipe_of, result_of, sha256_of
from chronomask.runs.result import TaskResult

__all__ = [
    "Part",
    "Question",
    "Questions",
    "SquadConfig",
    "SquadTask",
    "answers_of",
    "read_questions",
    "score_answers",
    "span_loss",
    "split_file",
]

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
    if not isinstance(question.text, str) or not isinstance(context, str):
        raise DataError(f"{at}: question and context must be text")
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


class SquadConfig(FineTuning):
    """The recipe, by default that of the examples of transformers."""

    learning_rate: Positive = 3e-5
    """peak of the learning rate"""
    epochs: AtLeastOne = 2
    """passes over the training data"""
    batch_size: AtLeastOne = 12
    """windows a step"""
    max_length: Annotated[int, Field(ge=8)] = 384
    """tokens of a window, special ones and the question included"""
    stride: Annotated[int, Field(ge=0)] = 128
    """tokens of the context that neighbouring windows share"""
    max_question_tokens: AtLeastOne = 64
    """tokens after which a question is cut"""
    max_answer_tokens: AtLeastOne = 30
    """tokens of the longest answer that is considered"""


@dataclass(frozen=True, slots=True)
class Part:
    """A split as questions and as windows."""

    questions: Questions
    windows: Windows


class SquadTask:
    """Extractive question answering."""

    name = "squad"
    family = "squad"
    draws = True

    def __init__(self, config: SquadConfig | None = None) -> None:
        self.config = config or SquadConfig()
        self._prepared = Kept[Prepared[Part, Part]]()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers."""
        return recipe_of(self.config)

    def data_sha256(self, data: Path) -> str:
        """Of the train and the dev file."""
        if is_hub(data):
            return content_sha256(*(_plain(read_questions(data, s)) for s in ("train", "dev")))
        return sha256_of(split_file(data, split) for split in ("train", "dev"))

    def check(self, model: Subject, data: Path) -> None:
        """Read everything once; raises UsageError or DataError."""
        check_fine_tuning(model, AutoModelForQuestionAnswering, self.config, self.name)
        for split in ("dev", "train"):
            questions = read_questions(data, split)
            self._windows(model, questions.take(np.arange(1)))

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Fine-tune with the recipe and answer the dev questions."""
        started = time.monotonic()
        prepared = self._prepare(model, data, progress)
        train, dev = prepared.train, prepared.dev
        label = f"squad seed {seed}"
        answers = self._tuned(model, train, dev, prepared.rate, seed, label, progress)
        scores = score_answers(dev.questions, answers)
        return result_of(
            self,
            model,
            seed,
            started,
            metrics={name: float(values.mean()) for name, values in scores.items()},
            primary="f1",
            num_examples={
                "train": len(train.questions),
                "train_windows": len(train.windows.encoded),
                "dev": len(dev.questions),
                "dev_windows": len(dev.windows.encoded),
            },
            data_sha256=prepared.data_sha256,
            details=prepared.choice,
            examples=scores,
        )

    def _prepare(self, model: Subject, data: Path, progress: bool) -> Prepared[Part, Part]:
        """Questions as windows and the learning rate; kept from one seed to the next."""
        digest = self.data_sha256(data)

        def prepared() -> Prepared[Part, Part]:
            train, dev = (
                self.part(model, read_questions(data, split)) for split in ("train", "dev")
            )
            rate, choice = self._choose(model, train, progress)
            return Prepared(train, dev, digest, rate, choice)

        return self._prepared.of((model.sha256, digest), prepared)

    def part(self, model: Subject, questions: Questions) -> Part:
        """Questions and their windows: at most ``limit`` questions, spread over the file."""
        questions = at_most(self.config.limit, questions)
        return Part(questions, self._windows(model, questions))

    def _windows(self, model: Subject, questions: Questions) -> Windows:
        return make_windows(
            model.tokenizer,
            questions,
            max_length=self.config.max_length,
            stride=self.config.stride,
            max_question_tokens=self.config.max_question_tokens,
        )

    def _choose(
        self, model: Subject, train: Part, progress: bool
    ) -> tuple[float, dict[str, float]]:
        def score(rate: float, kept: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
            inside, outside = (
                Part(questions, self._windows(model, questions))
                for questions in (train.questions.take(kept), train.questions.take(held_out))
            )
            answers = self._tuned(model, inside, outside, rate, 0, f"squad at {rate:g}", progress)
            return float(score_answers(outside.questions, answers)["f1"].mean())

        return choose_rate(self.config, train.questions.article_of_each(), score)

    def _tuned(
        self,
        model: Subject,
        train: Part,
        dev: Part,
        rate: float,
        seed: int,
        label: str,
        progress: bool,
    ) -> list[str]:
        """Answers to the questions of ``dev`` of a model fine-tuned on ``train``."""
        with open_seeded(model, AutoModelForQuestionAnswering, self.config, seed) as opened:
            loss_of = span_loss(train.windows, opened.device)
            fine_tune(
                opened, train.windows.encoded, loss_of, self.config, rate, seed,
                label=label, progress=progress,
            )  # fmt: skip
            return answers_of(opened, dev.questions, dev.windows, self.config, label, progress)


def span_loss(windows: Windows, device: torch.device) -> Loss:
    """Mean cross entropy of the first and of the last token of the gold answer."""
    places = torch.from_numpy(windows.answer).to(device)

    def loss_of(output: Any, inputs: dict[str, torch.Tensor], index: torch.Tensor) -> torch.Tensor:
        losses = []
        for side, logits in enumerate((output.start_logits, output.end_logits)):
            logits = logits.float()
            if "attention_mask" in inputs:  # padding is no possible answer
                logits = logits.masked_fill(inputs["attention_mask"] == 0, -torch.inf)
            losses.append(functional.cross_entropy(logits, places[index, side]))
        return (losses[0] + losses[1]) / 2

    return loss_of


def answers_of(
    model: Any,
    questions: Questions,
    windows: Windows,
    config: SquadConfig,
    label: str = "squad",
    progress: bool = False,
) -> list[str]:
    """The answer to each question: the best span over all its windows, "" if there is none."""
    found: list[list[Span]] = [[] for _ in questions.questions]
    encoded = windows.encoded
    for index, output, _ in outputs(model, encoded, config, label=label, progress=progress):
        starts = output.start_logits.float().cpu().numpy()
        ends = output.end_logits.float().cpu().numpy()
        for window, start, end in zip(index, starts, ends, strict=True):
            offsets = windows.offsets[window]
            place = slice(at := windows.context_at[window], at + len(offsets))
            for score, first, last in best_spans(
                start[place], end[place], config.max_answer_tokens
            ):
                span = Span(-score, int(offsets[first, 0]), int(offsets[last, 1]))
                found[windows.question[window]].append(span)
    answers = []
    for question, spans in zip(questions.questions, found, strict=True):
        best = merge_spans(spans, 1)
        context = questions.contexts[question.context]
        answers.append(context[best[0].start : best[0].end] if best else "")
    return answers


def score_answers(questions: Questions, answers: list[str]) -> dict[str, NDArray[np.float64]]:
    """``exact_match`` and ``f1``, 0 to 100, of each question."""
    pairs = list(zip(answers, questions.questions, strict=True))
    return {
        "exact_match": np.array([exact_match(given, asked.answers) for given, asked in pairs]),
        "f1": np.array([f1(given, asked.answers) for given, asked in pairs]),
    }


def _plain(questions: Questions) -> list[Any]:
    """What a split holds, as values that JSON knows."""
    return [
        [asked.id, asked.text, questions.contexts[asked.context], asked.answers, asked.starts]
        for asked in questions.questions
    ]
