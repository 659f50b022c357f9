"""What a run computes: the method's loss, its schedules, its feedback; and what stops it."""

from __future__ import annotations

import json
import math
import re
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

import chronomask as cm
from chronomask import yardsticks
from chronomask.data.annotation import SPECIAL
from chronomask.data.folder import PreparedData
from chronomask.errors import RunError, UsageError
from chronomask.masking.masker import Vocabulary, fixed_masker
from chronomask.model.open import open_tokenizer
from chronomask.runs.held_out import read_rows
from chronomask.runs.layout import HASHES, RunFolder
from chronomask.storage import file_sha256, write_json
from chronomask.train import dump, validation
from chronomask.train import step as steps
from chronomask.train.config import RunConfig, ValidationConfig
from chronomask.train.distributed import World
from chronomask.train.dry_run import as_text, dry_run
from chronomask.train.forward import Forward, Predictions
from chronomask.train.loop import pretrain
from chronomask.train.open import open_run
from chronomask.train.state import State
from chronomask.train.validation import expect_few, warn_of_few, warn_of_other_rows
from tests.support.golden_runs import make_data
from tests.support.tiny_training import (
    WITHOUT_DROPOUT,
    assert_close,
    lines,
    run_values,
    weights_of,
)


def test_a_run_leaves_what_the_contract_says(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = pretrain(config, run, progress=False)
    assert {path.name for path in run.iterdir()} == {
        ".lock", "config.yaml", "environment.json", "metrics.jsonl", "validation.jsonl",
        "validation-rows.npz", "checkpoints", "summary.json",
    }  # fmt: skip
    assert json.loads((run / "summary.json").read_text()) == summary
    assert RunConfig.load(run / "config.yaml") == config
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [3, 6, 9, 12]
    assert [line["step"] for line in lines(run / "validation.jsonl")] == [4, 8, 12]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000012",
    ]
    final = run / summary["checkpoint"]
    assert {path.name for path in final.iterdir()} == {
        "state.json", "optimiser.safetensors", "content.safetensors", "transformers", "hashes.json",
    }  # fmt: skip
    assert summary["steps"] == 12
    assert summary["complete"] is True
    assert summary["tokens_seen"] == 12 * 8 * 32
    assert summary["validation_loss"] == lines(run / "validation.jsonl")[-1]["loss"]

    last = lines(run / "metrics.jsonl")[-1]
    assert last["progress"] == pytest.approx(11 / 12)
    assert last["masking_ratio"] == pytest.approx(0.6 / 12)
    assert last["masked_tokens"] == summary["masked_tokens"]
    assert set(last["class_weight"]) >= set(last["class_loss"])
    counts = [sum(line["class_count"].values()) for line in lines(run / "metrics.jsonl")]
    assert sum(counts) == summary["masked_tokens"]


def test_every_checkpoint_opens_in_transformers(config: RunConfig, tmp_path: Path) -> None:
    summary = pretrain(config, tmp_path / "run", progress=False)
    for folder in (tmp_path / "run" / "checkpoints").glob("*/transformers"):
        model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert model.config.vocab_size == len(tokenizer)
        head, body = (folder / "README.md").read_text().split("---\n")[1:]
        assert yaml.safe_load(head)["pipeline_tag"] == "fill-mask"
        assert summary["data_fingerprint"] in body
        assert "kind: linear_decay" in body


def test_training_lowers_the_loss(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace(
        ["steps=40", "checkpoint.every=0", "validation.every=20", "loader_workers=0"]
    )
    summary = pretrain(config, tmp_path / "run", progress=False)
    first = lines(tmp_path / "run" / "metrics.jsonl")[0]["loss"]
    assert first == pytest.approx(math.log(512), rel=0.05)
    assert summary["validation_loss"] < first - 0.5


def test_micro_batches_change_nothing_but_rounding(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace([*WITHOUT_DROPOUT, "steps=6"])
    for number in (1, 2, 4):
        pretrain(
            config.replace([f"micro_batches={number}"]), tmp_path / f"{number}", progress=False
        )
    one = tmp_path / "1"
    for other in (tmp_path / "2", tmp_path / "4"):
        assert_close(weights_of(one), weights_of(other))
        for a, b in zip(lines(one / "metrics.jsonl"), lines(other / "metrics.jsonl"), strict=True):
            assert a["class_count"] == b["class_count"]  # the same masks
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)


@pytest.mark.parametrize("per", ["label", "token", "row"])
def test_weighted_losses_do_not_depend_on_how_a_step_is_cut(
    config: RunConfig, tmp_path: Path, per: str
) -> None:
    weighted = config.replace(
        [
            *WITHOUT_DROPOUT,
            f"masking.loss_per={per}",
            "masking.loss_weight.kind=derivative",
            "masking.loss_weight.exponent=0.5",
            "masking.ratio.kind=cosine_rows",
            "steps=3",
            "checkpoint.every=3",
        ]
    )
    for number in (1, 3, 8):
        cut = weighted.replace([f"micro_batches={number}"])
        pretrain(cut, tmp_path / f"{number}", progress=False)
    for number in (3, 8):
        assert_close(weights_of(tmp_path / "1"), weights_of(tmp_path / f"{number}"))
    plain = weighted.replace(["masking.loss_per=label", "masking.loss_weight.kind=none"])
    pretrain(plain, tmp_path / "plain", progress=False)
    with pytest.raises(AssertionError):  # the weights tell
        assert_close(weights_of(tmp_path / "1"), weights_of(tmp_path / "plain"))


def test_first_loss_is_that_of_transformers_on_the_same_batch(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents fill no row twice here, so transformers' own forward is right about them too."""
    seen: list[Any] = []
    queue, read = steps.queue_update, steps.read

    def watch(run: Any, step: int, world: Any, parts: Any, predictions: Any, *rest: Any) -> Any:
        if not seen:
            with torch.no_grad():
                total = sum(
                    run.forward.model(
                        input_ids=part.batch.input_ids,
                        labels=part.batch.labels,
                        attention_mask=(part.batch.input_ids != run.forward.pad_token_id).long(),
                    ).loss
                    * part.batch.num_predicted
                    for part in parts
                )
            seen.append(total / predictions.masked)
        return queue(run, step, world, parts, predictions, *rest)

    def watch_end(*arguments: Any) -> Any:
        found = read(*arguments)
        seen.append(found[0])
        return found

    monkeypatch.setattr(steps, "queue_update", watch)
    monkeypatch.setattr(steps, "read", watch_end)
    one_step = config.replace([*WITHOUT_DROPOUT, "steps=1", "attention=row"])
    pretrain(one_step, tmp_path / "run", progress=False)
    assert seen[1] == pytest.approx(float(seen[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("follow", "budget"), [("sqrt", "row"), ("linear", "row"), ("sqrt", "batch")]
)
def test_a_rate_that_follows_labels_does_so_at_every_step(
    config: RunConfig, tmp_path: Path, follow: str, budget: str
) -> None:
    """Labels over their mean over the run, which the plan knows before the first step."""
    config = config.replace(
        [f"learning_rate.follow_labels={follow}", f"masking.budget={budget}", "log_every=1"]
    )
    summary = pretrain(config, tmp_path / "run", progress=False)
    logged = lines(tmp_path / "run" / "metrics.jsonl")
    labels = np.diff([line["masked_tokens"] for line in logged], prepend=0)
    ratio = np.array([line["rate_factor"] for line in logged])
    ratio = ratio**2 if follow == "sqrt" else ratio
    means = labels / ratio
    assert means == pytest.approx(np.full(12, means[0]), rel=1e-9)
    assert means[0] == pytest.approx(summary["masked_tokens"] / 12, rel=0.02)
    for step, line in enumerate(logged):
        plain = config.learning_rate.at(step, 12)
        assert line["learning_rate"] == pytest.approx(plain * line["rate_factor"], rel=1e-12)
    assert ratio[0] > 1.5 > 0.5 > ratio[-1]  # the ratio falls, and the rate with it
    assert "times" in as_text(dry_run(config, flops_per_second=1e9))


def test_a_mean_of_labels_that_is_not_known_is_told(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config.replace(["learning_rate.follow_labels=sqrt", "steps=1"])
    for content, told in (("ptw", False), ("ptw_faithful", True)):
        caplog.clear()
        changed = RunConfig.of(config, masking={"content": content})
        pretrain(changed, tmp_path / content, progress=False)
        assert ("may be another: the published walk of content" in caplog.text) == told


def test_no_labels_to_follow_are_refused_before_work(config: RunConfig, tmp_path: Path) -> None:
    nothing = config.replace(
        ["learning_rate.follow_labels=sqrt", "masking.ratio={kind: constant, base: 0}"]
    )
    with pytest.raises(UsageError, match=r"learning_rate\.follow_labels is 'sqrt', and no labels"):
        pretrain(nothing, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=r"learning_rate\.follow_labels.*'square'.*sqrt"):
        config.replace(["learning_rate.follow_labels=square"])


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_z_loss_and_its_gradient_are_those_of_float64(
    config: RunConfig, tmp_path: Path, micro_batches: int
) -> None:
    """A step of weighted losses: c · mean log² Z is added to what is minimised and not to the loss."""
    changes = [
        *WITHOUT_DROPOUT, "z_loss=0.5", "attention=row", "masking.loss_weight.kind=inverse_ratio",
        "masking.ratio.kind=uniform_rows",
    ]  # fmt: skip
    config, alone = config.replace(changes), World(0, 1, torch.device("cpu"))
    run, state = open_run(config, RunFolder(tmp_path / "run"), alone, resume=False)
    rows = run.loader.rows_at(0).micro_batches(micro_batches)
    parts = [run.forward.mask(part, run.masker, 0.5) for part in rows]
    predictions = Predictions.of(parts)
    predicted, divisor = predictions.masked, predictions.divisor

    exact = deepcopy(run.forward.model).double()
    losses, squares = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in parts:
        batch = part.batch
        logits = exact(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.positions]
        loss = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        losses = losses + (loss * torch.as_tensor(batch.loss_weights)).sum()
        squares = squares + logits.logsumexp(1).square().sum()
    (losses / divisor + 0.5 * squares / predicted).backward()
    expected = torch.stack([p.grad.norm() for p in exact.parameters() if p.grad is not None]).norm()

    squares = squares.detach()
    sums = steps.queue_update(run, state.step, alone, parts, predictions, 0.0)
    loss, norm, z_loss = steps.read(run, state, alone, parts, predictions, sums)
    assert z_loss == pytest.approx(float(0.5 * squares / predicted), rel=1e-6)
    assert norm == pytest.approx(float(expected), rel=1e-5)
    assert 4 < loss < 7 < z_loss


def test_with_nothing_to_predict_the_weights_stay_and_the_schedules_go_on(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config.replace(["masking.ratio.kind=constant", "masking.ratio.base=0", "steps=3"])
    summary = pretrain(config, tmp_path / "run", progress=True)
    assert summary["masked_tokens"] == 0
    told = capsys.readouterr().err
    assert told.startswith("tiny: words’ frequencies alone give a validation loss of ")
    assert told.splitlines()[1].startswith("tiny: 3 steps in ")
    assert "nothing predicted" in told
    line = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert line["loss"] is None
    assert line["masking_ratio_achieved"] == 0
    other = config.replace(["steps=1"])
    pretrain(other, tmp_path / "other", progress=False)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(tmp_path / "other")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_of_a_loss_that_is_not_finite_are_named_by_the_process_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(0, 2, torch.device("cpu"))
    monkeypatch.setattr(World, "totals", lambda *_: [3.0])  # of which none are here
    assert dump._where([], [], world) == "in training rows of another process, which names them"
    assert dump._where([4, 9, 2], [], world) == "in training rows 4, 9, 2"
    monkeypatch.setattr(World, "totals", lambda *_: [0.0])  # a gradient overflowed
    assert dump._where([], [], world).startswith("somewhere in training rows")


def test_a_non_finite_loss_stops_before_the_update(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.replace(["checkpoint.every=1"])
    real, calls = Forward.losses, []

    def poisoned(self: Forward, part: Any) -> Any:
        loss, *others = real(self, part)
        if torch.is_grad_enabled():
            calls.append(part)
            if len(calls) == 6:  # the second micro-batch of step 3
                loss = loss.clone()
                loss[0] = math.inf
        return loss, *others

    monkeypatch.setattr(Forward, "losses", poisoned)
    with pytest.raises(RunError) as stopped:
        pretrain(config, tmp_path / "run", progress=False)
    bad = calls[5]
    row = bad.rows.row_id[int(bad.batch.positions[0]) // bad.rows.row_length]
    assert str(stopped.value).startswith("step 3: loss inf, ")
    assert f"in training rows {row}; the update was not made" in str(stopped.value)
    assert (
        sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000002"
    )
    assert not (tmp_path / "run" / "summary.json").exists()


def test_progress_is_counted_as_asked(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    by_tokens = config.replace(["masking.progress=tokens", "steps=4", "log_every=1"])
    pretrain(by_tokens, tmp_path / "tokens", progress=True)
    assert "words’ frequencies alone give a validation loss of" in capsys.readouterr().err
    seen = [line["progress"] for line in lines(tmp_path / "tokens" / "metrics.jsonl")]
    assert seen == [0, 0.25, 0.5, 0.75]
    budget = ["masking.progress=masked_tokens", "masked_token_budget=200", "steps=4", "log_every=1"]
    summary = pretrain(config.replace(budget), tmp_path / "masked", progress=False)
    assert "words’ frequencies" not in capsys.readouterr().err
    logged = lines(tmp_path / "masked" / "metrics.jsonl")
    before = [0, *(line["masked_tokens"] for line in logged[:-1])]
    assert [line["progress"] for line in logged] == [min(1.0, n / 200) for n in before]
    asked = [line["masking_ratio"] for line in logged]
    assert summary["mean_ratio_asked"] == pytest.approx(sum(asked) / len(asked), rel=0.02)
    with pytest.raises(UsageError, match="needs masked_token_budget"):
        config.replace(["masking.progress=masked_tokens"])
    with pytest.raises(UsageError, match=r"has no effect with masking\.progress 'steps'"):
        config.replace(["masked_token_budget=5"])


@pytest.mark.parametrize("content", ["token_accuracy", "none", "ptw_faithful"])
def test_other_content_schedules_and_modernbert(
    config: RunConfig, tmp_path: Path, content: str
) -> None:
    config = config.replace(
        [
            f"masking.content.kind={content}",
            "model.model_type=modernbert",
            "model.overrides.local_attention=8",
            "steps=3",
        ]
    )
    pretrain(config, tmp_path / "run", progress=False)
    line = lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert ("class_weight" in line) == (content == "ptw_faithful")


def test_bf16_stays_near_fp32(config: RunConfig, tmp_path: Path) -> None:
    config = config.replace([*WITHOUT_DROPOUT, "steps=3"])
    pretrain(config, tmp_path / "fp32", progress=False)
    pretrain(config.replace(["precision=bf16"]), tmp_path / "bf16", progress=False)
    a, b = (lines(tmp_path / run / "metrics.jsonl")[-1]["loss"] for run in ("fp32", "bf16"))
    assert a == pytest.approx(b, rel=0.01)
    assert a != b
    assert all(t.dtype == torch.float32 for t in weights_of(tmp_path / "bf16").values())


def vocabulary_of(config: RunConfig) -> Vocabulary:
    data = PreparedData.open(config.data)
    return Vocabulary.from_tokenizer(open_tokenizer(data.tokenizer_path))


def forget_order(path: Path) -> None:
    """Make a run's config, or a checkpoint's state, one of before there was ``validation.order``."""
    is_config = path.suffix == ".yaml"
    values = yaml.safe_load(path.read_text())
    del (values if is_config else values["config"])["validation"]["order"]
    path.write_text(yaml.safe_dump(values) if is_config else json.dumps(values))
    if not is_config:
        hashes = json.loads((path.parent / HASHES).read_text())
        write_json(path.parent / HASHES, hashes | {path.name: file_sha256(path)})


TITLES = {
    "words-5": "whole words, 5 %",
    "words-15": "whole words, 15 %",
    "words-30": "whole words, 30 %",
    "words-50": "whole words, 50 %",
    "single": "single mask",
}


def test_validation_is_of_rows_of_all_documents_or_of_the_first_in_the_data(
    config: RunConfig, tmp_path: Path
) -> None:
    split = PreparedData.open(config.data).split("held_out")
    for order in (None, "data"):
        settings = {"rows": 5, "batch_rows": 2} | ({} if order is None else {"order": order})
        run = tmp_path / str(order)
        pretrain(RunConfig.of(config, steps=1, validation=settings), run, progress=False)
        kept = read_rows(run / "validation-rows.npz", 1)
        assert kept is not None
        rows = split.read(split.first_rows(5, shuffled=order is None))
        words = (rows.word_id >= 0).sum(1)
        batch = fixed_masker(vocabulary_of(config))(rows, 0.0)
        numbers = np.bincount(batch.positions // split.row_length, minlength=5)
        assert kept["tokens-15"][1].tolist() == numbers.tolist()
        assert (kept["words-50"][1] > 0).tolist() == [True, False, False, False, False]
        assert kept["words-50"][1][0] == pytest.approx(words[0] / 2, abs=2)


def test_a_run_that_goes_on_with_other_held_out_rows_says_so(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    pretrain(config, run, progress=False)

    def go_on(**validation: Any) -> str:
        shutil.rmtree(run / "checkpoints" / "step-00000012")
        caplog.clear()
        pretrain(RunConfig.of(config, validation=validation), run, resume=True, progress=False)
        return caplog.text

    assert "of other held-out rows" not in go_on(every=3)
    told = "losses from here on are of other held-out rows than those before; with "
    assert f"{told}validation.rows=8 and validation.order=shuffled they stay" in go_on(
        rows=7, order="data"
    )
    assert f"{told}validation.order=shuffled they stay" in go_on(order="data")


def test_only_rows_that_are_there_are_other_ones(caplog: pytest.LogCaptureFixture) -> None:
    before = ValidationConfig(rows=1024)
    warn_of_other_rows(before, ValidationConfig(rows=2048), 54)
    warn_of_other_rows(before, ValidationConfig(rows=1024, order="shuffled"), 5400)
    assert not caplog.records
    warn_of_other_rows(before, ValidationConfig(rows=2048, order="data"), 54)
    assert "losses of the yardsticks from here on are of other" in caplog.text
    assert "validation.rows" not in caplog.text


def test_a_run_of_before_there_was_an_order_keeps_the_first_rows(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    config = RunConfig.of(config, validation={"rows": 5})
    first = pretrain(RunConfig.of(config, validation={"order": "data"}), run, progress=False)
    rows = (run / "validation-rows.npz").read_bytes()
    for path in (run / "config.yaml", *run.glob("checkpoints/*/state.json")):
        forget_order(path)
    assert RunConfig.load(run / "config.yaml").validation.order == "data"
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    # Repeated with the config that it was begun with, which names no order.
    again = pretrain(config, run, resume=True, progress=False)
    assert "of other held-out rows" not in caplog.text
    assert again["validation_loss"] == first["validation_loss"]
    assert (run / "validation-rows.npz").read_bytes() == rows
    assert RunConfig.load(run / "config.yaml").validation.order == "data"


def test_a_validation_that_can_tell_little_is_warned_of(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = RunConfig.of(config, steps=1, validation={"rows": 10**6})
    pretrain(more, tmp_path / "run", progress=False)
    rows = PreparedData.open(config.data).split("held_out").num_rows
    assert f"asks for 1,000,000 held-out rows, and the data has {rows:,}" in caplog.text
    last = lines(tmp_path / "run" / "validation.jsonl")[-1]
    numbers = {name: last["yardstick_count"][name] for name in TITLES}
    fewest = min(numbers, key=numbers.__getitem__)
    said = "rest on {:,} predictions at a fixed 15 %, and on {:,} where they are fewest ({})"
    assert said.format(last["num_predicted"], numbers[fewest], TITLES[fewest]) in caplog.text
    of_mean = 25 / sum(1 / number for number in numbers.values())
    needed = math.ceil(1.05 * rows * 2000 / min(last["num_predicted"], of_mean))
    enough = (
        f"About {needed:,} held-out rows are enough for that and for the mean of the yardsticks"
    )
    assert f"{enough}: prepare more text" in caplog.text
    assert said.split("{")[0] in str(
        expect_few(PreparedData.open(config.data).split("held_out"), more.validation)
    )


def test_the_rows_that_a_warning_of_few_predictions_names_are_enough(
    config: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(config.data)
    masker = fixed_masker(vocabulary_of(config))
    monkeypatch.setattr(validation, "FEW_PREDICTIONS", 40)
    monkeypatch.setattr(yardsticks, "FEW_PREDICTIONS", 40)
    warn_of_few(masker, data.split("held_out"), ValidationConfig(rows=2))
    (said,) = [record.getMessage() for record in caplog.records]
    rows = int(re.search(r"set validation.rows=(\d+)", said)[1])
    caplog.clear()
    # Rows differ in length: a few more than the average says are enough for sure.
    warn_of_few(masker, data.split("held_out"), ValidationConfig(rows=rows + 5))
    assert not caplog.records
    # All the rows there are, as many as are asked for.
    there = data.split("held_out").num_rows
    warn_of_few(masker, data.split("held_out"), ValidationConfig(rows=there))
    assert not caplog.records


def test_more_text_is_asked_for_only_where_all_held_out_rows_are_too_few(
    config: RunConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = PreparedData.open(config.data)
    split = data.split("held_out")
    masker = fixed_masker(vocabulary_of(config))
    for few in range(20, 400, 2):
        monkeypatch.setattr(validation, "FEW_PREDICTIONS", few)
        monkeypatch.setattr(yardsticks, "FEW_PREDICTIONS", few)
        warn_of_few(masker, split, ValidationConfig(rows=2))
    asked = set()
    for record in caplog.records:
        said = record.getMessage()
        needed = int(re.search(r"About (\d+) held-out rows", said)[1])
        assert (f"set validation.rows={needed}" in said) == (needed <= split.num_rows)
        assert ("prepare more text" in said) == (needed > split.num_rows)
        asked.add(needed)
    assert {split.num_rows, split.num_rows + 1} <= asked


@pytest.mark.parametrize(
    ("documents", "single"),
    [(300, 30), (50, 10)],  # a row holds a document or a part of one
)
def test_predictions_of_a_part_of_the_rows_are_reckoned_from_sizes(
    documents: int, single: int
) -> None:
    split: Any = SimpleNamespace(num_rows=100, num_documents=documents, num_tokens=20_000)
    said = f"rest on 300 predictions at a fixed 15 %, and on {single} where they are fewest (single"
    assert said in str(expect_few(split, ValidationConfig(rows=10)))
    split.num_tokens, split.num_documents = 50_000, 1000
    assert expect_few(split, ValidationConfig(rows=10)) is not None
    assert expect_few(split, ValidationConfig(rows=100)) is None


def test_the_yardsticks_of_the_end_are_in_the_summary_and_on_the_card(
    config: RunConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    summary = pretrain(config, run, progress=False)
    last = lines(run / "validation.jsonl")[-1]
    assert summary["validation_mean_loss"] == last["mean_loss"]
    for key in ("loss", "accuracy", "count"):
        assert summary[f"validation_yardstick_{key}"] == last[f"yardstick_{key}"]
    assert summary["maskable_tokens"] == lines(run / "metrics.jsonl")[-1]["maskable_tokens"]
    assert 0 < summary["masked_tokens"] < summary["maskable_tokens"] <= summary["tokens_seen"]
    card = (run / summary["checkpoint"] / "transformers" / "README.md").read_text()
    assert summary["validation_num_predicted"] == last["num_predicted"]
    assert f"15 % of tokens masked ({last['num_predicted']:,} predictions) |" in card
    assert f"| mean of the five yardsticks below | {last['mean_loss']:.4f} |" in card
    for part in ("", "/content words", "/NOUN"):
        count = last["yardstick_count"][f"words-30{part}"]
        loss = last["yardstick_loss"][f"words-30{part}"]
        (line,) = re.findall(rf"^\| {part[1:] or 'all words'} \|.*", card, re.MULTILINE)
        assert line.split(" | ")[4] == f"{loss:.3f} ({count:,})"


def test_asked_for_labels_and_given_none_it_warns_and_then_stops(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(tmp_path / "data")
    for shard in (data / "train").glob("annotation-*.npy"):  # as if no token were of a word
        np.save(shard, np.full_like(np.load(shard), SPECIAL))
    config = config.replace([f"data={data}", "steps=40"])
    with pytest.raises(
        RunError, match=r"stopped after step 10: .*nothing is predicted since step 1"
    ):
        pretrain(config, tmp_path / "run", progress=False)
    assert caplog.text.count("nothing is predicted") == 1
    assert "step 1: a masking ratio of" in caplog.text


def test_labels_that_are_missing_by_chance_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    state = State.start(3)
    for missing in (4.0, 4.0, 0.0, 9.0, 0.0, 0.5):
        steps._check_predicting(state, missing, 0.1)
        state.step += 1
    assert caplog.text == ""
    assert state.unpredicted == 0.5


def test_folders_in_the_home_folder(
    tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shell has replaced the ``~`` of a call from Python."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "data").symlink_to(tiny_data.path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cm.pretrain({**run_values(tiny_data), "data": "~/data", "steps": 2}, "~/run", progress=False)
    assert cm.read_run("~/run").summary == cm.read_runs(["~/run"])[0].summary
    assert cm.open_data("~/data").fingerprint == tiny_data.fingerprint
    (result,) = cm.evaluate("~/run", "mlm", "~/data", out="~/results", progress=False)
    assert result.step == 2
    cm.report("~/run", "~/report")
    made = {path.name for path in (tmp_path / "home").iterdir()}
    assert made >= {"data", "run", "results", "report"}
    assert list(Path().iterdir()) == []
