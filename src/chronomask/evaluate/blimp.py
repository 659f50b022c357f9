"""BLiMP (Warstadt et al., TACL 2020): of two sentences, does the model find the grammatical one likelier?

Nothing is trained and nothing is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chronomask.errors import UsageError
from chronomask.evaluate.blimp_files import Pair, contents, read_pairs, sha256_of_contents
from chronomask.evaluate.finetune import FineTuning, device_of
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import versions
from chronomask.results import TaskResult

__all__ = ["BlimpTask"]


class BlimpTask:
    """Share of the pairs whose good sentence has the higher pseudo-log-likelihood; a tie counts ½."""

    name = "blimp"
    family = "blimp"
    draws = False

    def __init__(self, config: PseudoLikelihood | None = None) -> None:
        self.config = config or PseudoLikelihood()
        self._read: tuple[Path, list[Pair], str] | None = None
        self._encoded: tuple[tuple[Path, Path], list[str], Sentences] | None = None

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers."""
        return {k: v for k, v in self.config.to_dict().items() if k != "batch_tokens"}

    def data_sha256(self, data: Path) -> str:
        """Of the .jsonl files, in order of name."""
        return self._pairs(data)[1]

    def check(self, model: Subject, data: Path) -> None:
        """Read and encode every pair; raises UsageError or DataError."""
        check_pseudo(model, self.config)
        self._sentences(model, data)

    def run(self, model: Subject, data: Path, seed: int, progress: bool) -> TaskResult:
        """Score every sentence once."""
        started = time.monotonic()
        pairs, digest = self._pairs(data)
        texts, sentences = self._sentences(model, data)
        opened = model.masked_lm()
        opened.to(device_of(FineTuning(device=self.config.device)))  # pyright: ignore[reportArgumentType]
        scores = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        values = dict(zip(texts, scores, strict=True))
        margin = np.array([values[pair.good] - values[pair.bad] for pair in pairs])
        correct = (np.sign(margin) + 1) / 2
        return TaskResult(
            task=self.name,
            family=self.family,
            seed=seed,
            model=model.name,
            model_sha256=model.sha256,
            step=model.step,
            metrics={"accuracy": float(correct.mean())},
            primary="accuracy",
            higher_is_better=True,
            num_examples={"pairs": len(pairs), "sentences": len(texts)},
            recipe=self.recipe,
            data_sha256=digest,
            versions=versions(),
            seconds=time.monotonic() - started,
            details=_means(pairs, correct),
            examples={"correct": correct, "margin": margin},
        )

    def _pairs(self, data: Path) -> tuple[list[Pair], str]:
        if self._read is None or self._read[0] != data:
            found = contents(data)
            self._read = data, read_pairs(found, self.config.limit), sha256_of_contents(found)
        return self._read[1], self._read[2]

    def _sentences(self, model: Subject, data: Path) -> tuple[list[str], Sentences]:
        """The different sentences, as text and as tokens; raises UsageError for one that is too long."""
        if self._encoded is None or self._encoded[0] != (model.path, data):
            pairs, _ = self._pairs(data)
            texts = sorted({text for pair in pairs for text in (pair.good, pair.bad)})
            sentences, source = encode_sentences(model.tokenizer, texts, model.max_length)
            if source.size > len(texts):
                long = texts[int(source[np.flatnonzero(np.diff(source) == 0)[0]])]
                raise UsageError(
                    f"{model.name} has room for {model.max_length} tokens, too few for the sentence "
                    f"{long[:60]!r}: evaluate a model of longer rows"
                )
            self._encoded = (model.path, data), texts, sentences
        return self._encoded[1:]


def _means(pairs: list[Pair], correct: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of every field, term and paradigm: ``field/…``, ``term/…``, ``paradigm/…``."""
    groups: dict[str, list[int]] = {}
    for level in ("field", "term", "paradigm"):
        for number, pair in enumerate(pairs):
            groups.setdefault(f"{level}/{getattr(pair, level)}", []).append(number)
    return {name: float(correct[members].mean()) for name, members in groups.items()}
