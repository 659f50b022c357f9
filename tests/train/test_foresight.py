"""Scores that the model makes of rows to come, against the model asked by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chronomask.data.order import cut_rows
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World
from chronomask.train.foresight import _first_turn
from chronomask.train.open import open_run
from chronomask.train.run import Run
from chronomask.types import Rows
from tests.support.masked_text import FIRST_ORDINARY, VOCAB_SIZE, rows_like_text
from tests.support.tiny_training import Driver, weights_of

VOCABULARY = Vocabulary(4, np.arange(FIRST_ORDINARY, VOCAB_SIZE), VOCAB_SIZE)
ROWS = rows_like_text(8, 64)
ALONE = World(0, 1, torch.device("cpu"))


def opened(config: RunConfig, folder: Path, **content: object) -> Run:
    values = {"kind": "model_scores", "every": 2, **content}
    config = RunConfig.of(config, masking={"content": values}, steps=3)
    return open_run(config, RunFolder(folder), ALONE, resume=False)[0]


def scored(run: Run, step: int) -> Rows:
    assert run.foresight is not None
    return run.foresight.attach(run.loader.rows_at(step), step, ALONE)


@pytest.mark.parametrize("passes", [2, 3])
def test_every_position_has_the_loss_of_one_pass(
    config: RunConfig, tmp_path: Path, passes: int
) -> None:
    """Of each word a pass that shows no token of it; in all passes together all tokens are hidden once."""
    run = opened(config, tmp_path / "run", passes=passes, measure="loss", reference=0.0)
    rows = scored(run, 0)
    ids, maskable = torch.from_numpy(rows.input_ids), rows.word_id >= 0
    model = run.forward.model.eval()
    times, expected = np.zeros(ids.shape, int), np.zeros(ids.shape)
    assert run.foresight is not None
    for turn in range(passes):
        again = Rows(
            rows.input_ids, rows.word_id, rows.token_class, rows.row_id,
            rows.epoch * passes + turn, rows.cu_seqlens, rows.order,
        )  # fmt: skip
        batch = run.foresight._masker(again, 0.0)
        hidden = np.asarray(batch.labels) >= 0
        times += hidden
        part = run.forward.place(again, batch)
        assert (part.batch.input_ids[hidden] == run.masker.vocabulary.mask_token_id).all()
        with torch.no_grad():
            losses = run.forward.losses(part)[0]
        expected[hidden] = losses.numpy()
    model.train()
    assert np.array_equal(times, maskable.astype(int))
    assert rows.scores is not None
    assert rows.scores[maskable] == pytest.approx(expected[maskable], rel=2e-3)
    assert not rows.scores[~maskable].any()


@pytest.mark.parametrize("passes", [2, 3, 5, 7, 16])
@pytest.mark.parametrize("epoch", [0, 5, 2**32 // 3, 2**32 + 1, 2**32 - 1, 2**62 - 1, 2**63 - 1])
def test_passes_hide_every_token_once_whatever_number_an_epoch_has(passes: int, epoch: int) -> None:
    """A loop that gives no epochs has numbers of 63 bits in their place."""
    epochs = np.maximum(0, epoch - np.arange(ROWS.num_rows))
    first = _first_turn(epochs, passes)
    if epoch < 2**32 // passes:
        assert np.array_equal(first, epochs * passes)
    config = {"ratio": 1 / passes, "strategy": {"kind": "explored", "epochs": passes}}
    masker = Masker(config, VOCABULARY)
    turns = (masker(replace(ROWS, epoch=first + turn), 0.0).labels >= 0 for turn in range(passes))
    assert np.array_equal(sum(turn.astype(int) for turn in turns), ROWS.word_id >= 0)


def test_entropies_lie_around_their_mean_and_go_with_cut_rows(
    config: RunConfig, tmp_path: Path
) -> None:
    run = opened(config, tmp_path / "run")
    first, second = (scored(run, step) for step in (0, 1))
    values = np.concatenate([np.asarray(r.scores)[r.word_id >= 0] for r in (first, second)])
    assert abs(values.mean()) < 1e-3
    assert 0 < values.std() < math.log(run.masker.vocabulary.size)
    assert run.foresight is not None
    cut = cut_rows(run.loader.rows_at(1), 2)
    halves = run.foresight.attach(cut, 1, ALONE)  # no step between: the scores that there are
    assert np.array_equal(np.asarray(halves.scores).ravel(), np.asarray(second.scores).ravel())
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.mul_(1.5)
    assert np.array_equal(np.asarray(scored(run, 1).scores), np.asarray(second.scores))
    last = np.asarray(
        scored(run, 2).scores
    )  # made by the model as it is now, for one step that is left
    assert last.std() > values.std()


@pytest.mark.slow
def test_processes_score_what_one_scores(config: RunConfig, tmp_path: Path, driver: Driver) -> None:
    values = {"kind": "model_scores", "every": 3}
    steady = config.replace(["steps=5", "rows_per_step=7", "model.overrides.hidden_dropout_prob=0"])
    steady = steady.replace(["model.overrides.attention_probs_dropout_prob=0"])
    spec = {"config": RunConfig.of(steady, masking={"content": values}).to_dict()}
    for number in (1, 3):
        assert driver.codes(spec | {"out": str(tmp_path / str(number))}, number) == [0] * number
    ours, theirs = (weights_of(tmp_path / str(number)) for number in (1, 3))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
