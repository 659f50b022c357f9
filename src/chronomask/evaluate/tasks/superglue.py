"""SuperGLUE's small tasks (Wang et al., NeurIPS 2019): BoolQ, CB, COPA, RTE, WiC and WSC, by fine-tuning.

Files are read as they are handed out: a folder a task, ``train.jsonl`` and ``val.jsonl``, an example a line.
The models are the paper's baselines (section 5.1): a classification head on pairs of texts (BoolQ, CB, RTE);
a scalar for each choice of COPA, and a softmax over the two; for WiC a linear layer on the first token and
the two marked words. For WSC the same with the noun phrase and the pronoun: a span is the mean of its tokens,
where the paper pools by attention. MultiRC and ReCoRD are not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.errors import DataError, amount, shown
from chronomask.evaluate.batches import Encoded, check_pairs, encode, end_to_end
from chronomask.evaluate.finetune import AtLeastOne, FineTuning, Positive, open_seeded
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import json_lines, one_file, register, task_folder, texts_in
from chronomask.evaluate.tasks.glue import ENTAILMENT, NLI_NAMES, Examples, Format, GlueTask
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.storage import files_sha256
from chronomask.text_files import read_lines
from chronomask.types import send

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["PAIR_TASKS", "SPAN_TASKS", "CopaTask", "SpanTask", "SuperGlue", "SuperGlueTask"]

_YES_NO = {"false": 0, "true": 1}
_NAMES = ("false", "true")
_CB = {"entailment": 0, "contradiction": 1, "neutral": 2}
_PREMISE = ("premise", "hypothesis")
PAIR_TASKS = {
    "boolq": Format("BoolQ", ("passage", "question"), "label", _YES_NO, _NAMES),
    "cb": Format("CB", _PREMISE, "label", _CB, tuple(_CB), metrics=("accuracy", "macro_f1")),
    "superglue_rte": Format(
        "RTE", _PREMISE, "label", ENTAILMENT, NLI_NAMES, title="RTE (SuperGLUE)"
    ),
}
"""Tasks whose examples are a text or two and a label."""
SPAN_TASKS = {
    "wic": Format("WiC", ("sentence1", "sentence2"), "label", _YES_NO, _NAMES),
    "wsc": Format("WSC", ("text",), "label", _YES_NO, _NAMES),
}
"""Tasks by name; the class numbers are those of the hub's ``super_glue``."""
_COPA = Format(
    "COPA", ("premise", "choice1", "choice2"), "label", {"0": 0, "1": 1}, ("choice1", "choice2")
)
_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}
_Span = tuple[int, int]


class SuperGlue(FineTuning):
    """The recipe; rate and epochs are those of the paper, which stops at the best of them."""

    learning_rate: Positive = 1e-5
    """peak of the learning rate"""
    epochs: AtLeastOne = 10
    """passes over the training data"""
    max_length: Annotated[int, Field(ge=8)] = 256
    """tokens of an example, special ones included; what is longer is cut"""


class SuperGlueTask(GlueTask):
    """One of those on pairs of texts; what they share with GLUE is GLUE's."""

    family = "superglue"
    formats: ClassVar[Mapping[str, Format]] = PAIR_TASKS

    def __init__(self, name: str, config: FineTuning | None = None) -> None:
        super().__init__(name, config or SuperGlue())

    def data_sha256(self, task_data: Path) -> str:
        """Of the two files."""
        return files_sha256(self._files(task_data))

    def read(self, task_data: Path) -> tuple[Examples, dict[str, Examples]]:
        """The training examples, and those of ``val.jsonl`` as ``dev``."""
        train, dev = (self.examples(file) for file in self._files(task_data))
        return train, {"dev": dev}

    def examples(self, file: Path) -> Examples:
        """The examples of a file; raises DataError naming the line of what is wrong."""
        texts, labels = [], []
        for where, values in json_lines(read_lines(file), file):
            texts.append(texts_in(values, self.format.texts, where))
            labels.append(self._label(values, where))
        if not texts:
            raise DataError(f"{file} holds no examples")
        columns = [list(column) for column in zip(*texts, strict=True)]
        pairs = columns[1] if len(columns) > 1 else None
        return Examples(columns[0], pairs, np.array(labels, np.int64))

    def _label(self, values: dict[str, Any], where: str) -> int:
        given = values.get("label")
        name = given if isinstance(given, str) else json.dumps(given)
        known = self.format.classes or {}
        if name.lower() not in known:
            raise DataError(f"{where}: label {shown(given)}; valid: {', '.join(known)}")
        return known[name.lower()]

    def _files(self, task_data: Path) -> list[Path]:
        folder = task_folder(task_data, "superglue", self.format.folder)
        return [one_file(folder / name) for name in ("train.jsonl", "val.jsonl")]


@dataclass(frozen=True, slots=True)
class Choices(Examples):
    """Premises with their question, first choices as ``pairs``, and second ones."""

    second: Sequence[str] = ()

    def take(self, index: NDArray[np.int64]) -> Choices:
        """Some of them, in the order of ``index``."""
        assert self.pairs is not None
        texts, pairs, second = (
            [column[k] for k in index.tolist()]
            for column in (self.texts, self.pairs, list(self.second))
        )
        return Choices(texts, pairs, self.labels[index], second=second)


@dataclass(frozen=True, slots=True)
class ChoiceRows(Encoded):
    """Two rows for each example, one after the other; lengths are those of the longer."""

    def __len__(self) -> int:
        return (self.bounds.size - 1) // 2

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [N]: tokens of the longer row of each example."""
        return np.diff(self.bounds).reshape(-1, 2).max(1)

    def batch(
        self,
        index: NDArray[np.int64],
        model: PreTrainedModel,
        device: torch.device,
        *,
        length: int | None = None,
    ) -> dict[str, Any]:
        """Both rows of each example: [2 · len(index), longest]."""
        rows = Encoded(self.ids, self.types, self.bounds, self.pad_token_id)
        both = (2 * index[:, None] + np.arange(2)).ravel()
        return rows.batch(both, model, device, length=length)


class CopaTask(SuperGlueTask):
    """The likelier of two causes or effects of what a premise says."""

    formats: ClassVar[Mapping[str, Format]] = {"copa": _COPA}

    @property
    def head_options(self) -> dict[str, Any]:
        """One scalar for each choice."""
        return {"num_labels": 1}

    def examples(self, file: Path) -> Choices:
        """The examples of a file; raises DataError naming the line of what is wrong."""
        rows, labels = [], []
        for where, values in json_lines(read_lines(file), file):
            premise, first, second = texts_in(values, self.format.texts, where)
            kind = values.get("question")
            if not isinstance(kind, str) or kind not in _QUESTIONS:
                raise DataError(f"{where}: question {shown(kind)}; valid: {', '.join(_QUESTIONS)}")
            rows.append((f"{premise} {_QUESTIONS[kind]}", first, second))
            labels.append(self._label(values, where))
        if not rows:
            raise DataError(f"{file} holds no examples")
        premises, firsts, seconds = (list(column) for column in zip(*rows, strict=True))
        return Choices(premises, firsts, np.array(labels, np.int64), second=seconds)

    def encode(self, model: Subject, examples: Examples, shown: Progress = NOT_SHOWN) -> ChoiceRows:
        """Two rows for each example: the premise with either choice."""
        assert isinstance(examples, Choices)
        assert examples.pairs is not None
        check_pairs(model.tokenizer)
        texts = [text for text in examples.texts for _ in range(2)]
        choices = [c for pair in zip(examples.pairs, examples.second, strict=True) for c in pair]
        rows = encode(model.tokenizer, texts, choices, self.config.max_length)
        shown.advance(len(examples))
        return ChoiceRows(
            rows.ids, rows.types, rows.bounds, rows.pad_token_id, left_out=rows.left_out
        )

    def logits(self, output: Any) -> torch.Tensor:
        """[B, 2]: the scalars of both choices."""
        return output.logits.float().view(-1, 2)


@dataclass(frozen=True, slots=True)
class Marked(Examples):
    """Texts or pairs of texts, and for each two spans of characters: one of each text, or both of the one."""

    spans: Sequence[tuple[_Span, _Span]] = ()

    def take(self, index: NDArray[np.int64]) -> Marked:
        """Some of them, in the order of ``index``."""
        pairs = None if self.pairs is None else [self.pairs[k] for k in index]
        spans = [self.spans[k] for k in index]
        return Marked([self.texts[k] for k in index], pairs, self.labels[index], spans=spans)


@dataclass(frozen=True, slots=True)
class SpanRows(Encoded):
    """Rows of tokens, and the two spans in each: int64 [N, 2, 2], first token and first after it."""

    spans: NDArray[np.int64]

    def batch(
        self,
        index: NDArray[np.int64],
        model: Any,
        device: torch.device,
        *,
        length: int | None = None,
    ) -> dict[str, Any]:
        """What :class:`chronomask.evaluate.heads.SpanClassifier` is given."""
        inputs = Encoded.batch(self, index, model.encoder, device, length=length)
        return inputs | {"spans": send(self.spans[index], device)}


class SpanTask(SuperGlueTask):
    """WiC: does a word mean the same in two sentences? WSC: does a pronoun stand for a noun phrase?"""

    formats: ClassVar[Mapping[str, Format]] = SPAN_TASKS
    head = "AutoModel"

    @contextmanager
    def open_copy(self, model: Subject, seed: int) -> Iterator[Any]:
        """The encoder with a new linear layer."""
        from chronomask.evaluate.heads import SpanClassifier

        with open_seeded(model, self.head, self.config, seed) as encoder:
            yield SpanClassifier(encoder, len(self.format.class_names))

    def examples(self, file: Path) -> Marked:
        """The examples of a file; raises DataError naming the line of what is wrong."""
        found = super().examples(file)
        places = (_spans(values, where) for where, values in json_lines(read_lines(file), file))
        return Marked(found.texts, found.pairs, found.labels, spans=list(places))

    def encode(self, model: Subject, examples: Examples, shown: Progress = NOT_SHOWN) -> SpanRows:
        """A row of tokens for each example, and where its spans are."""
        assert isinstance(examples, Marked)
        model.check_offsets()
        if examples.pairs is not None:
            check_pairs(model.tokenizer)
        rows: list[list[int]] = []
        types: list[list[int]] = []
        spans = np.zeros((len(examples), 2, 2), np.int64)
        for number, (text, marked) in enumerate(zip(examples.texts, examples.spans, strict=True)):
            encoded = model.tokenizer(
                text,
                None if examples.pairs is None else examples.pairs[number],
                truncation=True,
                max_length=self.config.max_length,
                return_offsets_mapping=True,
                return_token_type_ids=examples.pairs is not None,
            )
            shown.advance()
            rows.append(encoded["input_ids"])
            types += [encoded["token_type_ids"]] if "token_type_ids" in encoded else []
            of_text = np.array([-1 if n is None else n for n in encoded.sequence_ids()])
            offsets = np.array(encoded["offset_mapping"])
            for k, (begin, end) in enumerate(marked):
                own = of_text == (k if examples.pairs is not None else 0)
                inside = own & (offsets[:, 0] < end) & (offsets[:, 1] > begin)
                if inside.any():
                    at = np.flatnonzero(inside)
                    spans[number, k] = at[0], at[-1] + 1
        made = end_to_end(rows, types or None, model.tokenizer)
        missing = int((spans[..., 1] == 0).sum())
        return SpanRows(
            made.ids, made.types, made.bounds, made.pad_token_id, spans,
            left_out={"words that are cut or have no token": missing},
        )  # fmt: skip


def _spans(values: dict[str, Any], where: str) -> tuple[_Span, _Span]:
    """The two spans of characters of an example of WiC or WSC; raises DataError for what are none."""
    if "target" in values:
        return _noun_and_pronoun(values, where)
    return (
        _characters(values, "sentence1", "start1", "end1", where),
        _characters(values, "sentence2", "start2", "end2", where),
    )


def _characters(values: dict[str, Any], text: str, start: str, end: str, where: str) -> _Span:
    begin, after = values.get(start), values.get(end)
    if not (isinstance(begin, int) and isinstance(after, int)):
        raise DataError(f"{where} lacks {start} and {end}, the word's characters")
    if not 0 <= begin < after <= len(values[text]):
        raise DataError(f"{where}: characters {begin} to {after} are not in {text}")
    return begin, after


def _noun_and_pronoun(values: dict[str, Any], where: str) -> tuple[_Span, _Span]:
    """WSC gives a span's text and the number of its first word, counted between blanks.

    Where the text is not at that word, as in a few lines of the original, its nearest occurrence is meant.
    """
    target, text = values["target"], values["text"]
    if not isinstance(target, dict):
        raise DataError(f"{where}: target is {shown(target)}; it should hold span1_text and more")
    words = [match.start() for match in re.finditer(r"\S+", text)]
    found: list[_Span] = []
    for number in (1, 2):
        (span,) = texts_in(target, (f"span{number}_text",), where)
        index = target.get(f"span{number}_index")
        if not isinstance(index, int) or not 0 <= index < len(words):
            raise DataError(
                f"{where}: span{number}_index is {shown(index)}; the text has {amount(len(words), 'words')}"
            )
        places = [match.start() for match in re.finditer(re.escape(span), text)] if span else []
        if not places:
            raise DataError(f"{where}: span{number}_text {shown(span)} is not in the text")
        stated = words[index]
        at = min(places, key=lambda place: abs(place - stated))
        found.append((at, at + len(span)))
    return found[0], found[1]


for _task in (*map(SuperGlueTask, PAIR_TASKS), CopaTask("copa"), *map(SpanTask, SPAN_TASKS)):
    register(_task)
