"""What a dry run says is what the run does; the shipped configs are of the sizes they claim."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from chronomask.cli import app
from chronomask.config_layers import merge, read_yaml
from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.model import device as device_module
from chronomask.model.config import FromCheckpoint, FromConfig
from chronomask.model.documents import DOCUMENTS_ATTENTION
from chronomask.model.flops import count_flops
from chronomask.runs.rules import expect
from chronomask.study.config import load_study
from chronomask.train.config import RunConfig
from chronomask.train.dry_run import ON_AN_H200, as_text, cost_in_words, dry_run
from chronomask.train.loop import pretrain
from chronomask.train.validation import expect_no_response
from tests.support.documents import ROOT
from tests.support.processes import HANG

CONFIGS = Path(__file__).parents[2] / "src" / "chronomask" / "configs"
ARMS = sorted((CONFIGS / "arms").glob("*.yaml"))
MEAN_RATIO = {
    "bimodal": 0.3218,
    "diffusion": 0.5,
    "ema": None,
    "learning-progress": 0.15,
    "model-scores": 0.15,
    "pmi": 0.15,
    "ptw-fading-in": 0.15,
    "ptw-quarter": 0.15,
    "reducible-loss": 0.15,
    "tokens-to-spans": 0.15,
    "tokens-to-words": 0.225,
    "causal-first": 0.3,
    "gpt-bert": 0.225,
    "late-masks": 0.325,
    "amlm": 0.275, "fixed-15": 0.15, "fixed-17": 0.17, "fixed-22.5": 0.225, "fixed-30": 0.30,
    "linear-15-30": 0.225, "linear-30-15": 0.225, "linear-40-25": 0.325, "mrd-cosine": 0.17,
    "mrd-linear": 0.15, "mrd-ptw": 0.17, "ptw": 0.15, "ptw-faithful": 0.15, "random-15": 0.15,
}  # fmt: skip
"""Of each arm; None: as the run has it."""
BESIDE = {
    "causal-first": ("masking", "objective"),
    "ema": ("averaging",),
    "gpt-bert": ("masking", "objective"),
    "late-masks": ("masking", "late_masks"),
}
"""What arms change that do not change the masking alone."""


@pytest.mark.parametrize(
    "objective", ["mlm", "hybrid", "causal_first", "late_masks", "model_scores"]
)
def test_it_says_what_training_does(config: RunConfig, tmp_path: Path, objective: str) -> None:
    config = config.replace(["log_every=1", "steps=6", "attention=row"])
    if objective == "late_masks":
        config = config.replace(["masking.ratio={kind: constant, base: 0.6}"])
        falling = "late_masks.layer={kind: phases, phases: [{until: 0.5, ratio: 0.5}, {until: 1, ratio: 0}]}"
        at_once = dry_run(config, flops_per_second=1e9)
        config = config.replace([falling])
        assert dry_run(config, flops_per_second=1e9).flops < 0.95 * at_once.flops
    elif objective == "model_scores":
        config = config.replace(["masking.content={kind: model_scores, every: 2, passes: 3}"])
    else:
        config = config.replace([f"objective.kind={objective}"])
    if objective == "hybrid":
        config = config.replace(["objective.causal=0.25", "steps=8"])
    said = dry_run(config, flops_per_second=1e9)
    summary = pretrain(config, tmp_path / "run", progress=False)
    logged = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert said.parameters == summary["parameters"]
    assert said.tokens == pytest.approx(summary["tokens_seen"], rel=0.02)
    assert said.mean_ratio == summary["mean_ratio_asked"]
    # Rows are causal to within a row or two of their share, and the first of them has no mask at all.
    near = 0.15 if config.objective.has_causal_rows else 0.01
    assert said.predicted == pytest.approx(summary["masked_tokens"], rel=near)
    done = sum(line["mfu"] * 1e12 * line["tokens_per_second"] ** -1 for line in logged)
    assert said.flops_per_token == pytest.approx(done / len(logged), rel=max(near, 0.05))
    assert said.seconds == said.flops / 1e9
    assert said.first_masks is not None
    assert said.first_masks["predicted"] == logged[0]["masked_tokens"]
    assert said.first_masks["ratio_achieved"] == logged[0]["masking_ratio_achieved"]
    validated = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    assert said.validations == len(validated)
    text = as_text(said)
    assert f"validation          {len(validated)} times, {said.validation_share:.2%} of" in text
    assert f"{said.first_masks['predicted']:,} of {said.first_masks['maskable']:,}" in text
    continued = FromCheckpoint(path=str(tmp_path / "run" / summary["checkpoint"] / "transformers"))
    again = dry_run(config.model_copy(update={"model": continued}), flops_per_second=1e9)
    assert again.parameters == said.parameters


def test_late_masks_and_causal_rows_are_counted_as_by_hand() -> None:
    length, width, inner, layers = 64, 32, 48, 3
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    overrides = sizes | {"num_attention_heads": 2, "vocab_size": 100}
    config = RunConfig.of(
        {
            "data": "nowhere",
            "model": {"kind": "config", "model_type": "bert", "overrides": overrides},
        },
        masking={"ratio": {"kind": "constant", "base": 0.5}, "mask_replace_prob": 0.75},
        steps=100,
        rows_per_step=8,
    )

    def flops_of_row(*changes: str) -> float:
        said = dry_run(config.replace(list(changes)), flops_per_second=1e9, row_length=length)
        return said.flops / said.rows

    layer = 4 * width**2 + 2 * width * inner
    skipped = length * 0.5 * 0.75
    pairs = length**2 - (length - skipped) ** 2
    left_out = 6 * layer * skipped + 12 * width * pairs
    assert flops_of_row() - flops_of_row("late_masks.layer=2") == pytest.approx(2 * left_out)
    half = (
        "late_masks.layer={kind: phases, phases: [{until: 0.5, ratio: 0.4}, {until: 1, ratio: 0}]}"
    )
    assert flops_of_row() - flops_of_row(half) == pytest.approx(0.5 * left_out)

    everything = layers * layer + width**2 + width * 100  # layers, transform, decoder
    causal = 6 * everything * length + 12 * width * layers * length * (length + 1) / 2
    assert flops_of_row("objective={kind: causal_first, until: 1}") == pytest.approx(causal)
    quarter = config.replace(["objective={kind: hybrid, causal: 0.25}"])
    said = dry_run(quarter, flops_per_second=1e9, row_length=length)
    assert said.next_tokens == 0.25 * said.tokens
    assert f"(mean ratio 0.5000), and {said.next_tokens:.4g} next tokens\n" in as_text(said)
    mixed = flops_of_row("objective={kind: hybrid, causal: 0.25}")
    assert mixed == pytest.approx(0.75 * flops_of_row() + 0.25 * causal)


def test_steps_and_devices_share_the_work(config: RunConfig) -> None:
    grown = ["batch_warmup.start_rows=2", "batch_warmup.steps=12", "batch_warmup.stages=2"]
    whole = dry_run(config, flops_per_second=1e9)
    warm = dry_run(config.replace(grown), flops_per_second=1e9, devices=2)
    assert whole.rows == 96
    assert warm.rows == 6 * 2 + 6 * 5
    level = config.replace(["masking.ratio={kind: constant, base: 0.15}"])
    each = [dry_run(c, flops_per_second=1e9) for c in (level, level.replace(grown))]
    assert each[1].flops_per_token == pytest.approx(each[0].flops_per_token, rel=0.05)
    assert warm.seconds == pytest.approx(warm.flops / 2e9)
    assert warm.mean_ratio is not None
    assert whole.mean_ratio is not None
    assert warm.mean_ratio < whole.mean_ratio  # the high ratios of the start fall on fewer rows
    with pytest.raises(UsageError, match=r"8, fewer than the 9 processes.*; set rows_per_step=9"):
        dry_run(config, flops_per_second=1e9, devices=9)
    with pytest.raises(
        UsageError, match=r"few rows: 2, .*; set batch_warmup\.start_rows=3, or use"
    ):
        dry_run(config.replace(grown), flops_per_second=1e9, devices=3)
    dry_run(config.replace([*grown, "batch_warmup.start_rows=3"]), flops_per_second=1e9, devices=3)
    with pytest.raises(UsageError, match=r"rows of .* have 32 tokens: leave out row_length"):
        dry_run(config, flops_per_second=1e9, row_length=64)
    follows = dry_run(config.replace(["masking.ratio.kind=responsive"]), flops_per_second=1e9)
    assert follows.predicted is None
    assert "known only once it has trained: its ratio responds to the loss" in as_text(follows)


RESPONSIVE = "masking.ratio={kind: responsive, patience: 2}"


@pytest.mark.parametrize(
    ("changes", "mended", "message"),
    [
        (["validation.every=0"], ["validation.every=3"], r"set validation\.every=3 or lower, or mask"),
        (["validation.every=0"], ["masking.ratio.watch=training", "masking.ratio.every=1"],
         r"or masking\.ratio\.watch=training$"),
    ],
)  # fmt: skip
def test_a_ratio_that_nothing_can_change_is_refused(
    config: RunConfig, tmp_path: Path, changes: list[str], mended: list[str], message: str
) -> None:
    config = config.replace([RESPONSIVE, *changes])
    with pytest.raises(UsageError, match=message):
        dry_run(config, flops_per_second=1e9)
    with pytest.raises(UsageError, match=message):
        pretrain(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert dry_run(config.replace(mended), flops_per_second=1e9).constant is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.model_type=albert", "activation_checkpointing=true"],
            "'albert' cannot compute activations again",
        ),
        (
            ["masking.ratio={kind: constant, base: 0}", "learning_rate.follow_labels=sqrt"],
            "no labels are asked for: set it to null",
        ),
    ],
)
def test_what_training_refuses_is_refused(
    config: RunConfig, tmp_path: Path, changes: list[str], message: str
) -> None:
    config = config.replace(changes)
    with pytest.raises(UsageError, match=message):
        dry_run(config, flops_per_second=1e9)
    with pytest.raises(UsageError, match=message):
        pretrain(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "mended", "message"),
    [
        (["validation.every=4"], ["validation.every=3"], r"after 3 validations .*, and 2 come .*: set val"),
        (["validation.every=4"], ["masking.ratio.patience=1"], r"or masking\.ratio\.patience=1$"),
        (["validation.every=4"], ["validation.at_start=true"], ""),
        (["masking.ratio.watch=training"], ["masking.ratio.every=3"],
         r"after 300 losses of steps .*, and 11 come .*: set masking\.ratio\.every=3$"),
        (["steps=3", "validation.every=1"], ["steps=4", "validation.every=1"],
         r"set validation\.every=1 and steps=4, or mask"),
        (["steps=2", "masking.ratio.watch=training"], ["steps=4", "masking.ratio.every=1"],
         r"set masking\.ratio\.every=1 and steps=4$"),
    ],
)  # fmt: skip
def test_a_ratio_that_has_no_time_to_respond_is_told(
    config: RunConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: list[str],
    mended: list[str],
    message: str,
) -> None:
    config = config.replace([RESPONSIVE, "learning_rate.warmup_steps=0", *changes])
    said = dry_run(config, flops_per_second=1e9)
    assert said.constant is not None
    assert re.search(message, said.constant)
    assert re.search(rf"^constant ratio  +{re.escape(said.constant)}$", as_text(said), re.MULTILINE)
    assert dry_run(config.replace(mended), flops_per_second=1e9).constant is None
    pretrain(config, tmp_path / "run", progress=False)
    assert said.constant in caplog.text


def test_a_ratio_that_responds_to_no_held_out_rows_is_refused(config: RunConfig) -> None:
    config = config.replace([RESPONSIVE])
    with pytest.raises(
        UsageError, match=r"no rows of the data are held out: prepare .* or set mask"
    ):
        expect_no_response(config, 0)
    assert expect_no_response(config.replace(["branch=RUN"]), 8) is None


@pytest.mark.parametrize(
    ("name", "length", "parameters", "tokens"),
    [
        ("bert-base", 512, 109.5e6, 26.2e9),
        ("bert-large", 512, 335.2e6, 26.2e9),
        ("modernbert-base", 1024, 149.7e6, 1.719e12),
    ],
)
def test_recipes_have_the_sizes_of_the_literature(
    name: str, length: int, parameters: float, tokens: float
) -> None:
    config = RunConfig.load(CONFIGS / f"{name}.yaml")
    said = dry_run(config, devices=8, flops_per_second=4e14, row_length=length)
    assert said.parameters == pytest.approx(parameters, rel=0.001)
    assert said.tokens == pytest.approx(tokens, rel=0.002)
    dense = 6 * (said.parameters - said.vocab_size * config_width(name))
    assert 0.8 * dense < said.flops_per_token < 1.6 * dense
    assert f"no data in {config.data}: length assumed" in as_text(said)


def config_width(name: str) -> int:
    return 1024 if name == "bert-large" else 768


RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != "adapt")
STUDIES = sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))


def noted_validations() -> dict[str, tuple[int, int, float]]:
    """Of every recipe and study: validations, rows and their share in percent, by docs/training.md."""
    page = (
        (ROOT / "docs" / "training.md").read_text("utf-8").partition("| share of all operations |")
    )
    found: dict[str, tuple[int, int, float]] = {}
    for line in page[2].partition("\n\n")[0].splitlines()[2:]:
        names, *cells = line.strip("|").split(" | ")
        times, rows = (int(cell.replace(",", "")) for cell in cells[:2])
        shares = [float(share) for share in re.findall(r"([\d.]+) %", cells[2])]
        for name, share in zip(re.findall("`([^`]+)`", names), shares, strict=False):
            found[name.removeprefix("study ")] = (times, rows, share)
    return found


NOTED = noted_validations()


@pytest.mark.parametrize("name", RECIPES)
def test_validations_are_a_small_share_of_a_recipe(name: str) -> None:
    config = RunConfig.load(CONFIGS / f"{name}.yaml")
    if config.hours is not None:
        config = config.replace(
            ["hours=null", f"steps={500_000_000 // (128 * config.rows_per_step)}"]
        )
    said = dry_run(config, flops_per_second=4e14, row_length=512)
    assert said.validations * config.validation.rows > 500
    assert 0 < said.validation_share < 0.03
    assert (said.validations, config.validation.rows) == NOTED[name][:2]
    assert 100 * said.validation_share == pytest.approx(NOTED[name][2], abs=0.051)


@pytest.mark.parametrize("name", STUDIES)
def test_validations_are_a_small_share_of_a_study(name: str) -> None:
    """Of the runs of its base."""
    study = load_study(CONFIGS / "study" / f"{name}.yaml")
    assert study.prepare is not None
    size = study.prepare.tokenizer.to_dict()["vocab_size"]
    config = RunConfig.parse({**study.base, "data": "not there"}).replace(
        [
            f"model.overrides.vocab_size={size}",
            "model.overrides.pad_token_id=0",
        ]
    )
    said = dry_run(config, flops_per_second=4e14, row_length=study.prepare.row_length)
    assert 0 < said.validation_share < 0.03
    assert (said.validations, config.validation.rows) == NOTED[name][:2]
    assert 100 * said.validation_share == pytest.approx(NOTED[name][2], abs=0.051)


def test_the_share_of_validations_by_hand(config: RunConfig) -> None:
    """Of the two-layer model of the fixture: twice the rows cost twice as much, a mean of weights too."""
    plain = config.replace(["validation.rows=1", "validation.every=0"])
    share = dry_run(plain, flops_per_second=1e9).validation_share

    def odds(*changes: str) -> float:
        other = dry_run(plain.replace(list(changes)), flops_per_second=1e9).validation_share
        return other / (1 - other) / (share / (1 - share))

    assert odds("validation.at_start=true") == pytest.approx(2)
    assert odds("averaging.kind=ema") == pytest.approx(2)
    assert odds(f"steps={2 * plain.steps}") == pytest.approx(0.5, rel=0.02)
    # Passes over all rows, all at 5 %, a third, a sixth and a tenth of them, all with a single mask. Those
    # with more predictions cost a little more.
    one, thirty = (6, 30 + 30 + 10 + 5 + 3 + 30)
    assert odds("validation.rows=30") == pytest.approx(thirty / one, rel=0.15)


def test_of_a_step_of_very_many_rows_some_are_looked_at(config: RunConfig) -> None:
    found = dry_run(config.replace(["rows_per_step=10000000"]), flops_per_second=1e12)
    assert found.first_masks is not None
    assert 8_000 < found.first_masks["rows"] <= 16_384
    assert f"maskable tokens in {found.first_masks['rows']:,} rows" in as_text(found)


def test_a_price_gives_the_cost(config: RunConfig) -> None:
    assert cost_in_words(7200, None) == "2 device-hours; --price-per-hour says what they cost"
    assert cost_in_words(4.32e6, 2.5) == "1,200 device-hours, 3,000.00 at 2.5 an hour"
    assert cost_in_words(36, 0.0) == "0.01 device-hours, 0.00 at 0 an hour"
    two = dry_run(config, flops_per_second=1e3, devices=2)
    assert cost_in_words(2 * two.seconds, 3.0) in as_text(two, 3.0)


@pytest.mark.parametrize(
    ("changes", "rate_is"),
    [
        ({"device": "auto", "precision": "bf16"}, "of an H200"),
        ({"device": "cuda", "precision": "auto"}, "of an H200"),
        ({"device": "cpu", "precision": "bf16"}, "measured"),
        ({"device": "auto", "precision": "auto"}, "measured"),
    ],
)
def test_the_rate_is_that_of_a_gpu_where_one_is_meant_and_none_is_here(
    config: RunConfig, changes: dict[str, str], rate_is: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = dry_run(config.replace([f"{key}={value}" for key, value in changes.items()]))
    assert said.rate_is == rate_is
    assert (said.flops_per_second == ON_AN_H200) == (rate_is == "of an H200")
    assert ("BERT-base on one H200" in as_text(said)) == (rate_is == "of an H200")
    assert dry_run(config, flops_per_second=1e9).rate_is == "given"


def test_memory_is_that_of_bfloat16_where_auto_means_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory = {}
    for faster in (False, True):
        monkeypatch.setattr(device_module, "_host_is_faster_in_bf16", lambda faster=faster: faster)
        for precision in ("fp32", "auto", "bf16"):
            changed = config.replace(["device=cpu", f"precision={precision}"])
            memory[faster, precision] = dry_run(changed, flops_per_second=1e9).memory
    assert memory[False, "auto"] == memory[False, "fp32"] != memory[False, "bf16"]
    assert memory[True, "auto"] == memory[True, "bf16"] != memory[True, "fp32"]


def test_memory_on_a_card_is_that_of_the_precision_it_computes(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A T4 has no units for bfloat16: a run there is in float32, and so is what it takes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {}
    for computes in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, computes=computes: computes
        )
        for key in ("auto", "fp32", "bf16"):
            changed = config.replace(["device=auto", f"precision={key}"])
            found[computes, key] = dry_run(changed, flops_per_second=1e9)
    memory = {key: run.memory for key, run in found.items()}
    assert memory[False, "auto"] == memory[False, "fp32"] != memory[False, "bf16"]
    assert memory[True, "auto"] == memory[True, "bf16"] != memory[True, "fp32"]
    assert "GB in fp32 (" in as_text(found[False, "auto"])
    assert "GB in bf16 (" in as_text(found[True, "auto"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere = dry_run(config.replace(["device=cuda", "precision=auto"]), flops_per_second=1e9)
    assert elsewhere.precision == "bf16"


@pytest.mark.parametrize("price", ["-1", "nan", "inf", "two"])
def test_a_price_that_is_none_is_refused(price: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=f"--price-per-hour .*{price}.*: give a number, such as"):
        app(
            ["pretrain", "bert-tiny", "--dry-run", f"--price-per-hour={price}"],
            standalone_mode=False,
        )
    with pytest.raises(UsageError, match=f"--price-per-hour .*{price}"):
        app(["study", "run", "tiny", "-o", "x", f"--price-per-hour={price}"], standalone_mode=False)


@pytest.mark.parametrize(
    "flag", ["--devices=2", "--flops=1e9", "--row-length=64", "--price-per-hour=2"]
)
def test_flags_of_a_dry_run_are_refused_without_it(flag: str, tmp_path: Path) -> None:
    given = ["pretrain", "bert-tiny", "-d", "data", "-o", str(tmp_path / "run"), flag]
    with pytest.raises(UsageError, match=f"{flag.split('=')[0]} belongs to --dry-run"):
        app(given, standalone_mode=False)


def test_a_warm_up_of_fifty_billion_tokens() -> None:
    sizes = RunConfig.load(CONFIGS / "modernbert-base.yaml").sizes
    assert sizes.rows_before(19000) * 1024 == pytest.approx(50e9, rel=0.01)
    assert sizes.rows_before(3000) * 1024 == pytest.approx(3e9, rel=0.05)


@pytest.mark.parametrize("arm", ARMS, ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["bert-base", "bert-large"])
def test_arms_differ_in_masking_or_in_what_they_are_named_for_alone(base: str, arm: Path) -> None:
    plain = RunConfig.load(CONFIGS / f"{base}.yaml")
    changed = RunConfig.parse(merge(read_yaml(CONFIGS / f"{base}.yaml"), read_yaml(arm)), arm.name)
    parts = BESIDE.get(arm.stem, ("masking",))
    assert all(p == "masking" or getattr(changed, p) != getattr(plain, p) for p in parts)
    assert changed.model_copy(update={part: getattr(plain, part) for part in parts}) == plain
    assert changed.masking.mask_replace_prob == (1.0 if arm.stem == "diffusion" else 0.8)
    mean = expect(changed, lambda step: 1.0).mean_ratio
    if MEAN_RATIO[arm.stem] is not None:
        assert mean == pytest.approx(MEAN_RATIO[arm.stem], abs=2e-4)


def test_every_arm_is_listed() -> None:
    assert {path.stem for path in ARMS} == set(MEAN_RATIO)


@pytest.mark.parametrize("base", ["bert-base", "bert-large", "bert-tiny"])
def test_arms_choose_words_as_the_page_of_recipes_says(base: str) -> None:
    """The recipes that an arm comes after have content of their own, which it must not keep."""
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = page.split("| `arms/` |")[1].split("\n\n")[0]
    said = {
        name: line.split("|")[4].strip()
        for line in table.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }
    assert said.keys() >= {arm.stem for arm in ARMS}
    for arm in ARMS:
        values = merge(read_yaml(CONFIGS / f"{base}.yaml"), read_yaml(arm))
        kind = RunConfig.parse(values, arm.name).masking.content.kind
        if arm.stem != "ema":
            assert (kind == "none") == said[arm.stem].startswith("none"), arm.stem


def test_later_files_change_earlier_ones() -> None:
    base = {"a": {"kind": "x", "one": 1}, "b": {"one": 1, "two": 2}, "c": 1}
    assert merge(base, {"a": {"kind": "y"}, "b": {"two": 3}, "c": {"d": 1}}) == {
        "a": {"kind": "y"},
        "b": {"one": 1, "two": 3},
        "c": {"d": 1},
    }
    assert merge(base, {"a": {"kind": "x", "two": 2}})["a"] == {"kind": "x", "one": 1, "two": 2}
    assert base["c"] == 1


def test_the_command_prints_and_writes_nothing(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    arm = str(CONFIGS / "arms" / "fixed-30.yaml")
    app(["pretrain", str(path), arm, "--dry-run", "--flops", "1e9"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "asked 0.3000" in printed
    assert "FLOP/s (as given)" in printed
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="give a folder for the run: --out RUN"):
        app(["pretrain", str(path)], standalone_mode=False)


@pytest.mark.parametrize(
    "recipes", [[], ["bert-tiny"], ["bert-base", "arms/fixed-15"], ["hour-en"]]
)
def test_data_that_nobody_named_are_not_looked_for(
    recipes: list[str],
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever lies in the folders that the recipes name: prepared data, or something else."""
    monkeypatch.chdir(tmp_path)

    def printed(*more: str) -> str:
        app(["pretrain", *recipes, *more, "--dry-run", "--flops=1e9"], standalone_mode=False)
        return capsys.readouterr().out

    nowhere = printed()
    assert " of 512 tokens (no data named: length assumed, vocabulary of" in nowhere
    (tmp_path / "data").symlink_to(tiny_data.path)
    (tmp_path / "data-en").mkdir()
    assert printed() == nowhere
    assert " of 64 tokens (no data named" in printed("--row-length", "64")
    # What somebody named is taken: with a flag, or in a file of their own.
    (tmp_path / "own.yaml").write_text("data: data\n")
    for named in (["--data", "data"], ["--set", "data=[data]"], ["own.yaml"]):
        assert re.search(r" of 32 tokens \(\S+ times the data\)", printed(*named))
    assert "no data in none:" in printed("--data", "none")


PEAKS = """
import json, sys
from pathlib import Path
import torch
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain
from chronomask.train.validation import expect_no_response
from chronomask.model import device as device_module
from chronomask.model.device import peak_memory

for number, values in enumerate(json.loads(sys.argv[1])):
    pretrain(RunConfig.parse(values), Path(sys.argv[2]) / str(number), progress=False)
    print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.slow
def test_memory_is_near_what_a_step_takes(config: RunConfig, tmp_path: Path) -> None:
    """Peak memory of a step of many rows less that of one row, against the same of the estimate.

    One process trains all, each more than the one before: a process knows only its highest peak.
    """
    config = config.replace(
        [
            "model.overrides.hidden_size=128",
            "model.overrides.num_hidden_layers=4",
            "model.overrides.intermediate_size=512",
            "masking.ratio.base=0.15",
            "steps=2",
            "micro_batches=1",
            "validation.rows=1",
            "validation.batch_rows=1",
            "loader_workers=0",
        ]
    )
    one, again, kept = (
        config.replace([f"rows_per_step={rows}", f"activation_checkpointing={checkpointing}"])
        for rows, checkpointing in ((1, "true"), (400, "true"), (400, "false"))
    )
    runs = json.dumps([each.to_dict() for each in (one, again, kept)])
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, runs, str(tmp_path)],
        capture_output=True, text=True, timeout=HANG,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is given back
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = list(map(int, done.stdout.split()))
    for peak, many, factor in ((measured[1], again, 2.0), (measured[2], kept, 1.5)):
        few = many.replace(["rows_per_step=1"])
        totals = [dry_run(each, flops_per_second=1e9).memory.total for each in (few, many)]
        ratio = (totals[1] - totals[0]) / (peak - measured[0])
        assert 1 / factor < ratio < factor


@pytest.mark.parametrize("recipe", ["bert-base", "bert-large", "modernbert-base"])
def test_the_table_of_recipes_says_what_is_counted(recipe: str) -> None:
    """Operations of a token in rows of one document, at the mean ratio, as docs/recipes.md has them."""
    config = RunConfig.of(recipe)
    row = next(
        line
        for line in (CONFIGS.parents[2] / "docs" / "recipes.md").read_text().splitlines()
        if line.startswith(f"| `{recipe}`")
    )
    cells = [cell.strip() for cell in row.split("|")]
    length = int(cells[2].split(" × ")[1])
    ratio = np.mean([config.masking.ratio.at((step + 0.5) / 1000) for step in range(1000)])
    assert isinstance(config.model, FromConfig)
    architecture = AutoConfig.for_model(config.model.model_type, **config.model.overrides)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(
            architecture, attn_implementation=DOCUMENTS_ATTENTION
        )
    per_token = count_flops(model).of(np.array([length]), ratio * length) / length
    assert f"{per_token:.2e}".replace("e+0", "e") == cells[4]
