"""Causal rows beside masked ones: which they are, what they predict, and what a step makes of both."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from chronomask import keyed
from chronomask.errors import Stopped, UsageError
from chronomask.masking.objective import CausalFirst, Hybrid, MaskedOnly, next_tokens
from chronomask.train.config import RunConfig
from chronomask.train.forward import Predictions
from chronomask.train.loop import pretrain
from chronomask.types import Rows
from tests.support.tiny_models import tiny_bert
from tests.support.tiny_training import (
    WITHOUT_DROPOUT,
    Driver,
    ask_to_stop_after,
    assert_close,
    assert_same_run,
    lines,
    weights_of,
)

HYBRID = ["objective.kind=hybrid", "objective.causal=0.4"]


def rows_of(num_rows: int, length: int = 6, order: np.ndarray | None = None) -> Rows:
    ids = 10 + np.arange(num_rows * length).reshape(num_rows, length)
    word_id = np.zeros(ids.shape, np.int32)
    bounds = sorted({*range(0, ids.size + 1, length), *range(0, ids.size, 4)})
    return Rows(
        ids,
        word_id,
        (ids % 3).astype(np.uint8),
        np.arange(num_rows),
        np.zeros(num_rows, np.int64),
        np.array(bounds, np.int32),
        order,
    )


def test_every_token_but_the_first_of_a_document_is_predicted_from_the_one_before() -> None:
    rows = rows_of(2)  # documents begin at 0, 4, 6, 8
    rows.word_id[0, 2] = rows.word_id[1, 5] = -1  # a special, padding
    batch = next_tokens(rows)
    following = [1, 3, 5, 7, 9, 10]
    assert batch.positions.tolist() == [k - 1 for k in following]
    assert batch.targets.tolist() == [10 + k for k in following]
    assert batch.target_class.tolist() == [(10 + k) % 3 for k in following]
    assert batch.input_ids is rows.input_ids
    there = np.flatnonzero(batch.labels.ravel() != -100)
    assert there.tolist() == batch.positions.tolist()
    assert batch.labels.ravel()[there].tolist() == batch.targets.tolist()


def test_every_step_has_its_share_of_causal_rows_and_a_row_is_what_it_is() -> None:
    rows = rows_of(1600, order=np.arange(1600) + 77)
    for share in (0.0625, 0.5, 0.9):
        causal = Hybrid(causal=share).is_causal(rows, 3, 0.5)
        by_step = causal.reshape(-1, 16).sum(1)
        assert np.abs(by_step - 16 * share).max() < 3
        assert causal.mean() == pytest.approx(share, abs=0.01)
        part = rows.slice(100, 200)
        assert (Hybrid(causal=share).is_causal(part, 3, 0.5) == causal[100:200]).all()
    assert not (
        Hybrid(causal=0.5).is_causal(rows, 4, 0) == Hybrid(causal=0.5).is_causal(rows, 3, 0)
    ).all()
    # Another draw of the same rows, such as that of their ratios, is spread evenly within each kind.
    ratios = keyed.unit_interval(keyed.weyl(3, keyed.Stream.RATIO, rows.place))
    for kind in (True, False):
        counts = np.histogram(ratios[Hybrid(causal=0.5).is_causal(rows, 3, 0) == kind], 8, (0, 1))[
            0
        ]
        assert counts.min() > 80


def test_whether_rows_are_causal_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that is changed is asked again, and one that was asked equals one that was not."""
    asked: list[float] = []
    monkeypatch.setattr(MaskedOnly, "causal_share", lambda self, progress: asked.append(progress))
    objective = MaskedOnly()
    assert objective.has_causal_rows
    number = len(asked)
    assert objective.has_causal_rows
    assert len(asked) == number
    assert objective == MaskedOnly()
    assert Hybrid(causal=0.0).has_causal_rows is False
    assert Hybrid(causal=0.0).replace(["causal=0.5"]).has_causal_rows


def test_shares_follow_progress() -> None:
    assert MaskedOnly().shares == {0.0}
    first = CausalFirst(until=0.4)
    assert [first.causal_share(at) for at in (0, 0.39, 0.4, 1)] == [1, 1, 0, 0]
    assert first.shares == {0.0, 1.0}
    falling = Hybrid.parse({"causal": {"kind": "linear", "start": 0.5, "end": 0.0}})
    assert [falling.causal_share(at) for at in (0, 0.5, 1)] == [0.5, 0.25, 0.0]
    assert first.is_causal(rows_of(3), 0, 0.2).all()
    assert not first.is_causal(rows_of(3), 0, 0.5).any()


@pytest.mark.parametrize("which", [[0, 2], [1], [], [0, 1, 2]])
def test_rows_that_are_selected_keep_their_documents(which: list[int]) -> None:
    rows = rows_of(3, order=np.arange(3) + 5)
    chosen = rows.select(np.isin(np.arange(3), which))
    assert chosen.row_id.tolist() == which
    assert chosen.num_rows == len(which)
    singles = [rows.slice(k, k + 1) for k in which]
    ends = [part.cu_seqlens[1:] + 6 * n for n, part in enumerate(singles)]
    assert chosen.cu_seqlens.tolist() == [0, *(x for end in ends for x in end.tolist())]
    assert chosen.cu_seqlens.dtype == np.int32
    assert (chosen.input_ids == rows.input_ids[which]).all()
    assert chosen.order is not None
    assert chosen.order.tolist() == [5 + k for k in which]


def test_a_step_weighs_both_means_by_their_rows() -> None:
    predictions = Predictions(masked=10, divisor=20, causal=90, masked_rows=3, causal_rows=1)
    assert predictions.causal_share == 0.25
    masked_mean, minimised = predictions.mean_loss(30, 450)
    assert masked_mean == 3
    assert minimised == 0.75 * 3 + 0.25 * 5
    for causal, weight, divisor in ((False, 0.75, 20), (True, 0.25, 90)):
        part: Any = SimpleNamespace(causal=causal, batch=SimpleNamespace(loss_weights=None))
        losses, log_z = torch.tensor([2.0, 4.0]), torch.tensor([1.0, 3.0])
        alone = predictions.contribution(part, losses, log_z, 0.0)
        assert float(alone) == pytest.approx(weight * 6 / divisor)
        number = 90 if causal else 10
        with_z = predictions.contribution(part, losses, log_z, 0.1)
        assert float(with_z - alone) == pytest.approx(0.1 * weight * 10 / number)
    alone = Predictions(masked=7, divisor=7, causal=0, masked_rows=3, causal_rows=0)
    assert alone.mean_loss(7.7, 0) == (7.7 / 7, 7.7 / 7)
    nothing_masked = Predictions(masked=0, divisor=0, causal=9, masked_rows=0, causal_rows=2)
    assert nothing_masked.mean_loss(0, 18) == (None, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["objective.kind=hybrit"], "objective.kind is 'hybrit'.*hybrid"),
        (["objective.kind=hybrid", "objective.causal=1.5"], "objective.causal"),
        (["objective.kind=causal_first", "objective.until=0"], "objective.until"),
        (
            [
                "objective.kind=causal_first",
                "masking.progress=masked_tokens",
                "masked_token_budget=9",
            ],
            "progress 'masked_tokens' stands still while objective 'causal_first' masks nothing",
        ),
        (
            ["objective.kind=hybrid", "rows_follow_ratio=true", "masking.ratio.kind=constant"],
            "objective 'hybrid' takes some away: leave one out",
        ),
        (["objective.kind=hybrid", "sharding=fsdp2"], "objective 'causal_first'$"),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: RunConfig, changes: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        config.replace(changes)


def test_an_architecture_that_cannot_is_refused_before_any_work(
    values: dict[str, Any], tmp_path: Path
) -> None:
    other = {"kind": "config", "model_type": "mpnet"}
    config = RunConfig.parse(values | {"model": other, "attention": "row"}).replace(HYBRID)
    with pytest.raises(UsageError, match=r"model type 'mpnet'.*objective.kind=mlm"):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_both_objectives_train_resume_and_do_not_depend_on_how_a_step_is_cut(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.replace([*HYBRID, "model.kind=config", "steps=9", "log_every=1"])
    pretrain(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, 4, signal.SIGTERM)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "cut", progress=False)
    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")

    logged = lines(tmp_path / "whole" / "metrics.jsonl")
    for before, line in zip(
        [{"masked_tokens": 0, "maskable_tokens": 0}, *logged], logged, strict=False
    ):
        masked = line["masked_tokens"] - before["masked_tokens"]
        assert sum(line["class_count"].values()) == masked  # next tokens are in no class
        maskable = line["maskable_tokens"] - before["maskable_tokens"]
        assert line["masking_ratio_achieved"] == masked / maskable
        assert 0 < line["causal_share"] < 1
        assert line["causal_loss"] > 0
    assert logged[-1]["causal_tokens"] > 200
    card = (
        tmp_path / "whole" / "checkpoints" / "step-00000009" / "transformers" / "README.md"
    ).read_text()
    assert f"| next tokens predicted | {logged[-1]['causal_tokens']:,} |" in card
    assert "objective:\n  kind: hybrid\n  causal: 0.4\n" in card

    cut = config.replace([*WITHOUT_DROPOUT, "steps=3"])
    for number in (1, 4):
        pretrain(cut.replace([f"micro_batches={number}"]), tmp_path / f"{number}", progress=False)
    assert_close(weights_of(tmp_path / "1"), weights_of(tmp_path / "4"))
    for a, b in zip(*(lines(tmp_path / f"{n}" / "metrics.jsonl") for n in (1, 4)), strict=True):
        assert a["class_count"] == b["class_count"]
        assert a["causal_loss"] == pytest.approx(b["causal_loss"], abs=1e-5)


def test_while_nothing_is_masked_content_learns_nothing_and_validation_stays(
    config: RunConfig, tmp_path: Path
) -> None:
    config = config.replace(
        [
            "objective.kind=causal_first",
            "objective.until=0.5",
            "steps=4",
            "log_every=1",
            "validation.every=2",
        ]
    )
    pretrain(config, tmp_path / "run", progress=False)
    first, second, third, _ = lines(tmp_path / "run" / "metrics.jsonl")
    for line in (first, second):
        assert (line["loss"], line["masking_ratio"], line["masked_tokens"]) == (None, 0, 0)
        assert set(line["class_weight"].values()) == set(first["class_weight"].values())
        assert line["causal_share"] == 1
    assert third["causal_loss"] is None
    assert third["causal_tokens"] == second["causal_tokens"]
    assert third["masked_tokens"] > 0
    at_first = lines(tmp_path / "run" / "validation.jsonl")[0]
    assert at_first["masking_ratio"] == 0.15  # masked tokens, read from both sides


@pytest.mark.slow
def test_processes_equal_one(config: RunConfig, tmp_path: Path, driver: Driver) -> None:
    config = config.replace(
        [*HYBRID, *WITHOUT_DROPOUT, "steps=4", "log_every=1", "rows_per_step=7"]
    )
    for number in (1, 2):
        spec = {"config": config.to_dict(), "out": str(tmp_path / str(number))}
        assert driver.codes(spec, number) == [0] * number
    assert_close(weights_of(tmp_path / "1"), weights_of(tmp_path / "2"))
    for a, b in zip(*(lines(tmp_path / f"{n}" / "metrics.jsonl") for n in (1, 2)), strict=True):
        assert (a["class_count"], a["causal_tokens"]) == (b["class_count"], b["causal_tokens"])
        assert a["causal_loss"] == pytest.approx(b["causal_loss"], abs=1e-5)


def test_rows_read_as_documents_or_whole(values: dict[str, Any], tmp_path: Path) -> None:
    """Windows and whole rows train with finite losses, in ModernBERT as in BERT."""
    modern = tiny_bert(32) | {"model_type": "modernbert"}
    modern["overrides"] |= {"global_attn_every_n_layers": 2, "local_attention": 8}
    config = RunConfig.parse(values | {"model": modern, "attention": "row"})
    config = config.replace([*HYBRID, "steps=2", "log_every=1"])
    pretrain(config, tmp_path / "run", progress=False)
    assert all(0 < line["causal_loss"] < 9 for line in lines(tmp_path / "run" / "metrics.jsonl"))
