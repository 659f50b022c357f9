"""Named entities and any other labelled spans of words: fine-tuning a head on every word's first token.

Files are those of CoNLL-2003 (Tjong Kim Sang and De Meulder, CoNLL 2003) or any of its shape: a word a
line, its label in the last column, an empty line after each sentence. Labels are ``O``, ``B-TYPE`` and
``I-TYPE`` (IOB1 or IOB2), also with ``E-`` and ``S-`` (IOBES). The score is the micro-averaged F1 of whole
entities, found as the shared task's script ``conlleval`` finds them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chronomask.errors import DataError, nearest, shown
from chronomask.evaluate.batches import Encoded, end_to_end
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
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import file_of_part, folder_of, no_file_of_part
from chronomask.progress import NOT_SHOWN, Progress
from chronomask.runs.result import TaskResult
from chronomask.storage import files_sha256
from chronomask.text_files import read_lines

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["Entity", "EntityTask", "Ner", "Tagged", "entities", "entity_files", "read_tagged"]

_ENDS = (".txt", ".conll", ".bio", ".iob2", ".tsv")
_OUTSIDE = "O"
_NO_LABEL = -100
_BLANKS = re.compile(" +")
"""What parts columns without tabs; other space, such as a no-break space, belongs to a word."""
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:(?=.)")
"""What WikiANN has before every word."""


class Entity(NamedTuple):
    """Words ``first`` to ``last``, both included, of one type."""

    kind: str
    first: int
    last: int


class Ner(FineTuning):
    """The recipe; rate and epochs are those of Devlin et al. (NAACL 2019) for named entities."""

    learning_rate: Positive = 5e-5
    """peak of the learning rate"""
    epochs: AtLeastOne = 3
    """passes over the training data"""
    max_length: Annotated[int, Field(ge=8)] = 128
    """tokens of a row, special ones included; a longer sentence is cut into rows between words"""
    part: Literal["dev", "test"] = "dev"
    """the part that is scored"""


@dataclass(frozen=True, slots=True)
class Tagged:
    """N sentences: their words, each with its label."""

    words: list[list[str]]
    labels: list[list[str]]

    def __len__(self) -> int:
        return len(self.words)

    def take(self, index: NDArray[np.int64]) -> Tagged:
        """Some of the sentences, in the order of ``index``."""
        return Tagged([self.words[i] for i in index], [self.labels[i] for i in index])


@dataclass(frozen=True, slots=True)
class WordRows(Encoded):
    """Rows of tokens, and where words begin in them."""

    word: NDArray[np.int64]
    """shape of ``ids``: the word that begins at a token, counted over all sentences, or −1"""


class EntityTask(FineTunedTask[Ner, Tagged, WordRows]):
    """F1 of entities, and of each type."""

    name = "ner"
    title = "named entities"
    family = "ner"
    head = "AutoModelForTokenClassification"

    def __init__(self, config: Ner | None = None) -> None:
        super().__init__(config)
        self._names: tuple[str, ...] = ()

    @property
    def head_options(self) -> dict[str, Any]:
        """One output for each label of the training part."""
        return {"num_labels": len(self._names)}

    def data_sha256(self, task_data: Path) -> str:
        """Of the two files."""
        return files_sha256(entity_files(task_data, self.config.part))

    def read(self, task_data: Path) -> tuple[Tagged, dict[str, Tagged]]:
        """The sentences of the training part, and of the part that is scored."""
        files = entity_files(task_data, self.config.part)
        train, scored = (read_tagged(file) for file in files)
        self._names = tuple(sorted({label for row in train.labels for label in row}))
        for label in sorted({label for row in scored.labels for label in row} - {*self._names}):
            raise DataError(
                f"{files[1]} has the label {shown(label)}, which {files[0]} never has; "
                f"{nearest(label, self._names)}"
            )
        return train, {self.config.part: scored}

    def encode(self, model: Subject, examples: Tagged, shown: Progress = NOT_SHOWN) -> WordRows:
        """Rows of at most ``max_length`` tokens; every word has its first token in one of them."""
        model.check_offsets()
        rows, words, cut, longest = [], [], 0, self.config.max_length
        for ids, word in _rows_of(model.tokenizer, examples.words, longest, shown):
            rows.append(ids[:longest])
            words.append(word[:longest])
            cut += len(ids) > longest
        encoded = end_to_end(rows, None, model.tokenizer)
        word = np.concatenate(words)
        dropped = sum(map(len, examples.words)) - int((word >= 0).sum())
        return WordRows(
            encoded.ids,
            None,
            encoded.bounds,
            encoded.pad_token_id,
            word,
            left_out={
                "words that the tokenizer drops": dropped,
                f"words cut at {longest} tokens": cut,
            },
        )

    def groups(self, examples: Tagged) -> NDArray[np.int64]:
        """Each sentence by itself."""
        return np.arange(len(examples))

    def loss(self, part: Part[Tagged, WordRows], device: torch.device) -> Loss:
        """Mean cross entropy over the first tokens of words."""
        import torch
        from torch.nn import functional

        word = part.encoded.word
        numbers = np.where(word >= 0, self._numbers(part)[word], _NO_LABEL)
        labels, bounds = (torch.from_numpy(x).to(device) for x in (numbers, part.encoded.bounds))

        def loss_of(
            output: Any, inputs: dict[str, torch.Tensor], index: torch.Tensor
        ) -> torch.Tensor:
            logits = output.logits.float()
            place = bounds[index, None] + torch.arange(logits.shape[1], device=device)
            known = labels[place.clamp_max(labels.shape[0] - 1)]
            target = torch.where(place < bounds[index + 1, None], known, _NO_LABEL)
            target = target.flatten()
            total = functional.cross_entropy(
                logits.flatten(0, 1), target, ignore_index=_NO_LABEL, reduction="sum"
            )
            return total / (target != _NO_LABEL).sum().clamp_min(
                1
            )  # there may be no word in a batch

        return loss_of

    def answers(
        self, model: PreTrainedModel, part: Part[Tagged, WordRows], telling: Telling = NOT_TOLD
    ) -> list[list[str]]:
        """The most likely label of each word."""
        # A word that the tokenizer drops is in no entity.
        outside = self._names.index(_OUTSIDE) if _OUTSIDE in self._names else 0
        found = np.full(sum(map(len, part.examples.words)), outside)
        for index, output in outputs(model, part.encoded, self.config, telling):
            places, at = _first_tokens(part.encoded, index)
            best = output.logits.float().argmax(-1).flatten().cpu().numpy()
            found[at] = best[places]
        names = iter(found.tolist())
        return [[self._names[next(names)] for _ in words] for words in part.examples.words]

    def score(self, part: Part[Tagged, WordRows], answers: list[list[str]]) -> float:
        """F1 of entities, in [0, 1]."""
        return f1_of(*_counts(part.examples.labels, answers).sum(0).tolist())

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """Fine-tune with the recipe and label the words of the scored part."""
        started = time.monotonic()
        prepared = self.prepare(model, task_data, progress)
        scored = prepared.dev[self.config.part]
        tuned = self.tune(model, prepared, seed, progress)
        answers = tuned.answers[self.config.part]
        gold = scored.examples.labels
        counts = _counts(gold, answers)
        right, given, there = counts.sum(0).tolist()
        pairs = [
            (a, b) for x, y in zip(answers, gold, strict=True) for a, b in zip(x, y, strict=True)
        ]
        return self.result(
            model,
            seed,
            started,
            metrics={
                "f1": f1_of(right, given, there),
                "precision": right / max(1, given),
                "recall": right / max(1, there),
                "accuracy": sum(a == b for a, b in pairs) / len(pairs),
            },
            primary="f1",
            num_examples={
                "train": len(prepared.train.examples),
                self.config.part: len(scored.examples),
                "entities": there,
            },
            data_sha256=prepared.data_sha256,
            details=tuned.details | _f1_by_kind(gold, answers),
            examples={"right": counts[:, 0], "given": counts[:, 1], "there": counts[:, 2]},
            left_out=self.left_out(prepared),
        )

    def _numbers(self, part: Part[Tagged, WordRows]) -> NDArray[np.int64]:
        """int64 [W]: the label of every word, as its number."""
        number = {name: k for k, name in enumerate(self._names)}
        return np.array([number[label] for row in part.examples.labels for label in row])


def entity_files(task_data: Path, part: str) -> tuple[Path, Path]:
    """The training file and the scored one, in ``task_data``/ner or ``task_data``, as
    :func:`chronomask.evaluate.task.file_of_part` finds them; raises UsageError where it is not clear which.
    """
    place = folder_of(task_data, "ner")
    found = []
    for wanted in ("train", part):
        if (path := file_of_part(place, wanted, _ENDS)) is None:
            raise no_file_of_part(
                place,
                wanted,
                _ENDS,
                "name a folder that holds one, with a word and its label a line",
            )
        found.append(path)
    return found[0], found[1]


def read_tagged(path: Path) -> Tagged:
    """The sentences of a file; raises DataError that names the line of what is wrong.

    A line's columns are separated by tabs, else by blanks; lines that begin with ``-DOCSTART-`` are left
    out, and so are comments: lines that begin with ``#`` and are not a word with as many columns as the word
    before and a label. Files whose words are numbered are refused, and so are those without any entity.
    """
    words: list[list[str]] = []
    labels: list[list[str]] = []
    is_open, counted, width = False, True, 0
    for number, line in enumerate(read_lines(path), 1):
        line = line.rstrip("\r\n")
        if not line.strip():
            is_open = False
            continue
        if line.startswith("-DOCSTART-"):
            continue
        columns = line.split("\t") if "\t" in line else _BLANKS.split(line.strip(" "))
        if line.startswith("# ") and not (len(columns) == width and _is_label(columns[-1].strip())):
            continue
        if len(columns) < 2:
            raise DataError(
                f"{path}, line {number}: {shown(line)} has one column; a word and, in the last column, its "
                "label are expected"
            )
        label = columns[-1].strip()
        if not _is_label(label):
            if columns[0] == "#":  # a comment with a tab, as GermEval has it
                continue
            if columns[0].isdecimal() and len(columns) > 2:
                raise DataError(_numbering_problem(path))
            raise DataError(
                f"{path}, line {number}: the last column is {shown(label)}; expected O, B-TYPE or I-TYPE"
            )
        counted = (
            counted and len(columns) > 2 and columns[0] == str(len(words[-1]) + 1 if is_open else 1)
        )
        if not is_open:
            words.append([])
            labels.append([])
            is_open = True
        width = len(columns)
        words[-1].append(columns[0].strip() or "�")
        labels[-1].append(label)
    if not words:
        raise DataError(f"{path} holds no sentence")
    if counted:
        raise DataError(_numbering_problem(path))
    if all(label == _OUTSIDE for row in labels for label in row):
        raise DataError(
            f"{path} holds no entity: the last column is {_OUTSIDE} in every line; it should have the labels"
        )
    language = _LANGUAGE.match(words[0][0])
    if language and all(word.startswith(language[0]) for row in words for word in row):
        raise DataError(
            f"{path}: every word begins with {shown(language[0])}, as in WikiANN, which is no part of the "
            f"text: remove it, such as with  sed 's/^{language[0]}//' {path.name}"
        )
    return Tagged(words, labels)


def _is_label(label: str) -> bool:
    return label == _OUTSIDE or (label[:2] in ("B-", "I-", "E-", "S-") and bool(label[2:]))


def _numbering_problem(path: Path) -> str:
    return (
        f"{path}: the first column is the number of the word in its sentence; expected the word in the first "
        "column and its label in the last: where these are the second and the third (as in Universal NER and "
        f"GermEval), keep them alone, such as with  grep -v '^#' {path.name} | cut -f 2,3"
    )


def entities(labels: Sequence[str]) -> set[Entity]:
    """The entities of a sentence, as ``conlleval`` finds them, so that labels need not follow the scheme.

    One begins at ``B-`` or ``S-``, and at any other label of a type that the label before does not go on
    with; it ends before the next one, at ``O``, and after ``E-`` or ``S-``.
    """
    found: set[Entity] = set()
    kind, first, closed = "", 0, True
    for place, label in enumerate([*labels, _OUTSIDE]):
        mark, _, this = label.partition("-")
        begins = this and (mark in ("B", "S") or closed or this != kind)
        if not closed and (begins or not this):
            found.add(Entity(kind, first, place - 1))
            closed = True
        if begins:
            kind, first, closed = this, place, False
        if not closed and mark in ("E", "S"):
            found.add(Entity(kind, first, place))
            closed = True
    return found


def f1_of(right: int, given: int, there: int) -> float:
    """The harmonic mean of precision and recall: of ``given`` entities, ``right`` ones of ``there``."""
    return 2 * right / (given + there) if given + there else 0.0


def _counts(gold: Iterable[Sequence[str]], answers: Iterable[Sequence[str]]) -> NDArray[np.int64]:
    """int64 [N, 3]: entities that are right, that were given, and that are there, of each sentence."""
    pairs = [(entities(a), entities(b)) for a, b in zip(gold, answers, strict=True)]
    return np.array([(len(a & b), len(b), len(a)) for a, b in pairs], np.int64).reshape(-1, 3)


def _f1_by_kind(gold: list[list[str]], answers: list[list[str]]) -> dict[str, float]:
    """``f1/TYPE`` of every type there is in the gold labels."""
    pairs = [(entities(a), entities(b)) for a, b in zip(gold, answers, strict=True)]
    kinds = sorted({entity.kind for there, _ in pairs for entity in there})
    return {
        f"f1/{kind}": f1_of(
            sum(entity.kind == kind for a, b in pairs for entity in a & b),
            sum(entity.kind == kind for _, b in pairs for entity in b),
            sum(entity.kind == kind for a, _ in pairs for entity in a),
        )
        for kind in kinds
    }


def _rows_of(
    tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int, shown: Progress
) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
    """Ids of each row, and int64 the word that begins at each token, counted over all sentences, or −1.

    A sentence of more than ``max_length`` tokens is halved between words until its parts fit; a word of
    more keeps all its ids.
    """
    before = 0
    for sentence in sentences:
        waiting = [(before, list(sentence))]
        before += len(sentence)
        while waiting:
            begin, words = waiting.pop()
            encoded = tokenizer(" ".join(words), return_offsets_mapping=True, verbose=False)
            ids = encoded["input_ids"]
            if len(ids) > max_length and len(words) > 1:
                middle = len(words) // 2
                waiting += [(begin + middle, words[middle:]), (begin, words[:middle])]
                continue
            offsets = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2)
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            word = np.searchsorted(ends, offsets[:, 1], side="left")
            real = (offsets[:, 1] > offsets[:, 0]) & (word < len(words))
            first = np.zeros(len(offsets), bool)
            first[np.flatnonzero(real)[np.unique(word[real], return_index=True)[1]]] = True
            yield ids, np.where(first, begin + word, -1)
        shown.advance()


def _first_tokens(
    encoded: WordRows, index: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of a batch: places in its padded rows, end to end, where words begin, and which words they are."""
    lengths = encoded.lengths[index]
    place = np.arange(lengths.max())
    real = place < lengths[:, None]
    word = np.full(real.shape, -1)
    word[real] = encoded.word[(encoded.bounds[index][:, None] + place)[real]]
    flat = word.ravel()
    places = np.flatnonzero(flat >= 0)
    return places, flat[places]
