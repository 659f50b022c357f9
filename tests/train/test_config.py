"""The shipped run configs are valid; mistakes are named before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from chronomask.config_layers import Layer
from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.model.build import _architecture
from chronomask.model.config import FromConfig
from chronomask.model.open import open_tokenizer
from chronomask.recipes import find_recipe
from chronomask.train.config import RunConfig
from chronomask.train.learning_rate import LearningRate

CONFIGS = sorted((Path(__file__).parents[2] / "src" / "chronomask" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path, tiny_data: PreparedData) -> None:
    config = RunConfig.load(path)
    assert RunConfig.parse(config.to_dict()) == config
    assert isinstance(config.model, FromConfig)
    architecture = _architecture(config.model, open_tokenizer(tiny_data.tokenizer_path))
    assert architecture.model_type == config.model.model_type


def test_there_are_configs() -> None:
    assert {"bert-tiny", "bert-small", "bert-base", "modernbert-tiny"} <= {p.stem for p in CONFIGS}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepps=5", r"unknown key 'stepps'; did you mean 'steps'"),
        ("learning_rate.kind=cosin", r"'cosin'; did you mean 'cosine'"),
        ("masking.ratio.kind=cosine_decai", r"did you mean 'cosine_decay'"),
        ("precision=fp8", r"precision is 'fp8'"),
        ("steps=0", r"steps is 0"),
        ("micro_batches=64", r"micro_batches \(64\) must not exceed rows_per_step \(32\)"),
        ("checkpoint.keep=0", r"checkpoint\.keep is 0"),
        (
            "batch_warmup={start_rows: 2, steps: 9, stages: 1000000000}",
            r"stages is 1000000000.* 10000",
        ),
    ],
)
def test_mistakes_are_refused_by_name(override: str, message: str) -> None:
    config = RunConfig(data="data", rows_per_step=32)
    with pytest.raises(UsageError, match=message):
        config.replace([override])


@pytest.mark.parametrize(
    ("ratio", "still"),
    [
        ("0:0.3", "'linear' is 0 at progress 0:"),
        ("{kind: ascending}", "'ascending' is 0 at progress 0:"),
        (
            "{kind: phases, phases: [{until: 0.3, ratio: 0.3}, {until: 1, ratio: 0}]}",
            "'phases' is 0 at progress 0.3:",
        ),
        ("{kind: uniform_rows, low: 0, high: 0:0.3}", "'uniform_rows' is 0 at progress 0:"),
    ],
)
def test_progress_in_masked_tokens_may_not_stand_still(ratio: str, still: str) -> None:
    counted = ["masking.progress=masked_tokens", "masked_token_budget=9"]
    config = RunConfig(data="data").replace([f"masking.ratio={ratio}"])
    with pytest.raises(UsageError, match=still):
        config.replace(counted)
    RunConfig(data="data").replace(["masking.ratio=0.3:0", *counted])  # 0 at its end alone
    values = config.to_dict() | {"masked_token_budget": 9}
    values["masking"] |= {"progress": "masked_tokens"}
    begun = RunConfig.parse_stored(values, "a run")  # one that was begun is read all the same
    assert begun.masking.ratio == config.masking.ratio
    with pytest.raises(UsageError, match=still):
        begun.replace(["steps=5"])


def test_the_default_model_suits_a_laptop() -> None:
    """That of the recipe for one; a model that is named without sizes has its architecture's own."""
    small = RunConfig.load(find_recipe("bert-small")).model.to_dict()["overrides"]
    default = RunConfig.of({"data": "data"}).model.to_dict()["overrides"]
    assert default.items() <= small.items()
    named = RunConfig.of({"data": "data", "model": {"kind": "config", "model_type": "bert"}})
    assert named.model.to_dict()["overrides"] == {}


def test_a_kind_given_alone_says_what_of_the_recipe_no_longer_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And following what it says keeps the values, and is silent."""
    layers = [Layer.of_file(find_recipe("bert-base")), Layer("--data", {"data": "data"})]

    def parse(*overrides: str) -> LearningRate:
        caplog.clear()
        return RunConfig.from_layers([*layers, *map(Layer.of_override, overrides)]).learning_rate

    kind = "learning_rate.kind=cosine"
    assert parse(kind).peak == 5e-4
    (said,) = caplog.messages
    assert "learning_rate.peak is 0.0005 instead of 0.0001" in said
    given = said.partition("adding")[2].replace("--set", "").split()
    kept = parse(kind, *given)
    assert (kept.peak, kept.warmup_steps) == (1e-4, 10_000)
    assert not caplog.messages
    for silent in ("learning_rate.kind=linear", "learning_rate={kind: cosine, peak: 1}", "steps=5"):
        parse(silent)
        assert not caplog.messages
