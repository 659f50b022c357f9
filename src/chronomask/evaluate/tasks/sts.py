"""Sentence similarity without training: does the angle between two sentences' vectors follow people's scores?

The pairs are those of STS-B's dev set (Cer et al., SemEval 2017) as GLUE hands it out, scored from 0 to 5;
a sentence's vector is :mod:`chronomask.evaluate.vectors`'.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from chronomask.errors import check_installed
from chronomask.evaluate.batches import encode
from chronomask.evaluate.finetune import at_most
from chronomask.evaluate.subject import Subject
from chronomask.evaluate.task import Task
from chronomask.evaluate.tasks.glue import (
    FOR_SCORES,
    Examples,
    read_split,
    regression_metrics,
    source_sha256,
)
from chronomask.evaluate.vectors import Pooling, check_encoder, unit_vectors
from chronomask.progress import Progress
from chronomask.runs.result import TaskResult

__all__ = ["SimilarityTask"]


class SimilarityTask(Task[Pooling]):
    """Spearman's and Pearson's correlation of the vectors' cosine with the gold score."""

    name = "sts"
    title = "similarity (STS-B)"
    family = "sts"
    draws = False
    outside_recipe = ("batch_tokens",)

    def data_sha256(self, task_data: Path) -> str:
        """Of the dev set."""
        return source_sha256("stsb", task_data, ["dev"])

    def check_packages(self) -> None:
        check_installed("scipy", *FOR_SCORES)

    def check(self, model: Subject, task_data: Path) -> None:
        """Read the pairs; raises UsageError or DataError."""
        self._pairs(task_data)
        check_encoder(model, self.config)
        self.check_packages()

    def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
        """The vectors of all sentences, once, and the cosine of each pair."""
        from chronomask.model.device import choose_device

        started = time.monotonic()
        pairs = self._pairs(task_data)
        longest = min(self.config.max_length, model.max_length)
        both = [*pairs.texts, *(pairs.pairs or [])]
        label = f"{self.name} encoding"
        with Progress(label, len(both), "sentences", shown=progress, brief=True) as shown:
            texts = encode(model.tokenizer, both, None, longest, shown)
        encoder = model.open_as("AutoModel", choose_device(self.config.device)).eval()
        with Progress(self.name, len(texts), "sentences", shown=progress) as shown:
            first, second = np.split(unit_vectors(encoder, texts, self.config, shown), 2)
        cosine = (first * second).sum(1).astype(np.float64)
        return self.result(
            model,
            seed,
            started,
            metrics=regression_metrics(("spearman", "pearson"), cosine, pairs.labels),
            primary="spearman",
            num_examples={"dev": len(pairs)},
            data_sha256=self.data_sha256(task_data),
            packages=("scipy",),
            examples={"prediction": cosine, "label": pairs.labels},
            left_out=texts.left_out,
        )

    def _pairs(self, task_data: Path) -> Examples:
        return at_most(self.config.limit, read_split("stsb", task_data, "dev"))
