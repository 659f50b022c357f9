"""Fewer rows and shorter rows at first: the same data in the same order, exact over a resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from chronomask.data.folder import PreparedData
from chronomask.data.loader import RowLoader
from chronomask.data.order import BatchWarmUp, LengthWarmUp, Sizes, cut_rows, shorten_rows
from chronomask.errors import UsageError
from chronomask.masking.config import MaskingConfig
from chronomask.masking.masker import Masker, Vocabulary
from chronomask.model.open import open_tokenizer
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.types import Rows
from tests.support.tiny_training import assert_same_run, lines

GROWING = ["batch_warmup.start_rows=3", "batch_warmup.steps=7", "batch_warmup.stages=3"]


@pytest.mark.parametrize("stages", [1, 3, 7, 50])
def test_rows_before_a_step_are_the_sum_of_the_steps_before(stages: int) -> None:
    sizes = Sizes(40, BatchWarmUp(start_rows=7, steps=19, stages=stages))
    rows = [sizes.rows_at(step) for step in range(30)]
    assert [sizes.rows_before(step) for step in range(31)] == [0, *np.cumsum(rows).tolist()]
    assert rows == sorted(rows)
    assert rows[0] == 7
    assert rows[19:] == [40] * 11
    assert len(set(rows[:19])) == min(stages, 19)
    assert Sizes(40).rows_before(3) == 120


def test_micro_batches_keep_at_most_their_size() -> None:
    sizes = Sizes(40, BatchWarmUp(start_rows=7, steps=19, stages=5))
    for step in range(25):
        parts = sizes.parts_at(step, 4)
        assert -(-sizes.rows_at(step) // parts) <= 10
        assert parts == 1 or -(-sizes.rows_at(step) // (parts - 1)) > 10
    assert sizes.parts_at(20, 4) == 4


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_order_of_rows_is_that_of_equal_steps(tiny_data: PreparedData, world_size: int) -> None:
    split = tiny_data.split("train")
    sizes = Sizes(8, BatchWarmUp(start_rows=3, steps=7, stages=3))
    plain = RowLoader(split, seed=5, rows_per_step=1)
    ranks = [
        RowLoader(split, seed=5, rows_per_step=sizes, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    steps = [[rank.rows_at(step) for rank in ranks] for step in range(9)]
    ids = np.concatenate([rows.row_id for step in steps for rows in step])
    order = np.concatenate([rows.order for step in steps for rows in step])
    assert order.tolist() == list(range(sizes.rows_before(9)))
    assert ids.tolist() == [int(plain.row_ids_at(n)[0][0]) for n in range(ids.size)]
    with pytest.raises(UsageError, match="rows: 3, fewer than the 4 processes"):
        RowLoader(split, seed=5, rows_per_step=sizes, world_size=4)


def test_cut_rows_hold_the_same_tokens_and_no_half_words(tiny_data: PreparedData) -> None:
    rows = RowLoader(tiny_data.split("train"), seed=0, rows_per_step=50).rows_at(0)
    cut = cut_rows(rows, 4)
    assert cut.input_ids.shape == (200, 8)
    assert cut.input_ids.ravel().tolist() == rows.input_ids.ravel().tolist()
    assert cut.token_class.ravel().tolist() == rows.token_class.ravel().tolist()
    assert cut.order is not None
    assert cut.order.tolist() == list(range(200))
    assert set(rows.cu_seqlens.tolist()) | set(range(0, 1601, 8)) == set(cut.cu_seqlens.tolist())
    assert cut.cu_seqlens.dtype == rows.cu_seqlens.dtype
    parted = 0
    for row in range(50):
        places: dict[int, list[int]] = {}
        for place, word in enumerate(rows.word_id[row].tolist()):
            places.setdefault(word, []).append(place)
        for word, where in places.items():
            now = [int(cut.word_id[row * 4 + p // 8, p % 8]) for p in where]
            whole = word >= 0 and where[0] // 8 == where[-1] // 8
            assert len(set(now)) == 1 or not whole
            assert (now[0] >= 0) == whole
            parted += word >= 0 and not whole
    assert parted > 0  # the data has words that a cut parts
    for words in cut.word_id:
        kept = words[words >= 0]
        assert np.unique(kept).tolist() == list(range(kept.max(initial=-1) + 1))
    assert cut_rows(rows, 1) is rows


def test_the_first_word_of_a_row_may_be_parted(tiny_data: PreparedData) -> None:
    rows = RowLoader(tiny_data.split("train"), seed=0, rows_per_step=1).rows_at(0)
    words = np.array([[-1, 0, 0, 0, 0, 1, 1, 2] + [-1] * 24], rows.word_id.dtype)
    cut = cut_rows(replace(rows, word_id=words), 8)
    assert cut.word_id[:2].tolist() == [[-1] * 4, [-1, 0, 0, 1]]


def test_pieces_are_keyed_apart(tiny_data: PreparedData) -> None:
    split = tiny_data.split("train")
    rows = RowLoader(split, seed=0, rows_per_step=split.num_rows * 2).rows_at(0)  # two visits
    seen = set()
    for pieces in (1, 2, 4):
        cut = cut_rows(rows, pieces)
        keys = list(zip(cut.epoch.tolist(), cut.row_id.tolist(), strict=True))
        assert seen.isdisjoint(keys)
        seen |= set(keys)
        assert set(cut.row_id.tolist()) == set(range(split.num_rows))
    assert len(seen) == rows.num_rows * (1 + 2 + 4)


def test_masks_of_cut_rows_have_the_ratio(tiny_data: PreparedData) -> None:
    tokenizer = open_tokenizer(tiny_data.tokenizer_path)
    rows = RowLoader(tiny_data.split("train"), seed=0, rows_per_step=200).rows_at(0)
    config = MaskingConfig.parse({"ratio": {"kind": "constant", "base": 0.3}})
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    masker = Masker(config, vocabulary, tiny_data.class_names, seed=0)
    cut = cut_rows(rows, 4)
    batch = masker(cut.to("cpu"), 0.0)
    maskable = cut.word_id.ravel() >= 0
    assert maskable[batch.positions.numpy()].all()
    assert batch.num_predicted == pytest.approx(0.3 * maskable.sum(), rel=0.02)


def test_lengths_double_in_stages(tiny_data: PreparedData) -> None:
    warm_up = LengthWarmUp(start_length=8, steps=5)
    assert [warm_up.pieces_at(step, 32) for step in range(8)] == [4, 4, 4, 2, 2, 1, 1, 1]
    rows = RowLoader(tiny_data.split("train"), seed=0, rows_per_step=2)
    seen: list[Rows] = list(islice(shorten_rows(iter(rows), warm_up, 2), 4))
    # the loader begins at 0 here, the warm-up is told step 2
    assert [r.row_length for r in seen] == [8, 16, 16, 32]
    halves = LengthWarmUp(start_length=16, steps=3)
    assert [halves.pieces_at(step, 32) for step in range(5)] == [2, 2, 2, 1, 1]
    for wrong in (32, 12, 64, 11):
        with pytest.raises(
            UsageError, match="rows of 32 tokens can start with pieces of 16, 8, 4, 2"
        ):
            LengthWarmUp(start_length=wrong, steps=5).pieces_at(0, 32)


def test_a_run_with_both_resumes_exactly(config: RunConfig, tmp_path: Path) -> None:
    both = [*GROWING, "length_warmup.start_length=8", "length_warmup.steps=6"]
    config = config.replace(
        [*both, "masking.progress=tokens", "log_every=1", "checkpoint.every=4", "checkpoint.keep=9"]
    )
    pretrain(config, tmp_path / "whole", progress=False)
    for stop in (4, 8):
        run = tmp_path / f"from-{stop}"
        shutil.copytree(tmp_path / "whole", run)
        (run / "summary.json").unlink()
        for path in run.glob("checkpoints/*"):
            if int(path.name[-8:]) > stop:
                shutil.rmtree(path)
        pretrain(config, run, resume=True, progress=False)
        assert_same_run(tmp_path / "whole", run)
    logged = lines(tmp_path / "whole" / "metrics.jsonl")
    total = config.sizes.rows_before(12)
    before = [config.sizes.rows_before(step) for step in range(12)]
    assert [line["progress"] for line in logged] == [n / total for n in before]
    per_row = logged[-1]["tokens_seen"] / total
    assert logged[0]["tokens_seen"] == pytest.approx(3 * per_row, rel=0.2)


def test_sizes_that_cannot_be_are_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"start_rows \(9\) must not exceed rows_per_step \(8\)"):
        config.replace(["batch_warmup.start_rows=9", "batch_warmup.steps=5"])
    wrong = config.replace(["length_warmup.start_length=12", "length_warmup.steps=5"])
    with pytest.raises(UsageError, match="pieces of 16, 8, 4, 2 tokens"):
        pretrain(wrong, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_live_figures_are_logged(config: RunConfig, tmp_path: Path) -> None:
    """MFU by hand: the formula's operations over what could have been done in the time."""
    pretrain(config.replace(["attention=row"]), tmp_path / "run", progress=False)
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    first = logged[0]
    layer = 4 * 32 * 32 + 2 * 32 * 48
    late = 2 * 32 * 32 + 2 * 32 * 48  # of the last layer, all but keys and values: where predicted
    head = 32 * 32 + 32 * 512
    tokens, rows = first["tokens_seen"], 3 * 8
    flops = 6 * ((2 * layer - late) * tokens + (late + head) * first["masked_tokens"])
    flops += 12 * 32 * rows * 32**2 * (1 + first["masked_tokens"] / tokens)
    done = first["mfu"] * 1e12 * first["seconds"]
    assert done == pytest.approx(flops, rel=0.1 if tokens < rows * 32 else 1e-6)
    assert first["peak_memory_bytes"] > 50e6
    assert logged[-1]["seconds_left"] == 0
    assert first["seconds_left"] == pytest.approx(3 * first["seconds"], rel=0.2)


@pytest.mark.parametrize("given", [None, 1.0])
def test_no_step_is_faster_than_the_device(
    given: float | None, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate that is given, or measured on a busy device, may be too little: a faster step raises it."""
    monkeypatch.setattr("chronomask.train.open.peak_flops", lambda device, precision: 1.0)
    values = config.to_dict() | {"peak_flops": given, "log_every": 1}
    pretrain(RunConfig.parse(values), tmp_path / "run", progress=False)
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line)["mfu"] for line in logged]
    assert shares[0] == 1
    assert max(shares) <= 1
    assert {json.loads(line)["mfu_of_data_sheet"] for line in logged} == {None}


def test_steps_that_predict_nothing_do_no_work(config: RunConfig, tmp_path: Path) -> None:
    """They are fast, and what they did not compute must not pass for the device's rate."""
    ratio = "masking.ratio={kind: linear, start: 0, end: 0}"
    config = config.replace([ratio, "log_every=1", "steps=3", "peak_flops=1.0"])
    pretrain(config, tmp_path / "run", progress=False)
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["mfu"] for line in logged] == [0, 0, 0]
    assert json.loads(logged[-1])["tokens_per_second"] > 0


def test_activation_checkpointing_changes_nothing_but_memory(
    config: RunConfig, tmp_path: Path
) -> None:
    """Bit for bit, dropout included; and what a backward pass keeps is less."""
    config = config.replace(["steps=4"])
    pretrain(config, tmp_path / "plain", progress=False)
    again = config.replace(["activation_checkpointing=true"])
    kept: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel() * tensor.element_size()
        return tensor

    for each, run in ((config, "counted"), (again, "again")):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            pretrain(each, tmp_path / run, progress=False)
    assert_same_run(tmp_path / "plain", tmp_path / "again")
    assert kept[1] < 0.7 * kept[0]
    wrong = config.replace(
        [
            "activation_checkpointing=true",
            "model.model_type=squeezebert",
            "model.overrides.embedding_size=32",
            "attention=row",
        ]
    )
    with pytest.raises(UsageError, match="'squeezebert' cannot compute activations again"):
        pretrain(wrong, tmp_path / "refused", progress=False)
    assert not (tmp_path / "refused").exists()


FALLING = [
    "rows_follow_ratio=true",
    "rows_per_step=24",
    "masking.ratio={kind: linear, start: 0.4, end: 0.1}",
]


def test_rows_follow_the_ratio_so_that_labels_stay(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace([*FALLING, "log_every=1", "checkpoint.every=5", "checkpoint.keep=9"])
    sizes = config.sizes
    rows = [sizes.rows_at(step) for step in range(12)]
    assert [sizes.rows_before(step) for step in range(13)] == [0, *np.cumsum(rows).tolist()]
    lowest = config.masking.ratio.at(11 / 12)
    assert rows == [round(24 * lowest / config.masking.ratio.at(step / 12)) for step in range(12)]
    assert rows[-1] == 24
    assert sizes.fewest == rows[0]
    pretrain(config, tmp_path / "whole", progress=False)
    labels = np.diff(
        [0, *(line["masked_tokens"] for line in lines(tmp_path / "whole" / "metrics.jsonl"))]
    )
    assert labels.max() / labels.min() < 1.35  # of rows this small; without, it would be 3
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    for step in (10, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"step-{step:08d}")
    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_long_courses_have_stages(config: RunConfig) -> None:
    config = config.replace([*FALLING, "steps=100000"])
    for step in (0, 1, 97, 98, 99_999, 100_000):
        before = config.sizes.rows_before(step)
        assert config.sizes.rows_before(step + 1) == before + config.sizes.rows_at(step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("masking.progress=tokens", "needs masking.progress 'steps'"),
        ("masking.ratio={kind: linear_decay, base: 0.3}", "at least 0.01 throughout"),
        ("batch_warmup={start_rows: 2, steps: 3}", "leave one out"),
    ],
)
def test_rows_that_cannot_follow_are_refused(config: RunConfig, change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.replace([*FALLING, change])


@pytest.mark.parametrize(("steps", "warned"), [(2, True), (3, True), (4, False)])
def test_a_warm_up_as_long_as_the_run_is_warned_of(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int, warned: bool
) -> None:
    changes = ["learning_rate.warmup_steps=3", f"steps={steps}", "checkpoint.every=0"]
    pretrain(config.replace(changes), tmp_path / "run", progress=False)
    said = (
        f"learning_rate.warmup_steps is 3 and the run has {steps} steps: the rate rises to the last"
    )
    assert any(said in message for message in caplog.messages) == warned


@pytest.mark.parametrize(("steps", "warned"), [(2, True), (3, True), (4, False)])
@pytest.mark.parametrize(
    ("warm_up", "never"),
    [
        ("batch_warmup={start_rows: 1, steps: 3}", "steps have rows_per_step rows"),
        ("length_warmup={start_length: 8, steps: 3}", "rows are whole"),
    ],
)
def test_a_warm_up_of_rows_that_outlasts_the_run_is_warned_of(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    warm_up: str, never: str, steps: int, warned: bool,
) -> None:  # fmt: skip
    changes = [warm_up, f"steps={steps}", "checkpoint.every=0", "micro_batches=1"]
    pretrain(config.replace(changes), tmp_path / "run", progress=False)
    name = warm_up.partition("=")[0]
    said = f"{name}.steps is 3 and the run has {steps} steps: it is over before {never}; give fewer, such as"
    assert any(said in message for message in caplog.messages) == warned
