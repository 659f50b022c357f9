"""Several processes compute what one does; a signal to one stops all; one can take over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from chronomask.errors import UsageError
from chronomask.runs.layout import RunFolder
from chronomask.train.config import RunConfig
from chronomask.train.distributed import World, _buckets, join
from chronomask.train.dry_run import dry_run
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from chronomask.train.validation import validate
from chronomask.types import Device
from tests.support.processes import HANG, python_path
from tests.support.tiny_training import (
    WITHOUT_DROPOUT,
    Driver,
    assert_close,
    lines,
    weights_of,
)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").glob("step-*"))[-1]


def assert_same_training(left: Path, right: Path) -> None:
    """The same rows, masks and class counts; losses, norms and all state to rounding."""
    assert_close(weights_of(left), weights_of(right))
    for name in ("content", "optimiser"):
        ours, theirs = (load_file(newest(run) / f"{name}.safetensors") for run in (left, right))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-5, atol=1e-5)
    for name in ("metrics.jsonl", "validation.jsonl"):
        for a, b in zip(lines(left / name), lines(right / name), strict=True):
            assert a["class_count"] == b["class_count"]  # the same rows and masks
            for key in {"loss", "gradient_norm", "z_loss", "learning_rate"} & (a.keys() | b.keys()):
                # Losses to 1e-5; a norm of 146 has float32 neighbours that lie further apart than that.
                assert a[key] == pytest.approx(b[key], rel=1e-6, abs=1e-5)


@pytest.fixture
def config(config: RunConfig) -> RunConfig:
    """Without dropout, which differs between numbers of processes; the clip always cuts."""
    return config.replace([*WITHOUT_DROPOUT, "rows_per_step=7", "gradient_clip=0.2"])


@pytest.mark.slow
@pytest.mark.parametrize("per", ["label", "token", "row"])
def test_processes_that_weigh_losses_equal_one(
    config: RunConfig, tmp_path: Path, per: str, driver: Driver
) -> None:
    weighted = config.replace(
        [
            f"masking.loss_per={per}",
            "z_loss=0.1",
            "masking.loss_weight.kind=inverse_ratio",
            "masking.ratio.kind=uniform_rows",
        ]
    )
    for number in (1, 2):
        spec = {"config": weighted.to_dict(), "out": str(tmp_path / str(number))}
        assert driver.codes(spec, number) == [0] * number
    assert_same_training(tmp_path / "1", tmp_path / "2")


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 4])
def test_processes_equal_one_and_one_goes_on_from_them(
    config: RunConfig, tmp_path: Path, number: int, driver: Driver
) -> None:
    config = config.replace(
        ["averaging={kind: ema, decay: 0.7}", "learning_rate.follow_labels=sqrt"]
    )
    spec = {"config": config.to_dict(), "out": str(tmp_path / "many"), "ask_to_stop": [1, 8]}
    assert driver.codes(spec, number) == [143] * number
    pretrain(config, tmp_path / "one", progress=False)
    pretrain(config, tmp_path / "many", resume=True, progress=False)
    assert_same_training(tmp_path / "one", tmp_path / "many")
    means = [newest(tmp_path / run) / "averaged" / "model.safetensors" for run in ("one", "many")]
    assert_close(load_file(means[0]), load_file(means[1]))


@pytest.mark.slow
def test_layers_left_out_by_chance_are_refused_in_several_processes(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    """Each process would have gradients of other layers, and add them to those of the next."""
    sizes = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    }  # fmt: skip
    overrides = {**sizes, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.0}
    model = {"kind": "config", "model_type": "bart", "overrides": overrides}
    bart = RunConfig.parse(config.to_dict() | {"model": model, "attention": "row", "steps": 1})
    spec = {"config": bart.to_dict(), "out": str(tmp_path / "run")}
    answer = driver.answer([spec] * 2)
    assert answer["codes"] == [2, 2]
    message = (
        "leaves out layers by chance (encoder_layerdrop 0.5), and each of the 2 processes would"
    )
    assert all(message in error for error in answer["errors"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"set model\.overrides\.encoder_layerdrop=0\.0 "):
        dry_run(bart, devices=2, flops_per_second=1e9)
    assert driver.codes(spec) == [0]
    mended = bart.replace(["model.overrides.encoder_layerdrop=0.0"])
    assert driver.codes({"config": mended.to_dict(), "out": str(tmp_path / "two")}, 2) == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_shared_out_equals_whole_copies(
    config: RunConfig, tmp_path: Path, model_type: str, driver: Driver
) -> None:
    """Gathered head, packed documents, tied weights, accumulation, clipping and the optimiser's state.

    Three processes: 7 rows in shares of 2, 2 and 3, and tensors that do not divide evenly.
    """
    values = config.replace(["micro_batches=3", "steps=5", "log_every=1"]).to_dict()
    if model_type == "modernbert":
        values["model"]["model_type"] = model_type
        overrides = values["model"]["overrides"]
        overrides["local_attention"] = 8
        del overrides["hidden_dropout_prob"], overrides["attention_probs_dropout_prob"]
    for sharding in ("none", "fsdp2"):
        spec = {"config": values | {"sharding": sharding}, "out": str(tmp_path / sharding)}
        assert driver.codes(spec, 3) == [0] * 3
    assert_same_training(tmp_path / "none", tmp_path / "fsdp2")
    folder = newest(tmp_path / "fsdp2") / "transformers"
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    assert model.config.architectures == [type(model).__name__]


@pytest.mark.slow
def test_bfloat16_shared_out_equals_whole_copies_to_its_rounding(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    values = config.replace(["precision=bf16", "steps=5", "log_every=1"]).to_dict()
    for sharding in ("none", "fsdp2"):
        spec = {"config": values | {"sharding": sharding}, "out": str(tmp_path / sharding)}
        assert driver.codes(spec, 2) == [0] * 2
    both = [lines(tmp_path / sharding / "metrics.jsonl") for sharding in ("none", "fsdp2")]
    for whole, shared in zip(*both, strict=True):
        assert whole["class_count"] == shared["class_count"]
        assert whole["loss"] == pytest.approx(shared["loss"], abs=1e-3)
        assert whole["gradient_norm"] == pytest.approx(shared["gradient_norm"], rel=0.01)


@pytest.mark.slow
def test_two_then_one_then_four_processes_sharded_or_not(
    config: RunConfig, tmp_path: Path, driver: Driver
) -> None:
    sharded = config.replace(["sharding=fsdp2"]).to_dict()
    spec = {"config": sharded, "out": str(tmp_path / "many"), "resume": True}
    assert driver.codes(spec | {"ask_to_stop": [1, 4]}, 2) == [143] * 2
    assert driver.codes(spec | {"config": config.to_dict(), "ask_to_stop": [0, 8]}) == [143]
    assert driver.codes(spec, 4) == [0] * 4
    pretrain(config, tmp_path / "one", progress=False)
    assert_same_training(tmp_path / "one", tmp_path / "many")
    resumes = (tmp_path / "many" / "resumes.jsonl").read_text().splitlines()
    assert [json.loads(line)["world_size"] for line in resumes] == [1, 4]


@pytest.mark.slow
def test_torchrun_starts_again_what_a_killed_process_brought_down(
    config: RunConfig, tmp_path: Path
) -> None:
    """One of two processes is killed after step 7; the group goes on from the checkpoint of step 5."""
    out = tmp_path / "many"
    spec = {"config": config.to_dict(), "out": str(out), "resume": True, "die_once": [1, 7]}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2", "--max-restarts", "1"),
        *("--monitor-interval", "0.2", "--module", "tests.support.train_child", json.dumps(spec)),
    ]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    pretrain(config, tmp_path / "one", progress=False)
    assert_same_training(tmp_path / "one", out)
    (resumed,) = (out / "resumes.jsonl").read_text().splitlines()
    assert json.loads(resumed)["from_step"] == 5


@pytest.mark.slow
def test_several_trainings_of_one_script_find_each_other(tmp_path: Path) -> None:
    """Six times in a row, one process or the other behind; each sums over both."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from chronomask.train.distributed import join\n"
        "rank = int(os.environ['RANK'])\n"
        "for k in range(6):\n"
        "    if k % 2 == rank:\n"
        "        time.sleep(0.5)\n"
        "    with join('cpu') as world:\n"
        "        assert world.totals(rank + 1) == [3]\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": python_path()},
        capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch's current CUDA device on a machine without one, and those before it."""
    known = [0]

    def exchange(device: int) -> int:
        before = known[-1]
        known.append(device)
        return before

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: known[-1])
    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    return known


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_process_alone_has_the_device_of_its_caller_who_has_it_still(
    device: Device, current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``evaluate`` has it, which takes torch's current device."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    current.append(1)  # torch.cuda.set_device(1)
    with join(device) as world:
        assert world.device == torch.device("cuda", torch.cuda.current_device())
        assert torch.cuda.current_device() == 1
    assert torch.cuda.current_device() == 1
    with join("cpu") as world:
        assert world.device == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with join(device) as world:
        assert world.device == torch.device("cuda", 3)
        assert torch.cuda.current_device() == 3
    assert torch.cuda.current_device() == 1


@pytest.mark.parametrize(("local_rank", "there"), [("", 1), ("0", 1), ("1", 2), ("1", 1), ("3", 2)])
def test_each_process_of_a_machine_has_a_device_of_its_own(
    local_rank: str, there: int, current: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    number = int(local_rank or 0)
    if number < there:
        with join("auto") as world:
            assert world.device == torch.device("cuda", number)
            assert torch.cuda.current_device() == number
        return
    said = rf"process {number} .* torch finds {there}: .*--nproc-per-node {there}\)"
    with pytest.raises(UsageError, match=said), join("auto"):
        raise AssertionError("it had a device")
    assert current == [0]


def test_processes_count_every_batch_of_a_validation_once(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the last turn, where there are fewer batches than processes."""
    device = torch.device("cpu")
    run, _ = open_run(config, RunFolder(tmp_path / "run"), World(0, 1, device), resume=False)
    by_class: list[torch.Tensor] = []
    of_rows: list[torch.Tensor] = []

    def keep(_: World, tensor: torch.Tensor) -> torch.Tensor:
        (by_class if len(by_class) == len(of_rows) else of_rows).append(tensor.clone())
        return tensor

    monkeypatch.setattr(World, "sum", keep)

    def total(size: int, batch_rows: int = 3) -> list[torch.Tensor]:
        settings = config.validation.model_copy(update={"batch_rows": batch_rows})
        by_class.clear()
        of_rows.clear()
        for rank in range(size):
            validate(
                run.forward, run.validation_masker, run.data.split("held_out"), run.data.class_names,
                settings, World(rank, size, device),
            )  # fmt: skip
        return [torch.stack(shares).sum(0) for shares in (by_class, of_rows)]

    alone = total(1)
    assert alone[0][0, 1].sum() > 0
    torch.testing.assert_close(alone[0].sum(-1)[:, :2], alone[1].sum(-1))
    torch.testing.assert_close(total(1, batch_rows=8)[1], alone[1])  # each loss is in its row
    for size in (2, 3, 7):
        torch.testing.assert_close(total(size), alone)


def test_buckets_hold_every_gradient_once_in_order() -> None:
    gradients = [torch.zeros(n * 2**20) for n in (10, 5, 2, 20, 1)]
    buckets = list(_buckets(gradients))
    assert [[g.numel() // 2**20 for g in bucket] for bucket in buckets] == [[10, 5], [2], [20], [1]]
    assert list(_buckets([])) == []
