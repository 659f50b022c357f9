import json
import re
from pathlib import Path

import numpy as np
import pytest

from chronomask.errors import DataError, UsageError
from chronomask.runs.read import read_run, read_runs
from tests.support.synthetic_runs import write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "PTW", weighted=True, steps=100)


def test_columns_equal_the_lines(folder: Path) -> None:
    run = read_run(folder)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert run.name == "PTW"
    assert run.metrics["step"].tolist() == [line["step"] for line in lines]
    assert run.metrics["loss"].tolist() == [line["loss"] for line in lines]
    weights = run.metrics.per_class["class_weight"]["NOUN"]
    assert weights.tolist() == [line["class_weight"]["NOUN"] for line in lines]
    assert run.summary is not None
    assert run.notices == ()


def test_keys_of_columns_can_be_looked_for(folder: Path) -> None:
    metrics = read_run(folder).metrics
    assert "loss" in metrics
    assert "no_such_key" not in metrics
    assert list(metrics) == list(metrics.columns)


def test_an_absent_key_reads_as_nan(folder: Path) -> None:
    assert np.isnan(read_run(folder).metrics["no_such_key"]).all()


def test_a_class_seen_late_is_nan_before(folder: Path) -> None:
    _append(folder, {"step": 110, "class_loss": {"NEW": 1.5}})
    column = read_run(folder).metrics.per_class["class_loss"]["NEW"]
    assert np.isnan(column[:-1]).all()
    assert column[-1] == 1.5


def test_a_folder_that_is_no_run(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(
        UsageError, match=r"no metrics\.jsonl: .* not logged a step yet, or .* was lost"
    ):
        read_run(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(
        UsageError, match=r"not a run folder: it has no config\.yaml and no metrics"
    ):
        read_run(folder)


@pytest.mark.parametrize("text", ["{", '{"complete": true}', '{"complete": true, "steps": "many"}'])
def test_a_damaged_summary_is_refused_with_a_way_out(folder: Path, text: str) -> None:
    (folder / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json .*; put it back from a copy"):
        read_run(folder)
    (folder / "checkpoints" / "step-00000100").mkdir(parents=True)
    command = f"remove it, and  chronomask pretrain --out {folder} --resume  writes it again"
    with pytest.raises(DataError, match=re.escape(command)):
        read_run(folder)


def test_a_damaged_environment_can_be_done_without(folder: Path) -> None:
    (folder / "environment.json").write_text("[")
    with pytest.raises(DataError, match="remove it to read the run without it"):
        read_run(folder)
    (folder / "environment.json").unlink()
    assert read_run(folder).environment == {}


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is a file"):
        read_run(tmp_path / "file")


def test_results_of_tasks_are_no_run_and_the_way_to_see_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "cola-seed0.json").write_text("{}")
    with pytest.raises(UsageError, match=f"which chronomask compare {tmp_path} shows"):
        read_run(tmp_path)


def test_all_folders_are_looked_at_before_one_is_read(folder: Path, tmp_path: Path) -> None:
    (folder / "metrics.jsonl").write_text("not read")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        read_runs([folder, tmp_path / "nowhere"])


def test_a_path_alone_is_one_run(folder: Path) -> None:
    for path in (folder, str(folder)):
        assert [run.path for run in read_runs(path)] == [folder]


def test_no_run_at_all() -> None:
    with pytest.raises(UsageError, match="no run folder given"):
        read_runs([])


def test_empty_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match=r"metrics\.jsonl is empty"):
        read_run(folder)


def test_a_half_written_last_line_is_left_out_and_counted(folder: Path) -> None:
    before = len(read_run(folder).metrics)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 110, "lo')
    run = read_run(folder)
    assert len(run.metrics) == before
    assert run.notices == ("the last line of metrics.jsonl is half-written: 1 line left out",)


def test_a_damaged_line_in_the_middle_is_named(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[2] = lines[2][:40]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"line 3 is not valid JSON: .*; remove the line"):
        read_run(folder)


@pytest.mark.parametrize("line", [[1], {"loss": 1.0}, {"step": "ten"}])
def test_a_line_without_a_step(folder: Path, line: object) -> None:
    _append(folder, line)
    with pytest.raises(DataError, match="line 11 is not a JSON object with a whole 'step'"):
        read_run(folder)


def test_a_value_that_is_no_number(folder: Path) -> None:
    _append(folder, {"step": 110, "class_loss": {"NOUN": "high"}})
    with pytest.raises(DataError, match=r"line 11: class_loss\.NOUN is 'high', not a number"):
        read_run(folder)


def test_steps_left_out_as_outliers_are_no_column(folder: Path) -> None:
    _append(folder, {"step": 110, "loss": 1.25, "skipped_steps": [103, 107]})
    run = read_run(folder)
    assert run.metrics.last("loss") == 1.25
    assert "skipped_steps" not in run.metrics.columns


def test_steps_written_again_after_a_resume_replace_the_old(folder: Path) -> None:
    _append(folder, {"step": 90, "loss": 1.25})
    run = read_run(folder)
    assert run.metrics["step"].tolist() == [*range(10, 90, 10), 90]
    assert run.metrics.last("loss") == 1.25
    assert "2 older lines left out" in run.notices[0]


def test_an_unfinished_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "PTW", steps=60, finished=False))
    assert run.summary is None
    assert run.total("masked_tokens") == run.metrics["masked_tokens"][-1]
    assert "unfinished" in run.notices[0]
    assert "60" in run.notices[0]


def test_a_folder_given_twice(folder: Path) -> None:
    with pytest.raises(UsageError, match="given 2 times"):
        read_runs([folder, folder / ".." / folder.name])


def _append(folder: Path, line: object) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
