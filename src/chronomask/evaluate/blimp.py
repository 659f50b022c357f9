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
from chronomask.evaluate.device import device_of, placed
from chronomask.evaluate.pseudo import (
    PseudoLikelihood,
    Sentences,
    check_pseudo,
    encode_sentences,
    pseudo_log_likelihood,
)
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Kept, recipe_of, result_of
from chronomask.runs.result import TaskResult

__all__ = ["BlimpTask"]


class BlimpTask:
    """Share of the pairs whose good sentence has the higher pseudo-log-likelihood; a tie counts ½."""

    name = "blimp"
    family = "blimp"
    draws = False

    def __init__(self, config: PseudoLikelihood | None = None) -> None:
        self.config = config or PseudoLikelihood()
        self._read = Kept[tuple[list[Pair], str]]()
        self._encoded = Kept[tuple[list[str], Sentences]]()

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Every setting that decides the numbers."""
        return recipe_of(self.config, "batch_tokens")

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
        opened = placed(model.masked_lm(), device_of(self.config.device))
        scores = pseudo_log_likelihood(
            opened, sentences, model.tokenizer, self.config, label=self.name, progress=progress
        )
        values = dict(zip(texts, scores, strict=True))
        margin = np.array([values[pair.good] - values[pair.bad] for pair in pairs])
        correct = (np.sign(margin) + 1) / 2
        return result_of(
            self,
            model,
            seed,
            started,
            metrics={"accuracy": float(correct.mean())},
            primary="accuracy",
            num_examples={"pairs": len(pairs), "sentences": len(texts)},
            data_sha256=digest,
            details=_means(pairs, correct),
            examples={"correct": correct, "margin": margin},
        )

    def _pairs(self, data: Path) -> tuple[list[Pair], str]:
        def read() -> tuple[list[Pair], str]:
            found = contents(data)
            return read_pairs(found, self.config.limit), sha256_of_contents(found)

        return self._read.of(data, read)

    def _sentences(self, model: Subject, data: Path) -> tuple[list[str], Sentences]:
        """The different sentences, as text and as tokens; raises UsageError for one that is too long."""

        def encoded() -> tuple[list[str], Sentences]:
            pairs, _ = self._pairs(data)
            texts = sorted({text for pair in pairs for text in (pair.good, pair.bad)})
            sentences, source = encode_sentences(model.tokenizer, texts, model.max_length)
            if source.size > len(texts):
                long = texts[int(source[np.flatnonzero(np.diff(source) == 0)[0]])]
                raise UsageError(
                    f"{model.name} has room for {model.max_length} tokens, too few for the sentence "
                    f"{long[:60]!r}: evaluate a model of longer rows"
                )
            return texts, sentences

        return self._encoded.of((model.path, data), encoded)


def _means(pairs: list[Pair], correct: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of every field, term and paradigm: ``field/…``, ``term/…``, ``paradigm/…``."""
    groups: dict[str, list[int]] = {}
    for level in ("field", "term", "paradigm"):
        for number, pair in enumerate(pairs):
            groups.setdefault(f"{level}/{getattr(pair, level)}", []).append(number)
    return {name: float(correct[members].mean()) for name, members in groups.items()}
