"""A comparison: its numbers are those of the runs and results, and unlike things are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from chronomask.config_layers import _values_of  # pyright: ignore[reportPrivateUsage]
from chronomask.errors import ChronomaskError, DataError, RunError, UsageError
from chronomask.runs.read import read_log
from chronomask.runs.result import TaskResult
from chronomask.study.command import report, report_of_study
from chronomask.study.contrasts import (
    _correct,  # pyright: ignore[reportPrivateUsage]
    _numbers_of_arms,  # pyright: ignore[reportPrivateUsage]
    _other_metrics,  # pyright: ignore[reportPrivateUsage]
    _plain,  # pyright: ignore[reportPrivateUsage]
    compare_study,
)
from chronomask.study.execute import run_study
from chronomask.study.gather import (  # pyright: ignore[reportPrivateUsage]
    _common,
    _common_at_steps,
)
from chronomask.study.statistics import smallest_difference
from chronomask.study.units import Study
from chronomask.yaml_text import from_yaml
from tests.support.opened_study import opened


def test_a_comparison_is_of_the_values_that_json_has() -> None:
    numbers = (math.nan, -math.inf, np.float64("nan"), np.float32(0.5), np.int64(3), 4, True, None)
    plain = _plain({"a": np.array([1.5, math.inf]), 7: [{"b": numbers}]})
    assert plain == {"a": [1.5, None], "7": [{"b": [None, None, None, 0.5, 3, 4, True, None]}]}
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_the_report_of_a_study_reads_every_run_once(
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = opened(values, tmp_path)
    run_study(study, [unit for unit in study.in_order() if unit.kind == "pretrain"])
    read, parsed = [], []

    def from_yaml_counted(text: str, where: str) -> Any:
        parsed.append(where)
        return from_yaml(text, where)

    def read_log_counted(path: Path) -> Iterator[tuple[str, bool]]:
        read.append(path)
        return read_log(path)

    monkeypatch.setattr("chronomask.config_layers.from_yaml", from_yaml_counted)
    monkeypatch.setattr("chronomask.runs.read.read_log", read_log_counted)
    monkeypatch.setattr("chronomask.progress._SECONDS_BETWEEN_LINES", -1.0)
    _values_of.cache_clear()
    page = report_of_study(study.folder).read_bytes()
    logs = sorted(study.folder.glob("runs/*/*/[mv]*.jsonl"))
    assert len(logs) == 8
    assert sorted(read) == logs
    assert len(parsed) == len({*parsed}) == 5  # the study's own file, and each run's
    assert "reading runs: 100%, " in capsys.readouterr().err
    assert (
        report(study.folder, tmp_path / "again").read_bytes() == page
    )  # which reads the runs itself


def test_a_study_from_end_to_end(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened(values, tmp_path)
    with pytest.raises(RunError, match="nothing to compare"):
        compare_study(study)
    run_study(study, [unit for unit in study.in_order() if (unit.arm, unit.seed) != ("decay", 1)])
    found = json.loads(compare_study(study).read_text())
    assert (
        len(found["notices"]) == 4
    )  # a run, its results and rows to validate on are missing, and a seed
    assert [task["seeds"] for task in found["tasks"]] == [[0]] * 4
    assert found["tasks"][0]["arms"]["decay"]["difference_low"] is None

    run_study(study, study.in_order())
    found = json.loads(compare_study(study).read_text())
    (few,) = found["notices"]
    at_ratio, single = _summary(study, "fixed", 0)["validation_num_predicted"], 10
    assert few.startswith("The losses of a validation are largely chance")
    assert (
        f"{at_ratio} predictions at a fixed 15 %, and on {single} where they are fewest (single"
        in few
    )
    loss, mean, single, cola = found["tasks"]
    assert [task["unit"] for task in found["tasks"]] == ["nats", "nats", "nats", "fraction"]
    last = study.run_of("decay", 1).validation.read_text().splitlines()[-1]
    assert mean["arms"]["decay"]["by_seed"]["1"] == [
        pytest.approx(json.loads(last)["mean_loss"], abs=1e-12)
    ]
    _yardsticks_are_those_of_the_runs(found, json.loads(last), single)
    own = {a: [_summary(study, a, s)["validation_loss"] for s in (0, 1)] for a in study.arms}
    assert loss["arms"]["decay"]["mean"] == pytest.approx(np.mean(own["decay"]))
    assert loss["arms"]["decay"]["difference"] == pytest.approx(
        np.mean(own["decay"]) - np.mean(own["fixed"])
    )
    assert loss["arms"]["decay"]["covers"] == ["pre-training seeds", "held-out rows"]
    _intervals_of_losses_allow_for_other_rows(study, own, loss)
    assert (cola["seeds"], cola["task_seeds"]) == ([0, 1], [0, 1])
    results = [result for unit in _results(study) for result in [TaskResult.load(unit)]]
    decay = [r.metrics["mcc"] for r in results if "decay" in r.model and r.step == 8]
    assert cola["arms"]["decay"]["mean"] == pytest.approx(np.mean(decay))
    assert [curve["quantity"] for curve in found["curves"]] == [
        "validation_loss",
        "mean_loss",
        "cola",
    ]
    assert found["curves"][2]["arms"]["fixed"]["step"] == [4, 8]
    yardsticks = found["curves"][1]["arms"]["decay"]["by_seed"]["1"]
    assert yardsticks["value"][-1] == json.loads(last)["mean_loss"]
    assert "accuracy" not in yardsticks
    summary = _summary(study, "fixed", 0)
    line = found["curves"][0]["arms"]["fixed"]["by_seed"]["0"]
    assert line["masked_tokens"][-1] == summary["masked_tokens"]
    assert line["value"][-1] == summary["validation_loss"]
    steps = found["reach"][0]["arms"]["fixed"]["step"]
    assert 0 < steps["share"] <= 1
    noted = json.loads(study.run_of("fixed", 0).environment.read_text())
    assert found["versions"]["torch"] == noted["versions"]["torch"]
    assert (found["versions"]["device"], found["versions"]["threads"]) == (
        "cpu",
        noted["threads"],
    )
    assert report_of_study(study.folder).is_file()
    _runs_alone_say_the_same(study, found, tmp_path)

    for damage, message in (
        ('"epochs": 1', "recipe"),
        ('"torch": "', "versions"),
        ('"data_sha256": "', "data_sha256"),
    ):
        path = _results(study)[-1]
        before = path.read_text()
        path.write_text(
            before.replace(damage, damage.replace("1", "3") + ("9" if damage[-1] == '"' else ""))
        )
        with pytest.raises(ChronomaskError, match=message):
            compare_study(study)
        path.write_text(before)
    path = study.run_of("decay", 0).environment
    path.write_text(path.read_text().replace('"torch": "', '"torch": "9'))
    with pytest.raises(DataError, match=r"runs of different versions.*torch is"):
        compare_study(study)
    for arm, seed in (("decay", 1), ("fixed", 0), ("fixed", 1)):
        path = study.run_of(arm, seed).environment
        path.write_text(path.read_text().replace('"torch": "', '"torch": "9'))
    # Results name the version of torch and runs its build, such as +cu130, which the page shows.
    found = json.loads(compare_study(study).read_text())
    assert found["versions"]["torch"] == f"9{noted['versions']['torch']}"


def _intervals_of_losses_allow_for_other_rows(
    study: Study, own: dict[str, list[float]], loss: dict[str, Any]
) -> None:
    """Without the rows of one run they allow for other seeds alone: the paired t test."""
    assert loss["arms"]["decay"]["examples_spread"] > 0
    rows = study.run_of("decay", 1).validation_rows
    kept = rows.read_bytes()
    rows.unlink()
    alone = json.loads(compare_study(study).read_text())["tasks"][0]["arms"]["decay"]
    rows.write_bytes(kept)
    paired = stats.ttest_rel(own["decay"], own["fixed"])
    assert alone["p"] == pytest.approx(paired.pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    assert alone["covers"] == ["pre-training seeds"]
    assert alone["examples_spread"] == 0
    for key in ("mean", "difference"):
        assert alone[key] == pytest.approx(loss["arms"]["decay"][key], abs=1e-12)


def _runs_alone_say_the_same(study: Study, found: dict[str, Any], tmp_path: Path) -> None:
    """A report of the study's runs finds its arms, seeds, results and numbers again."""
    folders = [study.run_of(arm, seed).path for arm in study.arms for seed in (0, 1)]
    report(folders, tmp_path / "runs-alone")
    study_csv, runs_csv = (
        {path.name: path.read_text() for path in (folder / "csv").iterdir()}
        for folder in (study.folder, tmp_path / "runs-alone")
    )
    assert study_csv.keys() == runs_csv.keys()
    for name in (
        "tasks.csv",
        "yardsticks.csv",
        "differences.csv",
        "runs.csv",
        "difference.csv",
        "class-loss.csv",
    ):
        assert runs_csv[name] == study_csv[name]
    report([study.folder], tmp_path / "drawn-again")
    drawn_again = (tmp_path / "drawn-again" / "report.html").read_bytes()
    assert drawn_again == (study.folder / "report.html").read_bytes()
    assert [arm["name"] for arm in found["arms"]] == ["fixed", "decay"]
    with pytest.raises(UsageError, match="its page stands alone"):
        report([study.folder, folders[0]], tmp_path / "never")


def _yardsticks_are_those_of_the_runs(
    found: dict[str, Any], last: dict[str, Any], single: dict[str, Any]
) -> None:
    """``last``: the last validation of the second seed of the arm "decay"."""
    kept = {(one["yardstick"], one["part"]): one for one in found["yardsticks"]}
    for name, loss in last["yardstick_loss"].items():
        yardstick, _, part = name.partition("/")
        one = kept[yardstick, part]
        assert loss in _both_seeds(one["arms"]["decay"])
        assert one["num_predictions"] == last["yardstick_count"][name]
    everything = kept["mean", ""]
    assert last["mean_loss"] in _both_seeds(everything["arms"]["decay"])
    assert single["task"] == "single_mask_loss"
    assert single["arms"]["decay"]["by_seed"]["1"] == [
        pytest.approx(last["yardstick_loss"]["single"], abs=1e-12)
    ]
    assert single["num_examples"] == {"held-out predictions": last["yardstick_count"]["single"]}


def _both_seeds(numbers: dict[str, Any]) -> list[Any]:
    """The values of two seeds, from their mean and standard deviation."""
    assert numbers["seeds"] == 2
    half = numbers["spread"] / math.sqrt(2)
    return [pytest.approx(numbers["mean"] + sign * half) for sign in (-1, 1)]


def _summary(study: Study, arm: str, seed: int) -> dict[str, Any]:
    return json.loads(study.run_of(arm, seed).summary.read_text())


def _results(study: Study) -> list[Path]:
    return sorted(study.folder.glob("runs/*/*/results/*/*.json"))


def test_declared_contrasts_alone_are_tested(values: dict[str, Any], tmp_path: Path) -> None:
    values = {**values, "contrasts": [["decay", "fixed"]], "tasks": {}, "curve_steps": []}
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    found = json.loads(compare_study(study).read_text())
    assert found["contrasts"] == [["decay", "fixed"]]
    for task in found["tasks"]:
        (contrast,) = task["contrasts"]
        assert contrast["difference"] == pytest.approx(task["arms"]["decay"]["difference"])
        assert contrast["p_holm"] >= contrast["p"]
        assert 0 < contrast["detectable"] <= contrast["detectable_holm"]
        assert task["arms"]["decay"].get("p_holm") is None
    # The headline is corrected by itself, the two other losses together.
    loss, mean, single = (task["contrasts"][0] for task in found["tasks"])
    assert mean["p_holm"] == mean["p"]
    assert min(loss["p_holm"], single["p_holm"]) == 2 * min(loss["p"], single["p"])
    assert report_of_study(study.folder).is_file()
    _contrasts_that_cannot_be_tested_are_named(study)


def test_losses_that_do_not_compare_are_not_tested(values: dict[str, Any], tmp_path: Path) -> None:
    """Neither in a declared contrast, nor along a curve, nor in what reaching the baseline's took."""
    values["arms"] = {"fixed": {}, "rows": {"validation.rows": 4, "masking.ratio.base": 0.3}}
    values |= {"tasks": {}, "curve_steps": [], "contrasts": [["rows", "fixed"]]}
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    found = json.loads(compare_study(study).read_text())
    assert not found["losses_compare"]
    assert all(not task["contrasts"] for task in found["tasks"])
    assert found["reach"] == []
    assert all("difference" not in arm for own in found["curves"] for arm in own["arms"].values())
    assert found["notices"][-1] == (
        "The declared contrast of “rows” and “fixed” is not tested: validation did not ask all runs the same."
    )
    page = report_of_study(study.folder).read_text()
    assert "No loss says here which arm is better" in page


def test_an_arm_with_a_model_of_its_own_is_not_said_to_share_its_start(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["arms"] = {
        "fixed": {},
        "wide": {"model.overrides.hidden_size": 48},
        "decay": values["arms"]["decay"],
    }
    values |= {"seeds": [0], "tasks": {}, "curve_steps": []}
    study = opened(values, tmp_path)
    run_study(study, [unit for unit in study.in_order() if unit.arm != "wide"])
    found = json.loads(compare_study(study).read_text())
    assert (found["shared_start"], found["other_weights"]) == (True, [])
    run_study(study, study.in_order())
    found = json.loads(compare_study(study).read_text())
    assert (found["shared_start"], found["other_weights"]) == (False, ["wide"])


def test_a_study_of_runs_that_skip_outliers_has_a_page(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["base"]["outliers"] = {"kind": "skip", "after": 2, "window": 4}
    values |= {"seeds": [0], "tasks": {}, "curve_steps": []}
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    assert "skipped_steps" in study.run_of("fixed", 0).metrics.read_text()
    assert report_of_study(study.folder).is_file()


def test_where_nothing_scatters_it_is_not_known_what_could_be_seen() -> None:
    """Models that give the majority class to every sentence all have an MCC of 0."""
    majority = {"prediction": np.ones(40), "label": np.arange(40) % 2}
    sets: dict[str, Any] = {
        arm: {(seed, 0): majority for seed in (0, 1, 2)} for arm in ("fixed", "decay")
    }
    _, (contrast,) = _numbers_of_arms(sets, "fixed", [("decay", "fixed")], "mcc", "cola")
    assert (contrast["difference"], contrast["detectable"]) == (0.0, None)
    cola = {"task": "cola", "arms": {}, "contrasts": [contrast]}
    _correct([cola], declared=1)
    assert contrast["detectable_holm"] is None


def test_arms_of_other_seeds_differ_by_their_means_and_nothing_is_tested() -> None:
    def scores(*values: float) -> dict[tuple[int, int], Any]:
        return {(seed, 0): {"score": np.array([own])} for seed, own in enumerate(values)}

    sets = {"fixed": scores(4.0, 6.0, 8.0), "decay": scores(5.0, 6.0)}
    arms, tested = _numbers_of_arms(sets, "fixed", [("decay", "fixed")], "score", "rte")
    names = ("difference", "difference_low", "difference_high", "p")
    assert [arms["decay"][name] for name in names] == [-0.5, None, None, None]
    assert "difference" not in arms["fixed"]
    assert tested == []


def test_what_a_contrast_could_have_shown_is_of_its_own_scatter_and_tests() -> None:
    """The headline is one test of its own, the two other measures are two."""
    random = np.random.default_rng(3)
    pair = ("decay", "fixed")
    base = random.normal(0, 1, 20)
    scores: dict[str, list[np.ndarray]] = {
        "mean_loss": [np.array([gap]) for gap in (0.1, 0.3, 0.2)],  # seeds scatter alone
        "cola": [random.normal(0, 1, 20) for _ in range(3)],
        "rte": [base] * 3,  # examples alone
    }
    tasks = []
    for name, own in scores.items():
        sets: dict[str, Any] = {
            "fixed": {(seed, 0): {"score": np.zeros(one.size)} for seed, one in enumerate(own)},
            "decay": {(seed, 0): {"score": one} for seed, one in enumerate(own)},
        }
        arms, contrasts = _numbers_of_arms(sets, "fixed", [pair], "score", name)
        tasks.append({"task": name, "arms": arms, "contrasts": contrasts})
    _correct(tasks, declared=1)
    for task, tests in zip(tasks, (1, 2, 2), strict=True):
        (contrast,) = task["contrasts"]
        spread = np.std([one.mean() for one in scores[task["task"]]], ddof=1)
        of_examples = contrast["examples_spread"]
        assert contrast["spread"] == pytest.approx(spread, abs=1e-12)
        assert (of_examples > 0) == (task["task"] != "mean_loss")
        alone, first = (
            smallest_difference(contrast["spread"], 3, examples_spread=of_examples, alpha=alpha)
            for alpha in (0.05, 0.05 / tests)
        )
        assert (contrast["detectable"], contrast["detectable_holm"]) == (alone, first)
        assert 0 < alone < math.inf
    _correct(tasks, declared=3)  # two of which cannot be tested
    (headline,) = tasks[0]["contrasts"]
    assert headline["p_holm"] == pytest.approx(min(1, 3 * headline["p"]))
    wider = smallest_difference(headline["spread"], 3, alpha=0.05 / 3)
    assert headline["detectable_holm"] == pytest.approx(wider)


def test_metrics_beside_the_first_are_means_over_seeds() -> None:
    results = [
        SimpleNamespace(primary="f1", metrics={"f1": 0.5, "accuracy": accuracy, "mcc": 0.0})
        for accuracy in (0.6, 0.9)
    ]
    assert _other_metrics(results) == pytest.approx({"accuracy": 0.75, "mcc": 0.0})


def _contrasts_that_cannot_be_tested_are_named(study: Study) -> None:
    """A run that diverged, then one that is missing, then an arm that is: none is left out silently."""
    validation = study.run_of("decay", 1).validation
    *before, last = validation.read_text().splitlines()
    diverged = {**json.loads(last), "loss": math.nan}
    validation.write_text("\n".join([*before, json.dumps(diverged)]) + "\n")
    found = json.loads(compare_study(study).read_text())
    assert found["notices"][1:] == [
        "“decay” ended with a loss that is no number with seed 1: such a run has diverged, and its seed is "
        "left out of every comparison of losses, of all arms.",
        "The declared contrast of “decay” and “fixed” is not tested: only seed 0 is complete in all arms, "
        "and a test needs two.",
    ]
    assert all(task["seeds"] == [0] and not task["contrasts"] for task in found["tasks"])
    assert found["tasks"][0]["arms"]["decay"]["difference_low"] is None

    study.run_of("decay", 0).summary.unlink()
    found = json.loads(compare_study(study).read_text())
    assert found["notices"][-1].endswith("is not tested: no run of “decay” is left to compare.")
    assert "not tested: no run of “decay”" in report_of_study(study.folder).read_text()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["decay", "fixd"]], "'fixd' is not an arm; did you mean 'fixed'"),
        ([["DECAY", "fixed"]], "'DECAY' is not an arm; did you mean 'decay'"),
        (
            [["decay", "fixed", "fixed"]],
            r"contrasts.0 is \['decay', 'fixed', 'fixed'\]; expected at most 2 values, and there are 3",
        ),
        ([["decay", "decay"]], "compares an arm with itself"),
        ([["decay", "fixed"], ["fixed", "decay"]], "is listed twice"),
        ([["decay"]], "contrasts"),
    ],
)
def test_contrasts_that_cannot_be_are_refused(
    values: dict[str, Any], tmp_path: Path, pairs: list[list[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened({**values, "contrasts": pairs}, tmp_path)


def test_a_result_that_is_no_number_leaves_its_seed_out(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """As of a model that has diverged: it is told, nothing is tested with it, and the page is written."""
    study = opened({**values, "curve_steps": []}, tmp_path)
    run_study(study, study.in_order())
    for name, seeds, compared in (
        ("1/results/*/cola-seed0.json", "seed 1", ["fixed", "decay"]),
        ("*/results/*/cola-seed?.json", "seeds 0 and 1", ["fixed"]),
    ):
        for path in (study.folder / "runs" / "decay").glob(f"seed-{name}"):
            result = TaskResult.load(path)
            replace(result, metrics={**result.metrics, "mcc": math.nan}).save(path.parent)
        found = json.loads(compare_study(study).read_text())
        cola = found["tasks"][-1]
        assert list(cola["arms"]) == compared
        assert cola["seeds"] == ([0] if len(compared) > 1 else [0, 1])
        assert all(numbers.get("p") is None for numbers in cola["arms"].values())
        (told,) = [text for text in found["notices"] if "is no number" in text]
        assert told.startswith(f"CoLA: “decay” has a result that is no number with {seeds}, ")
        assert report_of_study(study.folder).is_file()


def test_tasks_are_compared_on_the_fine_tuning_seeds_that_all_arms_have() -> None:
    """In whatever order the arms come; one that shares none with the baseline takes nothing from others."""

    def results(*pairs: tuple[int, int]) -> dict[tuple[int, int], Any]:
        return dict.fromkeys(pairs)

    many = results((0, 0), (0, 1), (1, 0), (1, 1))
    few = results((0, 0), (1, 0))
    for arms in ({"a": many, "b": few}, {"b": few, "a": many}):
        for baseline in arms:
            found = _common(arms, baseline)
            assert list(found) == list(arms)
            assert all(list(pairs) == list(few) for pairs in found.values())
    begun = results((0, 0), (0, 1), (1, 0))  # its second seed is not done yet
    assert _common({"a": many, "b": begun}, "a") == {
        name: results((0, 0), (0, 1)) for name in ("a", "b")
    }
    other = results((0, 7), (1, 7))
    assert _common({"a": many, "b": other}, "a") == {"a": many}
    assert _common({"a": many, "b": other}, "c") == {}


def test_a_curve_goes_to_the_end_of_an_arm_that_trains_longer(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Though the baseline has no result there; a step that a seed of an arm lacks is not in its curve."""
    values["arms"] = {"fixed": {}, "long": {"steps": 12}}
    values["base"]["checkpoint"]["keep"] = 3
    study = opened({**values, "task_seeds": [0]}, tmp_path)
    run_study(study, study.in_order())
    found = json.loads(compare_study(study).read_text())
    curve = found["curves"][-1]
    assert {name: arm["step"] for name, arm in curve["arms"].items()} == {
        "fixed": [4, 8],
        "long": [4, 12],
    }
    assert all(list(arm["by_seed"]) == ["0", "1"] for arm in curve["arms"].values())
    assert curve["arms"]["long"]["difference"]["step"] == [4]
    reached = next(own for own in found["reach"] if own["quantity"] == "cola")
    assert reached["arms"]["long"]["step"]["baseline"] == 8
    for path in study.run_of("long", 1).results_of(12).glob("cola*"):
        path.unlink()
    arms = json.loads(compare_study(study).read_text())["curves"][-1]["arms"]
    assert {name: (arm["step"], list(arm["by_seed"])) for name, arm in arms.items()} == {
        "fixed": ([4, 8], ["0", "1"]),
        "long": ([4], ["0", "1"]),
    }


def test_a_missing_result_of_a_curve_costs_its_step_and_no_seed() -> None:
    """Also beyond the baseline's end, where an arm has the seeds that it shares with it before."""

    def results(**steps: dict[str, Any]) -> Any:
        return {
            int(step[1:]): {
                arm: {(seed, 0): f"{arm}{seed}" for seed in seeds} for arm, seeds in arms.items()
            }
            for step, arms in steps.items()
        }

    given = results(
        s4={"a": [0, 2], "b": [0, 1, 2]},
        s8={"a": [0, 1, 2], "b": [0, 1, 2]},
        s12={"b": [0, 1, 2, 3]},
    )
    found = {
        step: {arm: [seed for seed, _ in own] for arm, own in arms.items()}
        for step, arms in _common_at_steps(given, "a").items()
    }
    assert found == {
        4: {"a": [0, 2], "b": [0, 2]},
        8: {"a": [0, 1, 2], "b": [0, 1, 2]},
        12: {"b": [0, 1, 2]},
    }


def test_a_study_is_compared_again_though_its_checkpoints_are_gone(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Those of one run change nothing; without any, that arm's operations are not counted, as is said."""
    study = opened({**values, "tasks": {}, "curve_steps": []}, tmp_path)
    run_study(study, study.in_order())
    whole = compare_study(study).read_text()
    shutil.rmtree(study.run_of("decay", 0).checkpoints)
    assert compare_study(study).read_text() == whole
    shutil.rmtree(study.run_of("decay", 1).checkpoints)
    found = json.loads(compare_study(study).read_text())
    assert ["flops" in arm for arm in found["arms"]] == [True, False]
    (told,) = [text for text in found["notices"] if "checkpoints" in text]
    assert "“decay” are gone" in told
    assert report_of_study(study.folder).is_file()
