"""The masks of a run are the same for any workers, ranks, micro-batches, and after any resume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.types import ClassTally
from tests.support.masked_text import VOCAB_SIZE

STEPS, ROWS_PER_STEP = 12, 16
CONFIG = MaskingConfig.parse(
    {"ratio": {"kind": "uniform_rows"}, "content": {"kind": "ptw", "ema_decay": 0.5}}
)


def masks(
    data: PreparedData,
    *,
    workers: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    resume_at: int | None = None,
) -> np.ndarray:
    """int64 [steps, B, T]: labels of a run whose losses are a function of the targets."""
    vocabulary = Vocabulary(4, np.arange(5, VOCAB_SIZE), VOCAB_SIZE)
    masker = Masker(CONFIG, vocabulary, data.class_names, seed=3)
    labels = []

    def loaders(start: int) -> list:
        return [
            iter(
                RowLoader(
                    data.split("train"),
                    seed=3,
                    rows_per_step=ROWS_PER_STEP,
                    rank=rank,
                    world_size=world_size,
                    num_workers=workers,
                    start_step=start,
                )
            )
            for rank in range(world_size)
        ]

    streams = loaders(0)
    for step in range(STEPS):
        if step == resume_at:
            saved = masker.state_dict()
            masker = Masker(CONFIG, vocabulary, data.class_names, seed=3)
            masker.load_state_dict(saved)
            streams = loaders(step)
        batches = [
            masker(part, step / STEPS)
            for stream in streams
            for part in next(stream).micro_batches(micro_batches)
        ]
        labels.append(np.concatenate([batch.labels for batch in batches]))
        classes = np.concatenate([batch.target_class for batch in batches])
        losses = np.concatenate([batch.targets % 7 for batch in batches]).astype(float)
        size = masker.num_feedback_classes
        masker.update(
            ClassTally(
                np.bincount(classes, losses, size),
                np.bincount(classes, minlength=size),
                np.zeros(size, int),
            )
        )
    return np.stack(labels)


@pytest.fixture(scope="module")
def alone(tiny_data: PreparedData) -> np.ndarray:
    return masks(tiny_data)


@pytest.mark.parametrize(
    ("workers", "world_size", "micro_batches"),
    list(itertools.product((0, 1, 4), (1, 2, 4), (1, 2, 8))),
)
def test_workers_ranks_and_micro_batches_change_nothing(
    tiny_data: PreparedData, alone: np.ndarray, workers: int, world_size: int, micro_batches: int
) -> None:
    same = masks(tiny_data, workers=workers, world_size=world_size, micro_batches=micro_batches)
    assert np.array_equal(same, alone)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_resuming_at_any_step_changes_nothing(
    tiny_data: PreparedData, alone: np.ndarray, step: int
) -> None:
    assert np.array_equal(masks(tiny_data, resume_at=step, workers=1), alone)


def test_no_epoch_repeats_another(tiny_data: PreparedData) -> None:
    split = tiny_data.split("train")
    vocabulary = Vocabulary(4, np.arange(5, VOCAB_SIZE), VOCAB_SIZE)
    config = MaskingConfig.parse({"ratio": {"kind": "constant", "base": 0.3}})
    masker = Masker(config, vocabulary, tiny_data.class_names)
    row_ids = np.arange(min(64, split.num_rows))
    seen = set()
    for epoch in range(20):
        labels = masker(split.read(row_ids, epoch), 0.0).labels
        seen.add(labels.tobytes())
    assert len(seen) == 20
