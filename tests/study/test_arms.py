"""Arms differ in what they declare and in nothing else; equal labels are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chronomask.config import diff
from chronomask.config_layers import Layer, parse_override
from chronomask.data.folder import PreparedData
from chronomask.errors import UsageError
from chronomask.recipes import find_recipe
from chronomask.runs.layout import RunFolder
from chronomask.runs.rules import expect, maskable_tokens
from chronomask.study.arms import check_declared, resolve_arms
from chronomask.study.config import StudyConfig, load_study
from chronomask.study.open import open_study
from chronomask.study.units import steps_of
from chronomask.train.config import RunConfig
from chronomask.train.loop import pretrain


def resolved(values: dict[str, Any]) -> dict[str, Any]:
    return resolve_arms(StudyConfig.parse(values), values["base"]["data"])


def test_nested_and_dotted_fields_say_the_same(values: dict[str, Any]) -> None:
    values["arms"] = {
        "fixed": {},
        "dotted": {"masking.ratio.kind": "linear_decay", "masking.ratio.base": 0.2},
        "nested": {"masking": {"ratio": {"kind": "linear_decay", "base": 0.2}}, "steps": 9},
    }
    arms = resolved(values)
    assert arms["dotted"].config.masking == arms["nested"].config.masking
    assert arms["dotted"].declared == ("masking.ratio",)
    assert arms["dotted"].differs == {
        "masking.ratio.kind": ("constant", "linear_decay"),
        "masking.ratio.base": (0.15, 0.2),
    }
    assert arms["nested"].run_config(3).seed == 3


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"maskin.ratio": 1}, "did you mean 'masking'"),
        ({"masking.ratoi": {"kind": "constant"}}, "did you mean 'ratio'"),
        ({"equal_label": "steps"}, "did you mean 'equal_labels'"),
        ({"equal_labels": "tokens"}, "valid: steps, ratio"),
        ({"seed": 3}, "share"),
        ({"masking.ratio.kind": "cosin_decay"}, "cosine_decay"),
        ({}, "are equal"),
        ({"masking.ratio.base": 0.15}, "are equal"),
    ],
)
def test_unfair_and_unknown_arms_are_refused(
    values: dict[str, Any], arm: dict[str, Any], message: str
) -> None:
    values["arms"]["other"] = arm
    with pytest.raises(UsageError, match=message):
        resolved(values)


def test_an_arm_from_its_own_file_must_declare_all_it_changes(
    values: dict[str, Any], tmp_path: Path
) -> None:
    own = {k: v for k, v in values["base"].items() if k != "data"} | {"rows_per_step": 2}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values["base"]), encoding="utf-8")
    path = tmp_path / "study.yaml"
    values["base"] = "base.yaml"
    values["arms"]["other"] = {"base": "own.yaml", "masking.ratio.base": 0.4}
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    study = load_study(path)
    with pytest.raises(UsageError, match="rows_per_step is 2, not 4"):
        resolve_arms(study, "data")
    study = load_study(path, [Layer.of_override("arms.other.rows_per_step=2")])
    assert resolve_arms(study, "data")["other"].config.rows_per_step == 2


def test_declared_fields_are_not_prefixes_of_names(values: dict[str, Any]) -> None:
    arms = resolved(values)
    base, arm = arms["fixed"].config, arms["decay"].config
    check_declared(base, arm, ("masking.ratio",))
    with pytest.raises(UsageError, match=r"masking\.ratio"):
        check_declared(base, arm, ("masking.rat",))


@pytest.mark.parametrize("dotted", [False, True])
def test_a_group_that_an_arm_switches_on_is_declared_whole(
    values: dict[str, Any], dotted: bool
) -> None:
    """Its defaults too; of one that the base has, what the arm names alone."""
    group = {"start_rows": 2, "steps": 4}
    arm = {f"batch_warmup.{k}": v for k, v in group.items()} if dotted else {"batch_warmup": group}
    values["arms"]["grows"] = arm
    grows = resolved(values)["grows"]
    assert grows.declared == ("batch_warmup",)
    assert "batch_warmup.stages" in grows.differs
    values["base"]["batch_warmup"] = {"start_rows": 1, "steps": 4}
    assert resolved(values)["grows"].declared == ("batch_warmup.start_rows", "batch_warmup.steps")


def weights_of(arm: str) -> dict[str, Any]:
    return {"masking.content": {"kind": "fixed", "weights": {"arm": arm}}}


def test_an_arm_takes_the_weights_of_another(values: dict[str, Any], tmp_path: Path) -> None:
    values["arms"] = {
        "fixed": {},
        "frozen": weights_of("ptw"),
        "frozen twice": weights_of("frozen"),
        "dotted": {"masking.content.kind": "fixed", "masking.content.weights.arm": "other"},
        "ptw": {"masking.content": "ptw"},
        "other": {"masking.content": {"kind": "ptw", "strength": 0.5}},
    }
    arms = resolved(values)
    assert [arm.weights_of for arm in arms.values()] == [None, "ptw", "frozen", "other", None, None]
    assert arms["frozen"].declared == ("masking.content",)
    assert arms["frozen"].differs["masking.content.weights"][1] == (
        "those that “ptw” ended with, seed by seed"
    )
    with pytest.raises(UsageError, match=r"arm 'frozen'.*is not the folder of a finished run"):
        arms["frozen"].run_config(0, RunFolder(tmp_path))


PTW = {"ptw": {"masking.content": "ptw"}}
MIXED = {"masking.content": {"kind": "fixed", "weights": {"arm": "ptw", "X": 1}}}


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({"x": weights_of("pwt"), **PTW}, "'pwt', which is no arm; did .* 'ptw'"),
        ({"x": weights_of("fixed")}, "'none' ends with no weights .*: add an arm with content ptw"),
        (
            {"x": weights_of("tokens"), "tokens": {"masking.content": "token_accuracy"}, **PTW},
            "'token_accuracy' ends with no weights of classes: name one of ptw",
        ),
        ({"x": weights_of("x")}, "leads back to the arm itself: x → x"),
        ({"x": weights_of("y"), "y": weights_of("x")}, "leads back to the arm itself: x → y → x"),
        (
            {"a": weights_of("x") | {"steps": 9}, "x": weights_of("z"), "z": weights_of("x")},
            "x → z → x",
        ),
        ({"x": weights_of("ptw"), "y": weights_of("ptw"), **PTW}, "are equal"),
        ({"x": MIXED, **PTW}, r"weights\.arm"),
        ({"x": {"masking.content": {"kind": "ptw", "weights": {"arm": "fixed"}}}}, "weights"),
    ],
)
def test_weights_that_no_arm_can_give_are_refused(
    values: dict[str, Any], arms: dict[str, Any], message: str
) -> None:
    values["arms"] = {"fixed": {}, **arms}
    with pytest.raises(UsageError, match=message):
        resolved(values)


SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"kind": "constant", "base": 0.3},
    "linear_decay": {"kind": "linear_decay", "base": 0.3},
    "cosine_decay": {"kind": "cosine_decay"},
    "linear": {"kind": "linear"},
    "phases": {
        "kind": "phases",
        "phases": [{"until": 0.25, "ratio": 0.4}, {"until": 1, "ratio": 0.2}],
    },
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("mode", ["steps", "ratio"])
def test_equal_labels_changes_what_its_mode_says(
    values: dict[str, Any], kind: str, mode: str
) -> None:
    values["base"]["steps"] = 1000
    other = {"masking.ratio": SCHEDULES[kind], "equal_labels": mode}
    values["arms"] = {"fixed": {}, "other": other}
    if (kind, mode) == ("constant", "ratio"):  # scaled to the baseline itself
        with pytest.raises(UsageError, match="are equal"):
            resolved(values)
        return
    arms = resolved(values)
    asked = {
        name: sum(arm.config.masking.ratio.at(step / steps) for step in range(steps))
        for name, arm in arms.items()
        for steps in [arm.config.steps]
    }
    assert asked["fixed"] == pytest.approx(150)
    assert asked["other"] == pytest.approx(asked["fixed"], rel=0.002 if mode == "steps" else 1e-6)
    assert ("steps" if mode == "steps" else "masking.ratio") in arms["other"].declared
    assert (arms["other"].config.steps == 1000) == (mode == "ratio")


GROWING = {"batch_warmup": {"start_rows": 1, "steps": 60, "stages": 3}}
TRAINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rows grow": (GROWING, {"masking.ratio": SCHEDULES["linear_decay"]}),
    "rows grow, progress in tokens": (
        GROWING,
        {"masking": {"ratio": SCHEDULES["linear_decay"], "progress": "tokens"}},
    ),
    "rows grow in the arm alone": ({}, GROWING | {"masking.ratio": SCHEDULES["linear"]}),
    "rows begin short": (
        {"length_warmup": {"start_length": 4, "steps": 80}},
        {"masking.ratio": SCHEDULES["linear_decay"]},
    ),
    "a budget of the whole batch": (
        {},
        {"masking": {"ratio": SCHEDULES["constant"], "budget": "batch"}},
    ),
    "rows follow the ratio": (
        {},
        {"masking.ratio": SCHEDULES["linear"], "rows_follow_ratio": True},
    ),
    "progress in labels": (
        {},
        {
            "masking": {"ratio": SCHEDULES["linear"], "progress": "masked_tokens"},
            "masked_token_budget": 2000,
        },
    ),
}
"""Fields of the base, fields of the arm."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "case"),
    [
        *(("steps", case) for case in TRAINED),
        *(("ratio", case) for case in ("rows grow", "rows begin short", "progress in labels")),
    ],
)
def test_equal_labels_are_equal_once_trained(
    values: dict[str, Any], tmp_path: Path, mode: str, case: str
) -> None:
    base, arm = TRAINED[case]
    values["base"] |= {"steps": 90, "validation": {"every": 0, "rows": 8}} | base
    values["base"]["checkpoint"] = {"every": 0}
    values["arms"] = {"fixed": {}, "other": {**arm, "equal_labels": mode}}
    counted = {
        name: pretrain(arm.run_config(0), tmp_path / name, progress=False)["masked_tokens"]
        for name, arm in resolved(values).items()
    }
    assert counted["other"] == pytest.approx(counted["fixed"], rel=0.01)


def test_steps_of_equal_labels_are_those_that_the_written_config_trains(
    values: dict[str, Any],
) -> None:
    values["base"] |= {"steps": 90, "rows_per_step": 32}
    following = {"masking.ratio": {"kind": "linear", "start": 0.1, "end": 0.05}}
    values["arms"]["other"] = following | {"rows_follow_ratio": True, "equal_labels": "steps"}
    arms = resolved(values)
    own = arms["other"].run_config(0)
    assert own.steps > 90
    read = RunConfig.parse(own.to_dict())
    assert own.sizes == read.sizes
    base, other = (expect(run, lambda step: 1.0).labels for run in (arms["fixed"].config, read))
    assert other == pytest.approx(base, rel=0.01)


def test_a_budget_of_the_whole_batch_counts_what_cannot_be_masked(
    values: dict[str, Any], tiny_data: PreparedData
) -> None:
    values["base"]["steps"] = 1000
    values["arms"]["other"] = {"masking.budget": "batch", "equal_labels": "ratio"}
    config = resolved(values)["other"].config
    share = maskable_tokens(config, tiny_data)(0) / tiny_data.row_length
    assert config.masking.ratio.at(0) == pytest.approx(0.15 * share)
    assert share < 1
    values["base"]["masking"]["budget"] = "batch"
    values["arms"]["other"] = {"masking.ratio": SCHEDULES["linear"], "equal_labels": "ratio"}
    config = resolved(values)["other"].config
    asked = [config.masking.ratio.at(step / 1000) for step in range(1000)]
    assert sum(asked) == pytest.approx(150)


def test_steps_of_equal_labels_that_a_run_cannot_have_are_refused(values: dict[str, Any]) -> None:
    values["base"]["averaging"] = {"kind": "ema", "every": 6}
    values["arms"]["other"] = {"masking.ratio.base": 0.6, "equal_labels": "steps"}
    message = r"arm 'other' as equal_labels: steps makes it: averaging\.every \(6\) leaves no step of the 2"
    with pytest.raises(UsageError, match=message):
        resolved(values)


def test_equal_labels_refuses_what_cannot_be_known_or_scaled(values: dict[str, Any]) -> None:
    values["arms"]["other"] = {"masking.ratio": {"kind": "responsive"}, "equal_labels": "steps"}
    with pytest.raises(UsageError, match="only once it has trained"):
        resolved(values)
    values["arms"]["other"] = {
        "masking.ratio": {"kind": "cosine_then_quadratic"},
        "equal_labels": "ratio",
    }
    with pytest.raises(UsageError, match="use equal_labels: steps"):
        resolved(values)
    values["arms"]["other"] = {"masking.content.kind": "ptw_faithful", "equal_labels": "steps"}
    with pytest.raises(UsageError, match="does not meet the ratio that is asked"):
        resolved(values)
    values["arms"]["other"] = {"objective": {"kind": "hybrid"}, "equal_labels": "steps"}
    with pytest.raises(UsageError, match="objective 'hybrid' predicts next tokens beside them"):
        resolved(values)
    values["arms"]["other"] = {
        "masking": {"ratio": {"kind": "linear_decay"}, "progress": "masked_tokens"},
        "masked_token_budget": 20,
        "equal_labels": "steps",
    }
    with pytest.raises(UsageError, match="fewer tokens than the baseline in any number of steps"):
        resolved(values)
    values["base"] |= {"data": "nowhere", "length_warmup": {"start_length": 4, "steps": 8}}
    values["arms"]["other"] = {"masking.ratio.base": 0.3, "equal_labels": "steps"}
    with pytest.raises(UsageError, match=r"with length_warmup.*name its folder as base\.data"):
        resolved(values)
    values["base"] |= {"length_warmup": None}
    values["arms"]["other"] |= {"masking.budget": "batch"}
    with pytest.raises(UsageError, match=r"with masking\.budget 'batch'.*name its folder"):
        resolved(values)
    values["arms"] = {"fixed": {"equal_labels": "steps"}}
    with pytest.raises(UsageError, match="is the baseline"):
        resolved(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "fixd"}, "did you mean 'fixed'"),
        ({"seeds": [1, 1]}, "twice"),
        ({"prepare": {"sources": ["x"]}}, "not both"),
        ({"arm": {}}, "did you mean 'arms'"),
        ({"arms": {"a/b": {}}}, "names a folder"),
        ({"arms": {"": {}}}, "names a folder"),
        ({"arms": {"_a": {}}}, "names a folder"),
        ({"arms": {"a\u200bb": {}}}, "names a folder"),  # of no width
        ({"arms": {"É": {}, "é": {}}}, "differ in capitals or blanks alone"),
        ({"arms": {"e\u0301": {}, "\u00e9": {}}}, "differ in capitals or blanks alone"),
        (
            {"arms": {"K": {}, "\u212a": {}}},
            "differ in capitals or blanks alone",
        ),  # the sign for kelvin
        ({"arms": {"MRD": {}, "mrd": {}}}, "'MRD' and 'mrd' differ in capitals or blanks alone"),
        ({"arms": {"MRD + PTW": {}, "MRD+PTW": {}}}, "differ in capitals or blanks alone"),
        ({"arms": {"MRD": {}, "MRD ": {}}}, "end with neither a blank nor a stop"),
        ({"arms": {"MRD.": {}}}, "end with neither a blank nor a stop"),
        (
            {"base": {"data": [{"path": "a"}, {"path": "b"}]}},
            "base.data is a mixture, and a study trains on one folder: prepare the texts together",
        ),
        ({"slurm": {}}, "has no 'slurm' section: remove it.*--only 1/8"),
    ],
)
def test_mistakes_in_a_study(values: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StudyConfig.parse({**values, **changes})


def test_names_of_arms_may_be_of_any_script(values: dict[str, Any]) -> None:
    names = ["falling e\u0301", "마스크 15%", "हिन्दी", "３割"]
    found = StudyConfig.parse(
        {
            **values,
            "arms": {name: {} for name in names},
            "baseline": names[0],
            "contrasts": [names[:2]],
        }
    )
    assert list(found.arms) == names


def test_an_arm_that_is_given_twice_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    text = yaml.safe_dump(values, sort_keys=False).replace("  decay:", "  fixed:")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match="'fixed' is given twice"):
        load_study(path)


@pytest.mark.parametrize(
    "change", ["steps=9", "masking.ratio.base=0.2", "masking.ratio={kind: linear_decay, base: 0.2}"]
)
def test_fields_of_an_arm_mean_what_set_means(values: dict[str, Any], change: str) -> None:
    key, value = parse_override(change)
    values["arms"] = {"fixed": {}, "changed": {key: value}}
    changed = resolved(values)["changed"].config
    expected = RunConfig.parse_with(values["base"], [change])
    assert changed.model_copy(update={"name": None}) == expected


def test_a_part_of_a_study_is_asked_for_by_emptying_its_groups() -> None:
    """Two arms of a shipped study and one of its tasks, with the settings they have there or others."""
    names = [
        "tasks={}", "tasks.blimp.settings.limit=5", "arms={}", "arms={a: {}, b: {masking.ratio.base: 0.3}}",
        "baseline=a", "contrasts=[[b, a]]",
    ]  # fmt: skip
    study = load_study(find_recipe("small", "study"), [Layer.of_override(text) for text in names])
    assert {name: plan.settings for name, plan in study.tasks.items()} == {"blimp": {"limit": 5}}
    assert list(study.arms) == ["a", "b"]


SHIPPED = sorted(
    path
    for path in (Path(__file__).parents[2] / "src" / "chronomask" / "configs" / "study").glob(
        "*.yaml"
    )
    if path.stem != "quickstart"
)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_studies_are_valid(path: Path, tmp_path: Path) -> None:
    study = load_study(path)
    arms = resolve_arms(study, "data")
    assert len(study.seeds) >= 3
    if path.stem == "late-masks":  # of one ratio, and of losses alone
        assert study.contrasts == (("late, equal time", "at once"),)
    elif path.stem == "published":
        assert set(study.tasks) >= {"squad", "cola", "mnli"}
    else:
        assert {"fixed 0.15", "fixed 0.30", "PTW"} <= set(arms)
        assert "upos_probe" in study.tasks
    if path.stem in ("tiny", "small"):
        assert "MRD + PTW" in arms
        assert set(study.tasks) >= {"sst2", "blimp"}
    # Beside tasks and the data, which are made elsewhere, a study of this file opens.
    assert len(open_study(study, tmp_path / "out").units) > len(arms) * len(study.seeds)


def test_the_published_comparisons_are_those_of_the_recipe_at_the_published_points() -> None:
    """BERT-base in all but masking and checkpoints; SQuAD after 5.7 B tokens, and at the end."""
    study = load_study(find_recipe("published", "study"))
    arms = resolve_arms(study, "data")
    recipe = RunConfig.load(find_recipe("bert-base"))
    free = ("masking.ratio.", "masking.content.", "checkpoint.", "name")
    for arm in arms.values():
        assert all(key.startswith(free) for key in diff(recipe, arm.config)), arm.name
    assert {arm.config.masking.ratio.at(0.0) for arm in arms.values()} >= {0.15, 0.25, 0.35}
    assert study.prepare is not None
    tokens = arms["fixed 0.15"].config.rows_per_step * study.prepare.row_length
    steps = steps_of(study, arms["fixed 0.15"], "squad")
    assert [round(step * tokens / 1e9, 1) for step in (steps[0], steps[-1])] == [5.7, 26.2]
    assert round(862_000 * tokens / 1e9) == 113


def test_there_are_shipped_studies() -> None:
    assert {path.stem for path in SHIPPED} >= {"tiny", "small", "over-time"}


def test_a_name_in_a_message_cannot_turn_its_direction() -> None:
    values = {"base": {"data": "d"}, "arms": {"a": {}, "b": {"steps": 3}}, "baseline": "\u202e"}
    with pytest.raises(UsageError, match=r"baseline '\\u202e' is not an arm"):
        StudyConfig.parse(values)
