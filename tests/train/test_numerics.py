"""What is not finite stops and can be computed again; what stands out can be left out; bits repeat."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from chronomask.cli import app
from chronomask.errors import DataError, RunError, Stopped, UsageError
from chronomask.keyed import Stream, row_keys
from chronomask.storage import file_sha256
from chronomask.train import step as steps
from chronomask.train.config import RunConfig
from chronomask.train.determinism import determinism, seed_dropout
from chronomask.train.dump import replay
from chronomask.train.forward import Forward
from chronomask.train.loop import pretrain
from chronomask.train.outliers import SkipOutliers
from chronomask.train.sharding import gradient_norm
from tests.support.tiny_training import (
    Driver,
    ask_to_stop_after,
    assert_same_run,
    lines,
    weights_of,
)

DIVERGING = [
    "learning_rate.peak=1e30", "learning_rate.warmup_steps=0", "gradient_clip=null", "steps=8",
    "checkpoint.every=1",
]  # fmt: skip


def test_a_dump_replays_to_the_same_loss_bit_for_bit(config: RunConfig, tmp_path: Path) -> None:
    """Dropout, two micro-batches and class weights are all part of what is computed again."""
    with pytest.raises(
        RunError, match=r"the update was not made\. It is kept in .*dump"
    ) as stopped:
        pretrain(config.replace(DIVERGING), tmp_path / "my run", progress=False)
    (folder,) = (tmp_path / "my run" / "dump").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert f"chronomask replay {shlex.quote(str(folder))} computes" in str(stopped.value)
    assert "lengthen its warm-up or set gradient_clip=1.0" in str(stopped.value)
    assert folder.name == f"step-{report['step']:08d}"
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1  # whoever reads the report reads the rows and weights too
    again = replay(folder)
    assert again.step == report["step"] > 1
    assert (repr(again.loss), repr(again.gradient_norm)) == (
        report["loss"],
        report["gradient_norm"],
    )
    assert not math.isfinite(again.loss)
    printed = CliRunner().invoke(app, ["replay", str(folder)])
    assert printed.stdout.startswith(f"step {again.step}: loss {again.loss}, gradient norm")
    assert printed.exit_code == 0
    rows = load_file(folder / "rows-00000.safetensors")
    assert again.rows == rows["at_fault"].tolist() != []
    assert all(f"{row}" in str(stopped.value) for row in again.rows[:8])


def test_the_way_on_from_a_number_that_is_not_finite_works(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another learning rate is another run, so the message names a branch, or another folder."""
    config = config.replace(["steps=4", "checkpoint.every=1", "checkpoint.asynchronous=false"])
    for step, ways in ((1, r"another folder$"), (3, r"or go on .*--branch '.*' --out ANOTHER$")):
        taken: list[int] = []

        def is_finite(
            loss: torch.Tensor, norm: torch.Tensor, taken: list[int] = taken, step: int = step
        ) -> torch.Tensor:
            taken.append(step)
            return torch.tensor(len(taken) < step)

        with monkeypatch.context() as patch:
            patch.setattr(steps, "_finite", is_finite)
            with pytest.raises(RunError, match=ways) as stopped:
                pretrain(config, tmp_path / f"run {step}", progress=False)
    words = shlex.split(str(stopped.value).partition("before: ")[2])
    assert words[:2] == ["pretrain", "--branch"]
    lower = config.replace([f"branch={words[2]}", "learning_rate.peak=1e-6"])
    assert pretrain(lower, tmp_path / "another", progress=False)["complete"]


def test_weights_that_are_broken_from_the_start_are_told(config: RunConfig, tmp_path: Path) -> None:
    """No rate, warm-up or clipping helps against a loss that is not finite before the first update."""
    pretrain(config.replace(["steps=1"]), tmp_path / "whole", progress=False)
    (folder,) = (tmp_path / "whole" / "checkpoints").glob("step-*/transformers")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name].fill_(math.nan)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    broken = RunConfig.of(config, model={"kind": "checkpoint", "path": str(folder)})
    with pytest.raises(RunError, match=r"No update came before it.* another folder$") as stopped:
        pretrain(broken, tmp_path / "broken", progress=False)
    assert "learning_rate.peak" not in str(stopped.value)


def dump_of_the_last_step(
    config: RunConfig, out: Path, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Train until the last step, which is declared broken though it is finite, and dumped; gradient norms."""
    seen: list[float] = []

    def last_is_not(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        seen.append(float(norm))
        return torch.tensor(len(seen) < config.steps)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "_finite", last_is_not)
        with pytest.raises(RunError, match=f"step {config.steps}: loss"):
            pretrain(config, out, progress=False)
    return seen


@pytest.mark.parametrize(
    "changes",
    [
        ["z_loss=0.1"],
        ["objective={kind: hybrid, causal: 0.5}", "late_masks.layer=1"],
        ["masking.content={kind: model_scores, every: 2}", "averaging={kind: ema}"],
        ["masking.ratio={kind: uniform_rows}", "masking.loss_weight={kind: inverse_ratio}"],
    ],
    ids=str,
)
def test_a_replay_is_the_step_itself_not_just_as_broken(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str]
) -> None:
    """A finite step that is declared broken replays to its very loss and gradient norm."""
    config = config.replace(["steps=3", "validation.every=0", "checkpoint.every=0", *changes])
    seen = dump_of_the_last_step(config, tmp_path / "run", monkeypatch)
    again = replay(tmp_path / "run" / "dump" / "step-00000003")
    pretrain(config.replace(["log_every=1"]), tmp_path / "whole", progress=False)
    third = lines(tmp_path / "whole" / "metrics.jsonl")[2]
    causal = third.get("causal_share", 0.0)
    minimised = (1 - causal) * third["loss"] + causal * third.get("causal_loss", 0.0)
    assert again.loss == pytest.approx(minimised, abs=1e-6)
    assert again.gradient_norm == seen[2] == third["gradient_norm"]
    assert again.rows == []


def test_the_dump_of_a_version_without_a_strength_replays_with_the_published_one(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a checkpoint of that version goes on: its ``ptw`` had no key for it."""
    config = config.replace(["steps=5", "masking.content={kind: ptw, strength: 1.0}"])
    seen = dump_of_the_last_step(config, tmp_path / "run", monkeypatch)
    (folder,) = (tmp_path / "run" / "dump").iterdir()
    (before,) = folder.glob("step-*")
    state = json.loads((before / "state.json").read_text())
    del state["config"]["masking"]["content"]["strength"]
    (before / "state.json").write_text(json.dumps(state))
    hashes = json.loads((before / "hashes.json").read_text())
    hashes["state.json"] = file_sha256(before / "state.json")
    (before / "hashes.json").write_text(json.dumps(hashes))
    assert replay(folder).gradient_norm == seen[4]


@pytest.mark.slow
def test_the_dump_of_two_processes_holds_the_rows_of_both(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    config = config.replace([*DIVERGING, "sharding=fsdp2"])
    spec = {"config": config.to_dict(), "out": str(tmp_path / "run")}
    assert driver.codes(spec, 2) == [1, 1]
    (folder,) = (tmp_path / "run" / "dump").iterdir()
    found = [load_file(folder / f"rows-0000{rank}.safetensors") for rank in (0, 1)]
    assert [tensors["0/row_id"].numel() for tensors in found] == [2, 2]
    again = replay(folder)
    assert not math.isfinite(again.loss)
    assert again.rows == [row for tensors in found for row in tensors["at_fault"].tolist()]


def test_what_is_no_dump_is_refused(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the dump of a step"):
        replay(tmp_path)
    with pytest.raises(RunError):
        pretrain(config.replace(DIVERGING), tmp_path / "run", progress=False)
    (folder,) = (tmp_path / "run" / "dump").iterdir()
    for above in (folder.parent, tmp_path / "run"):
        with pytest.raises(DataError, match=f"give one of those below it: {folder}$"):
            replay(above)
    (before,) = folder.glob("step-*")
    (before / "hashes.json").unlink()
    with pytest.raises(DataError, match=r"is damaged \(no hashes.json\); copy the dump again"):
        replay(folder)


@pytest.mark.parametrize("damaged", ["rows-00000.safetensors", "report.json"])
def test_a_damaged_dump_is_named_and_made_again_by_a_resume(
    config: RunConfig, tmp_path: Path, damaged: str
) -> None:
    with pytest.raises(RunError):
        pretrain(config.replace(DIVERGING), tmp_path / "run", progress=False)
    (folder,) = (tmp_path / "run" / "dump").iterdir()
    if damaged == "report.json":
        (folder / damaged).write_text('{"step": 2}')
        with pytest.raises(
            DataError, match="has no class_names, pad_token_id, progress, world_size"
        ):
            replay(folder)
    else:
        (folder / damaged).write_bytes(b"cut short")
        with pytest.raises(DataError, match=r"is damaged \(.*\); copy the dump again"):
            replay(folder)
        (folder / damaged).unlink()
        with pytest.raises(DataError, match="is not there; copy the dump again, or let pretrain"):
            replay(folder)
    with pytest.raises(RunError, match="the update was not made"):
        pretrain(config.replace(DIVERGING), tmp_path / "run", resume=True, progress=False)
    assert not math.isfinite(replay(folder).loss)


def test_a_replay_refuses_a_device_that_is_not_there(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, why in {
        "cuda": "torch finds no CUDA device",
        "gpu": "Valid: auto, cpu, cuda",
    }.items():
        refused = CliRunner().invoke(app, ["replay", str(tmp_path), "--device", device])
        assert isinstance(refused.exception, UsageError)
        assert why in str(refused.exception)


def test_where_no_dump_can_be_written_the_error_still_says_what_happened(
    config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    (tmp_path / "run" / "dump").write_text("in the way")
    with pytest.raises(RunError, match=r"loss nan.*update was not made\. It could not be dumped"):
        pretrain(config.replace(DIVERGING), tmp_path / "run", resume=True, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("in_the_way", ["dump", "checkpoints", "checkpoints/step-00000002"])
def test_all_processes_end_where_the_first_cannot_write(
    config: RunConfig, tmp_path: Path, driver: Driver, in_the_way: str
) -> None:
    way = tmp_path / "run" / in_the_way
    way.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("")
    way.write_text("in the way")
    in_background = in_the_way.startswith("checkpoints/")
    changes = DIVERGING if in_the_way == "dump" else ["steps=60" if in_background else "steps=2"]
    every = 2 if in_background else 0
    config = config.replace([*changes, f"checkpoint.every={every}", "validation.every=0"])
    spec = {"config": config.to_dict(), "out": str(tmp_path / "run"), "resume": True}
    answer = driver.answer([spec] * 2)
    assert answer["codes"] == [1, 1]
    first, second = (error.strip().splitlines()[-1] for error in answer["errors"])
    if in_the_way == "dump":
        assert re.search(r"loss nan.*update was not made\. It could not be dumped: .*dump", first)
        assert "It could not be dumped: another process could not do its part" in second
    else:
        assert "checkpoints" in first
        assert second == "another process could not do its part, as it says itself"


def test_a_value_stands_out_by_the_last_steps() -> None:
    state = SkipOutliers(window=4, after=3, deviations=2).begin()
    assert state.stands_out(torch.tensor(9.0), torch.tensor(1.0)) is None  # nothing to go by
    mean, deviation = 4.0, math.sqrt((9 + 25 + 4) / 2)
    limit = mean + 2 * deviation
    for value in (1.0, 9.0, 2.0):
        state.remember(value, 1.0)
    for value, out in ((limit + 0.01, True), (limit - 0.01, False), (-50.0, False)):
        stands_out = state.stands_out(torch.tensor(value, dtype=torch.float64), torch.tensor(1.0))
        assert stands_out is not None
        assert bool(stands_out) == out  # below the mean is no outlier
    assert state.remember(limit + 0.01, 1.0) == f"loss {limit + 0.01:.4g} is above {limit:.4g}"
    assert state.remember(-50.0, 1.0) == ""


@pytest.mark.parametrize("watch", ["loss", "gradient_norm", "either"])
def test_a_step_is_judged_by_what_is_watched(watch: Any) -> None:
    state = SkipOutliers(window=4, after=3, watch=watch).begin()
    for value in (0.9, 1.0, 1.1):
        state.remember(value, value)
    usual, high = torch.tensor(1.0), torch.tensor(100.0)
    for name, values in {"loss": (high, usual), "gradient_norm": (usual, high)}.items():
        assert bool(state.stands_out(*values)) == (watch in (name, "either"))


def test_a_shorter_window_goes_by_its_own_steps_from_the_first_on() -> None:
    long, short = (SkipOutliers(window=window, after=2).begin() for window in (8, 3))
    for value in (50.0, 0.9, 1.0, 1.1):
        long.remember(value, value)
    short.load_state_dict(long.state_dict())
    assert bool(short.stands_out(torch.tensor(5.0), torch.tensor(1.0)))
    assert short.remember(5.0, 1.0) == "loss 5 is above 1.6"


def test_a_new_level_is_known_in_time() -> None:
    state = SkipOutliers(window=8, after=4, watch="gradient_norm").begin()
    noise, told, judged = [0.9, 1.0, 1.1, 1.0], [], []
    for value in noise * 2 + [10 * value for value in noise * 2]:
        judged.append(state.stands_out(torch.tensor(5.0), torch.tensor(value).double()))
        told.append(bool(state.remember(5.0, value)))
    assert judged[:4] == [None] * 4
    assert [bool(stands_out) for stands_out in judged] == told
    assert told[:8] == [False] * 8
    assert told[8]
    assert told[-4:] == [False] * 4
    with pytest.raises(UsageError, match=r"must not exceed window \(8\)"):
        SkipOutliers.parse({"kind": "skip", "window": 8, "after": 9})


SKIPPING = [
    "outliers.kind=skip", "outliers.after=3", "outliers.window=6", "outliers.watch=loss",
    "log_every=1", "validation.every=0",
]  # fmt: skip


@pytest.fixture
def spike(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of step 7 is a hundred times what it is."""
    real, seeds = Forward.losses, steps.seed_dropout
    now: list[int] = []

    def seed(run_seed: int, step: int, rank: int, micro_batch: int) -> None:
        now[:] = [step]
        seeds(run_seed, step, rank, micro_batch)

    def spiked(self: Forward, part: Any) -> Any:
        loss, *others = real(self, part)
        return (loss * 100 if now == [6] and torch.is_grad_enabled() else loss), *others

    monkeypatch.setattr(steps, "seed_dropout", seed)
    monkeypatch.setattr(Forward, "losses", spiked)


@pytest.mark.usefixtures("spike")
def test_an_outlier_makes_no_update_and_is_logged(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config.replace([*SKIPPING, "checkpoint.every=1", "checkpoint.keep=12"])
    with caplog.at_level(logging.WARNING):
        pretrain(config, tmp_path / "run", progress=False)
    assert "step 7 is left out as an outlier: loss" in caplog.text
    logged = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["skipped_steps"] for line in logged] == [[]] * 6 + [[7]] + [[]] * 5
    assert logged[6]["class_weight"] == logged[5]["class_weight"]
    assert logged[7]["class_weight"] != logged[6]["class_weight"]
    folders = {step: tmp_path / "run" / "checkpoints" / f"step-{step:08d}" for step in (5, 6, 7)}
    for name in ("transformers/model.safetensors", "optimiser.safetensors"):
        five, six, seven = ((folders[step] / name).read_bytes() for step in (5, 6, 7))
        assert five != six == seven


@pytest.mark.usefixtures("spike")
@pytest.mark.parametrize("step", [4, 6, 7])
def test_what_stands_out_does_not_depend_on_stops(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    config = config.replace([*SKIPPING, "log_every=5"])
    pretrain(config, tmp_path / "whole", progress=False)
    skipped = [line["skipped_steps"] for line in lines(tmp_path / "whole" / "metrics.jsonl")]
    assert skipped == [[], [7], []]
    with monkeypatch.context() as patch:
        ask_to_stop_after(patch, step, 15)
        with pytest.raises(Stopped):
            pretrain(config, tmp_path / "cut", progress=False)
    pretrain(config, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_rule_that_began_later_finds_no_state(config: RunConfig, tmp_path: Path) -> None:
    pretrain(config.replace([*SKIPPING, "steps=2"]), tmp_path / "run", progress=False)
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    content = load_file(newest / "content.safetensors")
    assert content["outliers.last_values"].shape == (2, 2)
    state = SkipOutliers().begin()
    with pytest.raises(DataError, match=r"has no 'outliers\.last_values'"):
        state.load_state_dict({})


def test_determinism_is_asked_of_torch_and_given_back(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], Forward.losses

    def watch(self: Forward, part: Any) -> Any:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return real(self, part)

    monkeypatch.setattr(Forward, "losses", watch)
    config = config.replace(["steps=3"])
    pretrain(config.replace(["deterministic=true"]), tmp_path / "asked", progress=False)
    assert asked
    assert all(asked)
    assert not torch.are_deterministic_algorithms_enabled()
    pretrain(config, tmp_path / "not", progress=False)
    ours, theirs = weights_of(tmp_path / "asked"), weights_of(tmp_path / "not")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # on a CPU it is so anyway


def test_dropout_is_seeded_as_torch_seeds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host and on every CUDA device in use, for which generators of the host stand here."""
    devices = tuple(torch.Generator() for _ in range(2))
    monkeypatch.setattr(torch.cuda, "default_generators", devices)
    for micro_batch in range(2):
        seed_dropout(3, 5, 1, micro_batch)
        drawn = torch.rand(4)
        number = int(row_keys(3, Stream.DROPOUT, 5, 2**20 + micro_batch)) >> 1
        torch.manual_seed(number)
        assert torch.equal(torch.rand(4), drawn)
        assert all(torch.equal(torch.rand(4, generator=each), drawn) for each in devices)


@pytest.mark.gpu
def test_dropout_is_seeded_on_a_device_as_torch_seeds_it() -> None:
    torch.rand(3, device="cuda")
    seed_dropout(3, 5, 0, 0)
    drawn = torch.rand(4, device="cuda")
    torch.manual_seed(int(row_keys(3, Stream.DROPOUT, 5, 0)) >> 1)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)


@pytest.mark.parametrize("loss", [0.0, 1e300, -3.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("norm", [0.0, 3e38, math.inf, math.nan])
def test_a_step_is_finite_where_its_loss_and_norm_are(loss: float, norm: float) -> None:
    found = steps._finite(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm))
    assert bool(found) == (math.isfinite(loss) and math.isfinite(norm))


def test_the_norm_of_gradients_is_torchs() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape) for shape in ((3, 5), (7,), (2, 2), (1,))]
    assert torch.equal(gradient_norm(gradients), torch.nn.utils.get_total_norm(gradients))
    gradients[2][0, 0] = math.nan
    assert gradient_norm(gradients).isnan()
    assert float(gradient_norm([])) == 0.0


def test_determinism_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with determinism(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with determinism(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()
