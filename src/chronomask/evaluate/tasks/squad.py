"""SQuAD v1.1 and v2.0: fine-tuning a span head, then the best span of every context.

The files (Rajpurkar et al., EMNLP 2016; Rajpurkar, Jia and Liang, ACL 2018) are read as they are handed out:
one JSON file a split, plain or compressed. A question on a long context is several windows of tokens, and its
answer is the best span over all of them. In v2.0 a third of the training questions has no answer: these are
trained to point at the classification token, whose score is set against that of the best span.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.errors import DataError, UsageError, amount, shown
from chronomask.evaluate.finetune import (
    NOT_TOLD,
    AtLeastOne,
    FineTuning,
    Loss,
    Positive,
    Telling,
    outputs,
)
from chronomask.evaluate.finetuned_task import FineTunedTask, Part
from chronomask.evaluate.spans import (
    Question,
    Questions,
    Span,
    Windows,
    best_spans,
    fitting_sizes,
    make_windows,
    merge_spans,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import (
    content_sha256,
    folder_of,
    is_hub,
    load_split,
    parse_json,
)
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import check_text, read_text

if TYPE_CHECKING:
    import torch

__all__ = [
    "SquadConfig",
    "SquadTask",
    "SquadV2Task",
    "best_threshold",
    "exact_match",
    "f1",
    "normalise",
    "read_questions",
    "score_answers",
    "split_file",
]

HUB_NAMES = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}
_SUFFIXES = (".json", ".json.gz", ".json.xz")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


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


SquadPart = Part[Questions, Windows]


class Answer(NamedTuple):
    """The best span of a question."""

    text: str
    """"" where there is none"""
    null_lead: float
    """by how much the score of no answer is above the span's, in logits; infinity without a span"""


class SquadTask(FineTunedTask[SquadConfig, Questions, Windows]):
    """Extractive question answering."""

    name = "squad"
    title = "SQuAD"
    family = "squad"
    unit = "percent"
    head = "AutoModelForQuestionAnswering"
    version: ClassVar[str] = "1.1"
    """of the files"""

    @property
    def head_options(self) -> dict[str, Any]:
        """Two outputs, whatever the checkpoint was last used for: a token as first and as last."""
        return {"num_labels": 2}

    def data_sha256(self, task_data: Path) -> str:
        """Of the train and the dev file."""
        if is_hub(task_data):
            return content_sha256(*map(_plain, self._splits(task_data)))
        return files_sha256(split_file(task_data, k, self.version) for k in ("train", "dev"))

    def read(self, task_data: Path) -> tuple[Questions, dict[str, Questions]]:
        """The training questions, and those of the dev set."""
        train, dev = self._splits(task_data)
        return train, {"dev": dev}

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Fine-tune with the recipe and answer the dev questions."""
        started = time.monotonic()
        prepared = self.prepare(model, task_data, progress)
        train, dev = prepared.train, prepared.dev["dev"]
        tuned = self.tune(model, prepared, seed, progress)
        scores = self.scores(dev.examples, tuned.answers["dev"])
        metrics, details = self.summary(dev.examples, tuned.answers["dev"], scores)
        return self.result(
            model,
            seed,
            started,
            metrics=metrics,
            primary="f1",
            num_examples={
                "train": len(train.examples),
                "train_windows": len(train.encoded),
                "dev": len(dev.examples),
                "dev_windows": len(dev.encoded),
            },
            data_sha256=prepared.data_sha256,
            details=tuned.details | details,
            examples=scores,
            left_out=self.left_out(prepared),
        )

    def encode(self, model: Subject, examples: Questions, shown: Progress = NOT_SHOWN) -> Windows:
        """Windows of tokens, one or more a question."""
        return make_windows(
            model.tokenizer,
            examples,
            max_length=self.config.max_length,
            stride=self.config.stride,
            max_question_tokens=self.config.max_question_tokens,
            task=self.name,
            shown=shown,
        )

    def fitting(self, model: Subject) -> dict[str, int]:
        """The model's length, and what of the question and of the stride fits into it."""
        found = super().fitting(model)
        return found | fitting_sizes(
            model.tokenizer,
            max_length=found["max_length"],
            stride=self.config.stride,
            max_question_tokens=self.config.max_question_tokens,
        )

    def groups(self, examples: Questions) -> NDArray[np.int64]:
        """The article of each question."""
        return examples.articles[[question.context for question in examples.questions]]

    def loss(self, part: SquadPart, device: torch.device) -> Loss:
        """Mean cross entropy of the first and of the last token of the gold answer."""
        import torch
        from torch.nn import functional

        places = torch.from_numpy(part.encoded.answer).to(device)

        def loss_of(
            output: Any, inputs: dict[str, torch.Tensor], index: torch.Tensor
        ) -> torch.Tensor:
            losses = []
            for side, logits in enumerate((output.start_logits, output.end_logits)):
                logits = logits.float()
                if "attention_mask" in inputs:  # padding is no possible answer
                    logits = logits.masked_fill(inputs["attention_mask"] == 0, -torch.inf)
                losses.append(functional.cross_entropy(logits, places[index, side]))
            return (losses[0] + losses[1]) / 2

        return loss_of

    def answers(self, model: Any, part: SquadPart, telling: Telling = NOT_TOLD) -> list[Answer]:
        """The answer to each question: the best span over all its windows, "" if there is none."""
        questions, windows = part.examples, part.encoded
        null = np.full(len(questions), np.inf)
        found: list[list[Span]] = [[] for _ in questions.questions]
        for index, output in outputs(model, windows, self.config, telling):
            starts = output.start_logits.float().cpu().numpy()
            ends = output.end_logits.float().cpu().numpy()
            for window, start, end in zip(index, starts, ends, strict=True):
                number = windows.question[window]
                null[number] = min(null[number], start[windows.null_at] + end[windows.null_at])
                offsets = windows.offsets[window]
                place = slice(at := windows.context_at[window], at + len(offsets))
                for score, first, last in best_spans(
                    start[place], end[place], self.config.max_answer_tokens
                ):
                    span = Span(-score, int(offsets[first, 0]), int(offsets[last, 1]))
                    found[number].append(span)
        answers = []
        for number, (question, spans) in enumerate(zip(questions.questions, found, strict=True)):
            best = merge_spans(spans, 1)
            context = questions.contexts[question.context]
            text = context[best[0].start : best[0].end] if best else ""
            answers.append(Answer(text, null[number] + best[0].minus_score if best else np.inf))
        return answers

    def scores(self, questions: Questions, answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        """The result's ``examples``."""
        return score_answers(questions, [answer.text for answer in answers])

    def summary(
        self, questions: Questions, answers: Sequence[Answer], scores: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The result's ``metrics``, and what its ``details`` have beside how the model was tuned."""
        return {name: float(values.mean()) for name, values in scores.items()}, {}

    def score(self, part: SquadPart, answers: Sequence[Answer]) -> float:
        """Mean F1, 0 to 100."""
        return float(self.scores(part.examples, answers)["f1"].mean())

    def _splits(self, task_data: Path) -> tuple[Questions, Questions]:
        train, dev = (read_questions(task_data, split, self.version) for split in ("train", "dev"))
        return train, dev


class SquadV2Task(SquadTask):
    """Extractive question answering where some questions have no answer.

    A question is answered with "" where the score of no answer (first and last token at the classification
    token, the lowest over its windows) is above that of the best span (Devlin et al., NAACL 2019, with the
    threshold 0). ``best_f1`` and ``best_exact`` are the official script's: with the threshold that suits
    the dev set best.
    """

    name = "squad_v2"
    title = "SQuAD 2.0"
    version = "2.0"

    def scores(self, questions: Questions, answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
        """``exact_match`` and ``f1`` at the threshold 0."""
        texts = [answer.text if answer.null_lead <= 0 else "" for answer in answers]
        return score_answers(_without_empty(questions), texts)

    def summary(
        self, questions: Questions, answers: Sequence[Answer], scores: Mapping[str, NDArray[Any]]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Means over all questions, those with and those without an answer; best thresholds and theirs."""
        answered = np.array([bool(question.answers) for question in questions.questions])
        metrics = {name: float(values.mean()) for name, values in scores.items()}
        for kind, of_kind in (("HasAns", answered), ("NoAns", ~answered)):
            if of_kind.any():
                metrics |= {
                    f"{kind}_{name}": float(v[of_kind].mean()) for name, v in scores.items()
                }
        spans = score_answers(_without_empty(questions), [answer.text for answer in answers])
        texts = np.array([answer.text != "" for answer in answers])
        lead = np.array([answer.null_lead for answer in answers])
        details = {}
        for name, official in (("f1", "best_f1"), ("exact_match", "best_exact")):
            gains = np.where(answered, spans[name], -100.0 * texts)
            metrics[official], details[f"{official}_thresh"] = best_threshold(lead, gains, answered)
        return metrics, details


def best_threshold(
    lead: NDArray[np.float64], gains: NDArray[np.float64], answered: NDArray[np.bool_]
) -> tuple[float, float]:
    """The best mean score, 0 to 100, of answering where ``lead`` is at most a threshold, and it.

    As evaluate-v2.0 finds it: from nothing answered (threshold 0, as it says), in the order of ``lead`` [N],
    each question adds its ``gains`` [N]: its span's score, or −100 where an answer is given and none is
    right; the first best threshold stands. ``answered`` [N]: whether there is an answer.
    """
    order = np.argsort(lead, kind="stable")
    scores = 100.0 * (~answered).sum() + np.cumsum(gains[order])
    best = int(scores.argmax())
    if scores[best] <= 100.0 * (~answered).sum():
        return 100.0 * float((~answered).mean()), 0.0
    return float(scores[best] / lead.size), float(lead[order[best]])


def _without_empty(questions: Questions) -> Questions:
    """The questions without gold answers that normalise to nothing: the script of v2.0 drops these."""
    kept = [
        replace(question, answers=tuple(filter(normalise, question.answers)))
        for question in questions.questions
    ]
    return replace(questions, questions=kept)


def score_answers(questions: Questions, answers: list[str]) -> dict[str, NDArray[np.float64]]:
    """``exact_match`` and ``f1``, 0 to 100, of each question."""
    pairs = list(zip(answers, questions.questions, strict=True))
    return {
        "exact_match": np.array([exact_match(given, asked.answers) for given, asked in pairs]),
        "f1": np.array([f1(given, asked.answers) for given, asked in pairs]),
    }


def normalise(answer: str) -> str:
    """An answer as the official script compares it: lower case, no ASCII punctuation, no articles,
    single spaces.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """100 if the prediction is one of the gold answers after normalisation, else 0.

    Where there is no gold answer, to say nothing is right, as in v2.0.
    """
    return 100.0 * (normalise(prediction) in {normalise(answer) for answer in answers or [""]})


def f1(prediction: str, answers: Sequence[str]) -> float:
    """0 to 100: overlap of words with the nearest gold answer after normalisation.

    Where nothing is left of either side after normalisation, 100 if nothing is left of both: the
    rule of the v2.0 script, which agrees with exact match (that of v1.1 gives 0). Where there is no gold
    answer, to say nothing is right.
    """
    ours = normalise(prediction)
    return 100.0 * max(_overlap(ours, normalise(answer)) for answer in answers or [""])


def _overlap(prediction: str, answer: str) -> float:
    ours, theirs = prediction.split(), answer.split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def split_file(task_data: Path, split: str, version: str = "1.1") -> Path:
    """The file of ``train`` or ``dev``: ``<split>-v1.1.json``, or one whose name goes on from there.

    Raises UsageError if there is none or more than one.
    """
    folder = folder_of(task_data, "squad")
    found = [
        path
        for path in sorted(folder.glob(f"{split}-v{version}*"))
        if path.name.endswith(_SUFFIXES) and path.is_file()
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        name = f"{split}-v{version}.json"
        raise UsageError(
            f"{folder / name} does not exist (nor .json.gz, nor .json.xz): name the folder that holds it, "
            "itself or in squad, or hub to take the data from the Hugging Face hub"
        )
    names = ", ".join(path.name for path in found)
    raise UsageError(f"{folder} has several {split} files ({names}): leave only one of them")


def read_questions(task_data: Path, split: str, version: str = "1.1") -> Questions:
    """All questions of ``train`` or ``dev``; raises DataError naming the place of what is wrong."""
    if is_hub(task_data):
        return _from_hub({"dev": "validation"}.get(split, split), version)
    path = split_file(task_data, split, version)
    return _parse(parse_json(read_text(path), str(path)), str(path), version)


def _parse(values: Any, where: str, version: str) -> Questions:
    """The questions in the values of a file; raises DataError for values of another shape."""
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
                    answers = tuple(answer["text"] for answer in item["answers"])
                    starts = tuple(_start_of(answer, at) for answer in item["answers"])
                    question = Question(
                        str(item["id"]), item["question"], len(contexts) - 1, answers, starts
                    )
                    _check(question, contexts[-1], seen, at, version)
                    impossible = item.get("is_impossible", not answers)
                    if impossible not in (True, False) or impossible == bool(answers):
                        raise DataError(
                            f"{at}: is_impossible is {json.dumps(impossible)}, and the question has "
                            f"{amount(len(answers), 'answers')}: it is true where there is none, else false"
                        )
                    questions.append(question)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{at}: {what}; expected data > paragraphs > context, qas > id, question, answers > "
            "text, answer_start"
        ) from None
    if not questions:
        raise DataError(f"{where} holds no questions")
    return Questions(contexts, np.asarray(articles, np.int64), questions)


def _check(question: Question, context: str, seen: set[str], at: str, version: str) -> None:
    """Raise DataError for a question that cannot be trained or scored on."""
    texts = (question.text, context, *question.answers)
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{at}: question, context and answers must be text")
    for text in texts:
        check_text(text, at)
    if not question.answers and version == "1.1":
        raise DataError(f"{at}: no answer; every question of SQuAD v1.1 has one (is this v2.0?)")
    if question.id in seen:
        raise DataError(f"{at}: the id occurs twice")
    seen.add(question.id)
    for answer, start in zip(question.answers, question.starts, strict=True):
        if start < 0 or context[start : start + len(answer)] != answer:
            found = context[max(0, start) : max(0, start) + len(answer)]
            raise DataError(
                f"{at}: the answer {shown(answer)} is not at character {start} of its context, "
                f"where it says {shown(found)}; {_where(answer, context, start)}"
            )


def _start_of(answer: Mapping[str, Any], at: str) -> int:
    """The character at which an answer begins; raises DataError for what is no whole number."""
    start = answer["answer_start"]
    if isinstance(start, bool) or not isinstance(start, int | float) or start != start // 1:
        raise DataError(f"{at}: answer_start is {shown(start)}; it should be a whole number")
    return int(start)


def _where(answer: str, context: str, start: int) -> str:
    """Where an answer is that is not at ``start``, and what may have counted otherwise."""
    places = [found.start() for found in re.finditer(re.escape(answer), context)]
    if not places:
        return "the context does not hold it: correct one of them, or take the question out"
    nearest = min(places, key=lambda place: abs(place - start))
    units = {
        "bytes of UTF-8": len(context[:nearest].encode()),
        "units of UTF-16, as JavaScript counts": len(context[:nearest].encode("utf-16-le")) // 2,
    }
    counted = next((what for what, place in units.items() if place == start), None)
    why = f" (the file counts {counted}, and a character is a code point)" if counted else ""
    return f"it is at character {nearest}{why}: set answer_start to that"


def _from_hub(split: str, version: str) -> Questions:
    """A split of the hub's data set."""
    name = HUB_NAMES[version]
    rows = load_split(name, None, split)
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
        _check(questions[-1], row["context"], seen, f"{name}, question {row['id']}", version)
    return Questions(list(numbers), np.asarray(articles, np.int64), questions)


def _plain(questions: Questions) -> list[Any]:
    """What a split holds, as values that JSON knows."""
    return [
        [asked.id, asked.text, questions.contexts[asked.context], asked.answers, asked.starts]
        for asked in questions.questions
    ]
