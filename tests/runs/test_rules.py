"""What may change on resume, and what a plan says beforehand."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.runs.rules import (
    CHANGEABLE,
    expect,
    maskable_tokens,
    mean_labels,
    progress,
    refuse_unsuited,
    stretches,
    unchangeable,
)
from chronomask.train.config import RunConfig

GROWING = ["batch_warmup.start_rows=2", "batch_warmup.steps=6", "batch_warmup.stages=2"]


def run(*overrides: str) -> RunConfig:
    return RunConfig(data="data", rows_per_step=8, steps=10).replace(overrides)


def test_changeable_keys_exist() -> None:
    values = run().to_dict()
    assert {key.partition(".")[0] for key in CHANGEABLE} <= values.keys()


def test_how_a_run_is_watched_may_change_and_what_it_computes_may_not() -> None:
    assert not unchangeable(run(), run("name=x", "validation.every=3", "checkpoint.keep=9"))
    assert unchangeable(run("seed=1"), run("validation.every=3")) == {"seed": (1, 0)}
    assert unchangeable(run(), run("masking.ratio.end=0.2")).keys() == {"masking.ratio.end"}


@pytest.mark.parametrize(("watch", "frozen"), [("validation", True), ("training", False)])
def test_validation_is_part_of_training_where_the_ratio_watches_it(
    watch: str, frozen: bool
) -> None:
    before = run("masking.ratio.kind=responsive", f"masking.ratio.watch={watch}")
    changed = unchangeable(
        before, before.replace(["validation.rows=5", "validation.batch_rows=7", "log_every=1"])
    )
    assert changed == ({"validation.rows": (1024, 5)} if frozen else {})


@pytest.mark.parametrize("budget", ["row", "batch", "none"])
def test_how_rows_are_cut_decides_where_micro_batches_meet_the_ratio(budget: str) -> None:
    before = run(f"masking.budget={budget}")
    changed = unchangeable(before, before.replace(["micro_batches=2", "log_every=1"]))
    assert changed == ({"micro_batches": (1, 2)} if budget == "batch" else {})


def test_progress_is_counted_as_the_config_says() -> None:
    assert [progress(run(), step, 0) for step in (0, 5, 10)] == [0, 0.5, 1]
    grown = run("masking.progress=tokens", *GROWING)
    # 3 steps of 2 rows, 3 of 5, 4 of 8: 53 in all
    assert [progress(grown, step, 0) for step in (0, 3, 7, 10)] == [0, 6 / 53, 29 / 53, 1]
    labels = RunConfig.parse(
        run().to_dict() | {"masking": {"progress": "masked_tokens"}, "masked_token_budget": 50}
    )
    assert [progress(labels, 9, count) for count in (0, 25, 60)] == [0, 0.5, 1]


def test_expected_labels_are_summed_over_rows() -> None:
    linear = run("masking.ratio.kind=linear", "masking.ratio.start=0.3", "masking.ratio.end=0.1")
    expected = expect(linear, lambda step: 10.0)
    assert expected.labels == pytest.approx(sum(80 * (0.3 - 0.02 * step) for step in range(10)))
    assert expected.mean_ratio == pytest.approx(0.21)
    assert expected.highest_ratio == 0.3
    grown = expect(linear.replace(GROWING), lambda step: 1.0)
    rows = [2] * 3 + [5] * 3 + [8] * 4
    by_hand = sum(n * (0.3 - 0.02 * step) for step, n in enumerate(rows))
    assert grown.labels == pytest.approx(by_hand)
    assert grown.maskable == 53


def test_causal_rows_predict_next_tokens_and_no_masked_ones(tiny_data: PreparedData) -> None:
    plan = run("objective={kind: hybrid, causal: 0.25}", "masking.ratio=0.2")
    expected = expect(plan, lambda step: 10.0)
    assert expected.labels == pytest.approx(10 * 6 * 10 * 0.2)
    assert expected.maskable == pytest.approx(10 * 6 * 10)
    assert expected.next_tokens == pytest.approx(10 * 2 * 10)
    assert expected.mean_ratio == pytest.approx(0.2)
    of_step = maskable_tokens(plan, tiny_data)(0)
    assert mean_labels(plan, tiny_data) == pytest.approx(of_step * (6 * 0.2 + 2))
    by_labels = plan.replace(["masking.progress=masked_tokens", "masked_token_budget=120"])
    met = [now.progress for now in stretches(by_labels, lambda step: 10.0)]
    assert met == pytest.approx([step / 10 for step in range(10)])


def test_a_stretch_is_as_its_middle_is() -> None:
    plan = run("masking.ratio={kind: linear, start: 0.3, end: 0.1}", *GROWING)
    seen = [
        (now.first, now.end, now.progress, now.rows, now.maskable, round(now.ratio, 6))
        for now in stretches(plan, float, most=3)
    ]
    assert seen == [
        (0, 3, 0.1, 6, 1.0, 0.28),
        (3, 6, 0.4, 15, 4.0, 0.22),
        (6, 10, 0.7, 32, 7.0, 0.16),
    ]


def test_many_steps_are_looked_at_in_blocks() -> None:
    config = run("steps=1000001", "masking.ratio.kind=linear", "masking.ratio.end=0.1", *GROWING)
    assert expect(config, lambda step: 1.0).mean_ratio == pytest.approx(0.2, rel=1e-4)
    by_labels = RunConfig.parse(
        config.to_dict()
        | {
            "masking": {"progress": "masked_tokens", "ratio": {"kind": "linear", "end": 0.1}},
            "masked_token_budget": 8 * 10**6,
        }
    )
    # n' = 0.3 − 0.2 n / b in rows met, from 0 to b = 8·10⁶: n = 1.5 b (1 − exp(−0.2 x / b))
    assert expect(by_labels, lambda step: 1.0).labels / 8e6 == pytest.approx(
        1.5 * (1 - 2.718281828**-0.2), rel=1e-3
    )


def test_cut_rows_have_fewer_tokens_to_mask(tiny_data: PreparedData) -> None:
    whole = maskable_tokens(run(), tiny_data)
    train = tiny_data.split("train")
    by_hand = np.count_nonzero(train.read(np.arange(train.num_rows)).word_id >= 0)
    assert whole(0) == by_hand / train.num_rows
    cut = maskable_tokens(run("length_warmup.start_length=4", "length_warmup.steps=9"), tiny_data)
    assert whole(0) == whole(9) == cut(9)
    assert cut(0) < cut(3) < cut(6) < cut(9) < tiny_data.row_length


def test_a_budget_of_the_batch_counts_no_more_labels_than_can_be_masked(
    tiny_data: PreparedData,
) -> None:
    """Its ratio is a share of whole rows, whose special tokens and padding are never masked."""
    masking = {"ratio": 1.0, "budget": "batch"}
    plan = RunConfig.parse(run().to_dict() | {"data": str(tiny_data.path), "masking": masking})
    most = 8 * maskable_tokens(plan, tiny_data)(0)
    assert most < 8 * tiny_data.row_length
    assert mean_labels(plan, tiny_data) == pytest.approx(most)


def test_content_by_scores_needs_data_with_scores(tiny_data: PreparedData) -> None:
    refuse_unsuited(run(), tiny_data)
    with pytest.raises(UsageError, match=r"masking\.content 'scores' .* chronomask data score"):
        refuse_unsuited(run("masking.content.kind=scores"), tiny_data)
    in_turn = "masking.strategy={kind: explored, epochs: 2, strategy: {kind: pmi}}"
    for strategy in ("masking.strategy={kind: pmi}", in_turn):
        with pytest.raises(UsageError, match=r"masking\.strategy 'pmi' .* chronomask data ngrams"):
            refuse_unsuited(run(strategy), tiny_data)


def test_the_commands_that_add_what_is_missing_can_be_pasted(
    tiny_data: PreparedData, tmp_path: Path
) -> None:
    (tmp_path / "my data").symlink_to(tiny_data.path)
    data = PreparedData.open(tmp_path / "my data")
    for change, words in (
        ("masking.content.kind=scores", ["score", str(data.path), "informativeness"]),
        ("masking.strategy.kind=pmi", ["ngrams", str(data.path)]),
    ):
        with pytest.raises(UsageError) as refused:
            refuse_unsuited(run(change), data)
        command = str(refused.value).partition("with  ")[2]
        assert shlex.split(command) == ["chronomask", "data", *words]
