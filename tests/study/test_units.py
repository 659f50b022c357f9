"""The order of units and what they need; a study refuses what resuming a run in its folder would refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chronomask.errors import UsageError
from chronomask.prepare.pipeline import prepare
from chronomask.storage import write_text
from chronomask.study.command import status
from chronomask.study.execute import run_study, share_of
from chronomask.study.units import check_task_data
from tests.support.corpus import made_up_text
from tests.support.opened_study import opened


def begun(values: dict[str, Any], folder: Path) -> None:
    """A study whose run 'responsive', seed 0, has begun."""
    watched = {"masking.ratio": {"kind": "responsive", "watch": "validation"}}
    values["arms"] = {"fixed": {}, "responsive": watched}
    study = opened(values, folder)
    config = study.arms["responsive"].run_config(0)
    write_text(study.run_of("responsive", 0).config, config.to_yaml())


def test_data_that_are_not_there_are_named_with_where_they_were_looked_for(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values["base"] |= {"data": "d/en"}
    with pytest.raises(UsageError, match=f"base.data is d/en, and {tmp_path / 'd/en'} is not prep"):
        opened(values, tmp_path)


def test_a_run_made_with_another_config_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    begun(values, tmp_path)
    values["base"] |= {"rows_per_step": 2, "log_every": 1}
    with pytest.raises(UsageError, match="another config: rows_per_step is 4 there, 2 now"):
        opened(values, tmp_path)


def test_what_a_responsive_ratio_watches_must_not_change(
    values: dict[str, Any], tmp_path: Path
) -> None:
    begun(values, tmp_path)
    opened(values, tmp_path)
    values["base"]["validation"] |= {"rows": 4}
    with pytest.raises(UsageError, match=r"validation\.rows is 8 there, 4 now"):
        opened(values, tmp_path)


def test_text_prepared_with_another_config_is_refused(
    values: dict[str, Any], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(made_up_text(20)), encoding="utf-8")
    tokenizer = {"kind": "wordpiece", "vocab_size": 300}
    values["prepare"] = {"sources": [str(text)], "tagger": "none", "tokenizer": tokenizer}
    values["prepare"] |= {"row_length": 32, "workers": 1}
    del values["base"]["data"]
    study = opened(values, tmp_path)
    assert study.config.prepare is not None
    prepare(study.config.prepare, study.data, progress=False)

    values["prepare"]["workers"] = 2
    opened(values, tmp_path)
    values["prepare"] |= {"row_length": 16}
    with pytest.raises(
        UsageError, match=r"prepare\.row_length is 32 there, 16 now.* another --out"
    ) as refused:
        opened(values, tmp_path)
    assert "row_length: 32" in (tmp_path / "out" / "study.yaml").read_text()
    # Beginning anew takes what the study made, and nothing that somebody else put there.
    assert str(refused.value).endswith(f"remove data and runs in {study.folder}")
    shutil.rmtree(study.data)
    opened(values, tmp_path)


def test_the_masked_loss_is_measured_on_the_text_of_the_study(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Prepared already, or by the study itself; or on data that are given."""
    values |= {"tasks": {"mlm": {}}, "curve_steps": []}
    study = opened(values, tmp_path)
    check_task_data(study)
    assert study.task_data("mlm") == study.data

    given = {**values, "tasks": {"mlm": {"data": str(tmp_path / "other")}}}
    with pytest.raises(UsageError, match=r"tasks\.mlm\.data=FOLDER gives another folder"):
        check_task_data(opened(given, tmp_path))

    values["prepare"] = {"sources": ["x.txt"], "row_length": 64}
    del values["base"]["data"]
    (tmp_path / "own").mkdir()
    study = opened(values, tmp_path / "own")
    check_task_data(study)  # nothing is there before the study prepares it
    assert study.task_data("mlm") == study.folder / "data"


@pytest.fixture
def five(values: dict[str, Any]) -> dict[str, Any]:
    """The study with arms in an order that is not the best, two of them in its one contrast."""
    values["arms"] = {
        "extra": {"masking.ratio.base": 0.4},
        "frozen": {"masking.content": {"kind": "fixed", "weights": {"arm": "ptw"}}},
        "control": {"masking.ratio.base": 0.2},
        "ptw": {"masking.content": "ptw"},
        "fixed": {},
    }
    values |= {"baseline": "fixed", "contrasts": [["frozen", "control"]]}
    return values


def test_what_the_study_is_about_comes_first(five: dict[str, Any], tmp_path: Path) -> None:
    """All seeds of the contrasts' arms before any other; numbers stay in the order of the file."""
    study = opened(five, tmp_path)
    order = study.in_order()
    assert sorted(unit.number for unit in order) == list(range(len(study.units)))
    assert order[0].kind == "prepare"
    about, runs = ["fixed", "control", "ptw", "frozen"], [u for u in order if u.kind == "pretrain"]
    expected = [(arm, seed) for seed in (0, 1) for arm in about] + [("extra", 0), ("extra", 1)]
    assert [(unit.arm, unit.seed) for unit in runs] == expected
    numbered = [(unit.arm, unit.seed) for unit in study.units if unit.kind == "pretrain"]
    assert numbered == [(arm, seed) for seed in (0, 1) for arm in five["arms"]]
    done: set[int] = set()
    for unit in order:
        assert done.issuperset(unit.needs)
        done.add(unit.number)


def test_without_contrasts_every_arm_is_what_a_study_is_about(
    five: dict[str, Any], tmp_path: Path
) -> None:
    five.pop("contrasts")
    runs = [unit for unit in opened(five, tmp_path).in_order() if unit.kind == "pretrain"]
    assert [unit.arm for unit in runs[:5]] == ["fixed", "extra", "ptw", "frozen", "control"]
    assert [unit.seed for unit in runs] == [0] * 5 + [1] * 5


def test_an_arm_is_in_the_share_of_the_run_whose_weights_it_takes(
    five: dict[str, Any], tmp_path: Path
) -> None:
    study = opened(five, tmp_path)
    for number in range(1, 5):
        own = share_of(study, f"{number}/4")
        there = {unit.number for unit in own}
        assert there.issuperset(needed for unit in own for needed in unit.needs)


def test_a_tasks_missing_files_are_named_with_the_setting_that_moves_them(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Of its own folder, of the one that all tasks share, and of the task itself."""
    values |= {"task_data": str(tmp_path / "none"), "curve_steps": []}
    values["tasks"] = {"sst2": {}, "upos_probe": {"data": str(tmp_path / "elsewhere")}}
    with pytest.raises(UsageError) as refused:
        check_task_data(opened(values, tmp_path))
    said = str(refused.value)
    assert "sst2: " in said
    assert "upos_probe: " in said
    assert said.endswith(
        "--set task_data=FOLDER and --set tasks.upos_probe.data=FOLDER give another folder"
    )
    several = tmp_path / "several"
    several.mkdir()
    for name in ("en_a", "en_b"):
        for part in ("train", "test"):
            (several / f"{name}-ud-{part}.conllu").write_text("")
    values["tasks"] = {"upos_probe": {"data": str(several)}}
    with pytest.raises(UsageError, match=r"--set tasks\.upos_probe\.settings\.treebank=en_a"):
        check_task_data(opened(values, tmp_path))


def test_a_damaged_summary_is_no_finished_run(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened(values, tmp_path)
    folder = study.folder
    run = study.run_of("fixed", 0)
    write_text(run.config, study.arms["fixed"].run_config(0).to_yaml())
    write_text(run.summary, '{"complete": true, "steps": 8}')
    assert f"{folder}: 2 of " in status(folder)
    write_text(run.summary, "{")
    assert "damaged: pretrain fixed, seed 0: " in status(folder)
    write_text(run.summary, '{"complete": false}')
    assert f"{folder}: 1 of " in status(folder)


def test_runs_of_a_study_are_validated_on_the_same_rows(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened(values, tmp_path)
    assert study.arms["decay"].config.validation.shuffled
    run = study.run_of("fixed", 0)
    before = study.arms["fixed"].run_config(0).to_dict()
    del before["validation"]["order"]  # as a run of version 0.2 has it
    write_text(run.config, yaml.safe_dump(before))
    write_text(run.environment, "{}")
    study = opened(values, tmp_path)
    assert all(not arm.config.validation.shuffled for arm in study.arms.values())
    assert study.config.base["validation"]["order"] == "data"  # so its own file says so
    values["base"]["validation"] |= {"every": 3}
    opened(values, tmp_path)
    values["base"]["validation"] |= {"rows": 3, "order": "shuffled"}
    with pytest.raises(
        UsageError,
        match=r"validation\.rows is 8 there, 3 now; validation\.order is 'data' there, 'shuffled' now "
        r"\(with base\.validation\.rows: 8 and base\.validation\.order: data in the study all its runs",
    ):
        opened(values, tmp_path)
    values["base"]["validation"] |= {"rows": 8, "order": "data"}
    opened(values, tmp_path)


def test_runs_of_another_config_are_kept_as_the_refusal_says(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """As of an earlier version, whose default was another."""
    values["arms"]["PTW"] = {"masking.content": {"kind": "ptw"}}
    study = opened(values, tmp_path)
    run = study.run_of("PTW", 0)
    before = study.arms["PTW"].run_config(0).replace(["masking.content.strength=1.0"])
    write_text(run.config, before.to_yaml())
    with pytest.raises(
        UsageError,
        match=r"strength is 1\.0 there, .* now\. Remove it .*; to keep it, write "
        r"masking\.content\.strength: 1\.0 under arms\.PTW in the study$",
    ):
        opened(values, tmp_path)
    write_text(study.folder / "comparison.json", "{}")
    with pytest.raises(
        UsageError, match=r"chronomask report .* draws the comparison that is there"
    ):
        opened(values, tmp_path)
    values["arms"]["PTW"]["masking.content.strength"] = 1.0
    opened(values, tmp_path)


def test_runs_of_another_kind_are_kept_by_the_lines_of_a_group(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """Of lines the whole group has to be given where single settings do not do."""
    name = next(iter(values["arms"]))
    fields = {"masking.ratio": "0.3:0.15"}
    values["arms"]["later"] = fields
    study = opened(values, tmp_path)
    run = study.run_of("later", 0)
    changes = ["masking.ratio=0.2", "batch_warmup={start_rows: 1, steps: 2}"]
    write_text(run.config, study.arms["later"].run_config(0).replace(changes).to_yaml())
    with pytest.raises(UsageError, match="to keep it, write ") as refused:
        opened(values, tmp_path)
    said = str(refused.value).partition("to keep it, write ")[2].removesuffix(" in the study")
    for line in said.split(" and "):
        setting, _, place = line.partition(" under ")
        into = values["base"] if place == "base" else fields
        into |= yaml.safe_load(setting)
    assert opened(values, tmp_path).config.arms.keys() == {name, *values["arms"]}


def test_micro_batches_that_decide_masks_may_change_once_a_run_has_ended(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values["base"]["masking"] = {"budget": "batch"}
    study = opened(values, tmp_path)
    run = study.run_of("fixed", 0)
    write_text(run.config, study.arms["fixed"].run_config(0).to_yaml())
    values["base"]["micro_batches"] = 2
    with pytest.raises(
        UsageError, match="holds a run with another config: micro_batches is 1 there"
    ):
        opened(values, tmp_path)
    write_text(run.summary, '{"complete": true, "steps": 8}')
    opened(values, tmp_path)


def test_runs_that_are_of_no_arm_any_more_are_told(values: dict[str, Any], tmp_path: Path) -> None:
    study = opened(values, tmp_path)
    folder = study.folder
    for arm in ("fixed", "decay"):
        write_text(study.run_of(arm, 0).config, study.arms[arm].run_config(0).to_yaml())
    assert study.left_over() == ""
    del values["arms"]["decay"]
    opened(values, tmp_path)
    assert "runs/decay/seed-0 is of no arm and seed of this study, and left out" in status(folder)
    values["seeds"] = [1]
    opened(values, tmp_path)
    assert "runs/decay/seed-0, runs/fixed/seed-0 are of no arm and seed" in status(folder)


def test_results_on_other_data_are_refused_before_any_work(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened(values, tmp_path)
    run_study(study, study.in_order())
    check_task_data(study)
    elsewhere = Path(shutil.copytree(tmp_path / "tasks", tmp_path / "elsewhere"))
    moved = {**values, "task_data": str(elsewhere)}
    check_task_data(opened(moved, tmp_path))
    with (elsewhere / "CoLA" / "dev.tsv").open("a") as file:
        file.write("x\t1\t\tword1 .\n")
    with pytest.raises(UsageError, match=r"cola-seed0\.json was made with other data than lies in"):
        check_task_data(opened(moved, tmp_path))


def test_logs_are_named_by_what_units_do(values: dict[str, Any], tmp_path: Path) -> None:
    """An arm that is put before others changes their numbers, and no log."""
    study = opened(values, tmp_path)
    logs = {str(unit): study.log(unit) for unit in study.units}
    assert len(set(logs.values())) == len(study.units)
    arms = {"first": {"masking.ratio.base": 0.4}, **values["arms"]}
    grown = opened({**values, "arms": arms}, tmp_path)
    after = {str(unit): grown.log(unit) for unit in grown.units}
    assert {name: after[name] for name in logs} == logs


def test_a_line_of_a_log_that_is_no_step_is_passed_over(
    values: dict[str, Any], tmp_path: Path
) -> None:
    study = opened(values, tmp_path)
    metrics = study.run_of("decay", 0).metrics
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 4}\n[1]\n{"x": 1}\n{"ste')
    assert "decay  step 4 of 8" in status(study.folder)


def test_prepared_data_that_nobody_named_is_not_measured_on(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of tasks' files is ``data`` where none is named, and prepared data are often called so."""
    values |= {"tasks": {"mlm": {}}, "curve_steps": []}
    del values["task_data"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(values["base"]["data"], "data")
    study = opened(values, tmp_path)
    assert study.task_data("mlm") == study.data
    shutil.copytree("data", "tasks/intrinsic")
    study = opened({**values, "task_data": "tasks"}, tmp_path)
    assert study.task_data("mlm") == Path("tasks")
