import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chronomask.errors import DataError, UsageError
from chronomask.runs.read import (  # pyright: ignore[reportPrivateUsage]
    _Columns,
    read_run,
    read_runs,
)
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


_VALUE = st.none() | st.floats() | st.integers(-9, 9) | st.booleans() | st.sampled_from(["x", [1]])
_GROUP = st.dictionaries(st.sampled_from(["NOUN", "", "None"]), _VALUE)
_LINE = st.tuples(
    st.integers(1, 6),
    st.dictionaries(st.sampled_from(["loss", "skipped_steps", "class_loss"]), _VALUE | _GROUP),
)


@given(st.lists(_LINE, max_size=10))
def test_columns_are_those_of_the_lines_that_are_left(drawn: list[tuple[int, Any]]) -> None:
    """Steps that are repeated, keys that come late or only in lines that go, and what is no number."""
    lines = [{"step": step, **values} for step, values in drawn]
    columns = _Columns(Path("log"))
    for number, line in enumerate(lines, start=1):
        columns.add(number, line)
    kept: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        while kept and kept[-1][1]["step"] >= line["step"]:
            kept.pop()
        kept.append((number, line))
    cells = [
        (number, row, key, name, value)
        for row, (number, line) in enumerate(kept)
        for key, own in line.items()
        if key != "skipped_steps"
        for name, value in (own.items() if isinstance(own, dict) else [(None, own)])
    ]
    wrong = [cell for cell in cells if not isinstance(cell[-1], int | float | None)]
    if wrong:
        number, _, key, name, value = wrong[0]
        place = key if name is None else f"{key}.{name}"
        with pytest.raises(DataError) as caught:
            columns.as_series()
        assert str(caught.value).startswith(
            f"log line {number}: {place} is {value!r}, not a number;"
        )
        return
    expected: dict[tuple[str, str | None], np.ndarray] = {("step", None): np.empty(0)}
    for _, row, key, name, value in cells:
        if not expected.get((key, name), np.empty(0)).size:
            expected[key, name] = np.full(len(kept), np.nan)
        expected[key, name][row] = np.nan if value is None else value
    groups = {
        key: None
        for _, line in kept
        for key, own in line.items()
        if isinstance(own, dict) and key != "skipped_steps"
    }
    series = columns.as_series()
    found: dict[tuple[str, str | None], np.ndarray] = {
        (key, None): column for key, column in series.columns.items()
    }
    found |= {(key, name): own for key, by in series.per_class.items() for name, own in by.items()}
    assert list(series.per_class) == list(groups)
    assert found.keys() == expected.keys()
    for place, column in expected.items():
        np.testing.assert_array_equal(found[place], column)


def test_reading_a_long_log_takes_memory_for_its_columns_alone(folder: Path) -> None:
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 4001):
            file.write(json.dumps({**line, "step": step}) + "\n")
    tracemalloc.start()
    metrics = read_run(folder).metrics
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    held = [
        *metrics.columns.values(),
        *(c for by in metrics.per_class.values() for c in by.values()),
    ]
    assert peak < 3 * sum(column.nbytes for column in held) + 500_000


def test_how_far_the_reading_is_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chronomask.progress._SECONDS_BETWEEN_LINES", -1.0)
    read_runs(folder)
    assert capsys.readouterr().err == ""
    read_runs(folder, progress=True)
    size = sum((folder / name).stat().st_size for name in ("metrics.jsonl", "validation.jsonl"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"reading runs: {size:,} bytes in ")


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
    with pytest.raises(DataError, match="from a copy, or remove it to read the run alone"):
        read_run(folder)
    (folder / "environment.json").unlink()
    assert read_run(folder).environment == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("validation", 5),
        ("masking", None),
        ("masking.ratio", [1]),
        ("masking.ratio.kind", -3),
        ("masking.ratio", {"base": 1}),
    ],
)
def test_a_config_that_was_edited_is_refused(folder: Path, key: str, value: object) -> None:
    file = folder / "config.yaml"
    *groups, last = key.split(".")
    values = yaml.safe_load(file.read_text())
    inner = values
    for group in groups:
        inner = inner.setdefault(group, {})
    inner[last] = value
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(DataError, match=rf"config\.yaml: {key} is .*put the file back"):
        read_run(folder)


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


def test_a_number_that_no_float_holds(folder: Path) -> None:
    _append(folder, {"step": 110, "loss": 10**300})
    assert read_run(folder).metrics.last("loss") == 1e300
    _append(folder, {"step": 111, "loss": 10**400})
    with pytest.raises(DataError, match=r"line 12: loss is 1000\d+ … 0+, not a number; remove"):
        read_run(folder)


def test_a_summary_with_a_number_that_no_float_holds(folder: Path) -> None:
    values = {"complete": True, "steps": 100, "flops": 10**400}
    (folder / "summary.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"summary\.json .*a number of 401 digits; "):
        read_run(folder).total("flops")


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


def test_a_summary_names_no_checkpoint_outside_its_run(folder: Path) -> None:
    values = {"complete": True, "steps": 100, "checkpoint": "../other/step-00000100"}
    (folder / "summary.json").write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"names '\.\./other/step-00000100' as a checkpoint of the run; "
    ):
        read_run(folder)
