"""What runs came to, and which of them are one arm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chronomask.report.arms import arm_row, group_by_arm, mean_ratios, mean_run
from chronomask.runs.read import Series, read_run
from chronomask.yardsticks import CONTENT, group_of
from tests.support.synthetic_runs import cosine, write_run


def test_the_mean_of_runs(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / f"{k}", "x", gain=gain, steps=steps, weighted=True))
        for k, (gain, steps) in enumerate([(0.0, 500), (1.0, 300)])
    ]
    mean = mean_run(runs, "mean")
    common = runs[1].metrics["step"]
    assert mean.metrics["step"].tolist() == common.tolist()
    expected = (runs[0].metrics["loss"][: len(common)] + runs[1].metrics["loss"]) / 2
    np.testing.assert_allclose(mean.metrics["loss"], expected)
    weights = [run.metrics.per_class["class_weight"]["NOUN"] for run in runs]
    np.testing.assert_allclose(
        mean.metrics.per_class["class_weight"]["NOUN"], (weights[0][: len(common)] + weights[1]) / 2
    )


def test_the_mean_of_windows_is_that_of_the_runs(tmp_path: Path) -> None:
    """Each run's own loss, predictions and share of content words; a class that one lacks counts 0 there."""
    folders = [write_run(tmp_path / "a", "a"), write_run(tmp_path / "b", "b", cosine, gain=1.0)]
    path = folders[1] / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for key in ("class_loss", "class_accuracy", "class_count"):
        del lines[3][key]["NOUN"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    runs = [read_run(folder) for folder in folders]
    metrics = mean_run(runs, "mean").metrics
    own: list[tuple[float, ...]] = []
    for folder in folders:
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[3])
        counts, losses = line["class_count"], line["class_loss"]
        total = sum(counts.values())
        content = sum(n for name, n in counts.items() if group_of(name) == CONTENT)
        loss = sum(losses[name] * n for name, n in counts.items()) / total
        own.append((loss, total, content / total, counts.get("NOUN", 0)))
    loss, total, share, nouns = np.mean(own, axis=0)
    assert metrics["window_loss"][3] == pytest.approx(loss, abs=1e-12)
    assert metrics["window_predictions"][3] == pytest.approx(total)
    assert metrics["content_share"][3] == pytest.approx(share, abs=1e-12)
    assert metrics.per_class["class_count"]["NOUN"][3] == nouns
    assert (
        metrics.per_class["class_loss"]["NOUN"][3]
        == runs[0].metrics.per_class["class_loss"]["NOUN"][3]
    )


def logged(ratio: Callable[[float], float], steps: int, every: int) -> tuple[Series, float, float]:
    """Lines of a run that met every step's ratio, with its true means; one token in 50 is special."""
    progress = np.arange(steps) / steps
    asked = np.array([ratio(at) for at in progress])
    maskable = np.full(steps, 16_056.0)
    lines = np.arange(every, steps + 1, every) - 1
    columns = {
        "step": lines + 1.0,
        "tokens_seen": np.cumsum(maskable / 0.98)[lines],
        "masked_tokens": np.cumsum(asked * maskable)[lines],
        "masking_ratio": asked[lines],
        "masking_ratio_achieved": asked[lines],
    }
    return (
        Series(columns, {}),
        float(asked.mean()),
        float((asked * maskable).sum() / maskable.sum()),
    )


@pytest.mark.parametrize("every", [1, 10, 50])
@pytest.mark.parametrize(
    "ratio",
    [
        lambda at: 0.15,
        lambda at: 0.3 * (1 - at),
        cosine,
        lambda at: 0.3 - 0.15 * at,
        lambda at: 0.4 if at < 0.3 else 0.2,
        lambda at: 0.15 * (1 + math.cos(math.pi * at)),
    ],
    ids=["constant", "to zero", "cosine", "linear", "phases", "cosine to zero"],
)
def test_mean_ratios_are_of_all_steps(ratio: Callable[[float], float], every: int) -> None:
    series, asked, achieved = logged(ratio, 2000, every)
    found = mean_ratios(series)
    assert found[1] == pytest.approx(achieved, rel=0.003)
    # Where the ratio jumps within a window, how many of its steps asked for which is not logged.
    jump = abs(ratio(0.3) - ratio(0.2999)) * every / 2000 / 2
    assert found[0] == pytest.approx(asked, rel=0.003, abs=jump)


def test_the_mean_of_logged_steps_is_another() -> None:
    series, asked, _ = logged(lambda at: 0.3 * (1 - at), 2500, 50)
    assert np.mean(series["masking_ratio"]) == pytest.approx(0.147, abs=5e-4)
    assert asked == pytest.approx(0.15, abs=1e-4)


def test_a_ratio_that_is_missed_is_seen() -> None:
    series, asked, _ = logged(lambda at: 0.2 - 0.1 * at, 1000, 10)
    for key in ("masked_tokens", "masking_ratio_achieved"):
        series.columns[key] = 0.9 * series[key]
    assert mean_ratios(series) == pytest.approx((asked, 0.9 * asked), rel=0.002)


def test_ratios_that_were_not_logged() -> None:
    columns = {"step": np.array([1.0, 2.0]), "loss": np.array([9.0, 8.0])}
    assert all(math.isnan(value) for value in mean_ratios(Series(columns, {})))
    nothing, _, _ = logged(lambda at: 0.0, 100, 10)
    assert mean_ratios(nothing) == (0.0, 0.0)


def test_runs_that_differ_in_seed_name_and_path_are_one_arm(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{k}", f"mrd-seed{k}", cosine, seed=k) for k in range(3)]
    folders.append(write_run(tmp_path / "other", "fixed", seed=0))
    path = folders[1] / "config.yaml"
    path.write_text(path.read_text() + "data: elsewhere\n")
    arms = group_by_arm([read_run(folder) for folder in folders])
    assert {name: list(by_seed) for name, by_seed in arms.items()} == {
        "mrd": [0, 1, 2],
        "fixed": [0],
    }


def test_runs_on_other_data_or_of_the_same_seed_are_other_arms(tmp_path: Path) -> None:
    seeds = {"a": 0, "b": 0, "c": 1}
    folders = [write_run(tmp_path / name, "same", seed=seed) for name, seed in seeds.items()]
    path = folders[2] / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_fingerprint": "other"}))
    arms = group_by_arm([read_run(folder) for folder in folders])
    assert {name: list(by_seed) for name, by_seed in arms.items()} == {
        "same (a)": [0], "same (b)": [0], "same (c)": [1],
    }  # fmt: skip


def test_a_finished_run_has_the_ratio_that_its_plan_asked_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "few lines", cosine, log_every=250)
    before = arm_row(read_run(folder))
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean_ratio_asked": 0.17}))
    after = arm_row(read_run(folder))
    assert after.mean_ratio_asked == 0.17 != before.mean_ratio_asked
    assert after.mean_ratio_achieved == before.mean_ratio_achieved
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean_ratio_asked": None}))
    assert arm_row(read_run(folder)).mean_ratio_asked == before.mean_ratio_asked


def test_runs_named_by_their_seeds_alone_have_the_name_of_their_folder(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / arm / f"seed-{seed}", f"seed-{seed}", seed=seed, gain=gain)
        for arm, gain in (("ptw", 0.0), ("fixed", 0.5))
        for seed in (0, 1)
    ]
    for folder in folders[2:]:
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(f"{text}z_loss: 0.5\n")
    arms = group_by_arm([read_run(folder) for folder in folders])
    assert {name: list(own) for name, own in arms.items()} == {"ptw": [0, 1], "fixed": [0, 1]}
