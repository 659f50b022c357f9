"""SQuAD v1.1: fine-tuning a span head, and the best span over all windows of every dev question."""

from __future__ import annotations

import time
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

from chronomask.evaluate.finetune import (
    AtLeastOne,
    FineTuning,
    Loss,
    Positive,
    check_fine_tuning,
    fine_tune,
    open_seeded,
    outputs,
)
from chronomask.evaluate.hub import content_sha256, is_hub
from chronomask.evaluate.metrics import exact_match, f1
from chronomask.evaluate.selection import Prepared, at_most, choose_rate
from chronomask.evaluate.spans import Span, Windows, best_spans, make_windows, merge_spans
from chronomask.evaluate.squad_files import Questions, read_questions, split_file
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, recipe_of, result_of, sha256_of
from chronomask.runs.result import TaskResult

__all__ = ["Part", "SquadConfig", "SquadTask", "answers_of", "score_answers", "span_loss"]


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
