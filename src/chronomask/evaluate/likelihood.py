"""What tasks have in common that ask which of several texts a model finds likelier; nothing is trained.

A text's score is its pseudo-log-likelihood, or that of its end, given the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import DataError, UsageError, shown
from chronomask.evaluate.jsonl_files import sha256_of_contents
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Cached, Task
from chronomask.progress import Progress

__all__ = ["Candidate", "LikelihoodTask", "even_weights"]

Item = TypeVar("Item")


class Candidate(NamedTuple):
    """A text that is scored from character ``begin`` on; what stands before is context."""

    text: str
    begin: int = 0


class LikelihoodTask(Task[PseudoLikelihood], Generic[Item]):
    """A task of items read from .jsonl files, each with texts that are scored."""

    draws = False
    outside_recipe = ("batch_tokens",)

    def __init__(self, config: PseudoLikelihood | None = None) -> None:
        super().__init__(config)
        self._read = Cached[tuple[list[Item], str]]()
        self._encoded = Cached[tuple[list[Candidate], Sentences]]()

    @abstractmethod
    def contents(self, task_data: Path) -> dict[str, bytes]:
        """The .jsonl files by name; raises UsageError or DataError."""

    @abstractmethod
    def read(self, found: dict[str, bytes]) -> list[Item]:
        """The items in order of file and line, at most ``limit`` of each file; raises DataError."""

    @abstractmethod
    def candidates(self, item: Item) -> Sequence[Candidate]:
        """The texts that are scored for an item."""

    def data_sha256(self, task_data: Path) -> str:
        """Of the .jsonl files, in order of name."""
        return self.items(task_data)[1]

    def check(self, model: Subject, task_data: Path) -> None:
        """Read and encode every text; raises UsageError or DataError."""
        self.check_long(model, task_data, progress=False)

    def check_long(self, model: Subject, task_data: Path, progress: bool) -> None:
        """:meth:`check`; ``progress``: show how far the encoding is."""
        self._read.forget()  # the files may be others by now; what is read here is what is measured
        self.items(task_data)
        check_pseudo(model, self.config)
        self._sentences(model, task_data, progress)

    def items(self, task_data: Path) -> tuple[list[Item], str]:
        """The items, and the hash of their files."""

        def read() -> tuple[list[Item], str]:
            found = self.contents(task_data)
            try:
                items = self.read(found)
            except DataError as error:  # which knows the file by its name alone
                raise DataError(f"in {task_data}: {error}") from None
            return items, sha256_of_contents(found)

        return self._read.of(task_data, read)

    def scores(self, model: Subject, task_data: Path, progress: bool) -> dict[Candidate, float]:
        """The pseudo-log-likelihood of every text, in nats; each different text is scored once.

        It is NaN where the model gives a number that is not finite.
        """
        from chronomask.model.device import choose_device

        texts, sentences = self._sentences(model, task_data, progress)
        opened = model.masked_lm(choose_device(self.config.device))
        found = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        found[~np.isfinite(found)] = np.nan
        return dict(zip(texts, found.tolist(), strict=True))

    def _sentences(
        self, model: Subject, task_data: Path, progress: bool
    ) -> tuple[list[Candidate], Sentences]:
        """The different texts, as they are and as tokens; raises UsageError for one that is too long."""
        items, digest = self.items(task_data)

        def encode() -> tuple[list[Candidate], Sentences]:
            """Encode them; refuse one that is cut, and one of which nothing is predicted."""
            texts = sorted({each for item in items for each in self.candidates(item)})
            label = f"{self.name} encoding"
            with Progress(label, len(texts), "sentences", shown=progress, brief=True) as bar:
                sentences, source = encode_sentences(
                    model.tokenizer,
                    [each.text for each in texts],
                    model.max_length,
                    self.config.score,
                    self.name,
                    [each.begin for each in texts],
                    bar,
                )
            if source.size > len(texts):
                long = texts[int(source[np.flatnonzero(np.diff(source) == 0)[0]])].text
                raise UsageError(
                    f"{model.name} has positions for {model.max_length} tokens, too few for the sentence "
                    f"{shown(long)}: evaluate a model of longer rows"
                )
            if not sentences.num_scored.all():
                empty = texts[int(sentences.num_scored.argmin())]
                raise UsageError(
                    f"{model.name} has no token to predict in {shown(empty.text[empty.begin :])}: its "
                    "tokenizer drops these characters; take the line out of its file"
                )
            return texts, sentences

        return self._encoded.of((model.setup_sha256, digest), encode)


def even_weights(groups: Sequence[str]) -> NDArray[np.float64]:
    """Weights [N] that sum to 1 and give each group of examples the same share."""
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (sizes.size * sizes[member])
