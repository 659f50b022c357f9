"""The table of several models: what stands in it, what does not, and in which form."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from chronomask.cli import main
from chronomask.errors import UsageError
from chronomask.report.compare import compare
from chronomask.runs.result import TaskResult


def write(folder: Path, task: str, seed: int, metrics: dict[str, float], **changes: Any) -> Path:
    values: dict[str, Any] = {
        "task": task, "family": "glue", "seed": seed, "model": folder.name,
        "model_sha256": folder.name, "step": None, "metrics": metrics, "primary": next(iter(metrics)),
        "higher_is_better": True, "num_examples": {"dev": 8}, "recipe": {"epochs": 3},
        "data_sha256": "d", "versions": {}, "seconds": 1.0,
    }  # fmt: skip
    TaskResult(**(values | changes)).save(folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    small, large = tmp_path / "small", tmp_path / "la|rge"
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        write(small, "rte", seed, {"accuracy": value})
    write(large, "rte", 0, {"accuracy": 0.75})
    write(large, "mrpc", 0, {"f1": 0.9, "accuracy": 0.8})
    mlm: dict[str, Any] = {"family": "intrinsic", "unit": "nats", "recipe": {}}
    write(small, "mlm", 0, {"loss": 2.5, "accuracy": 0.5, "loss_per_word": 3.25}, **mlm)
    return [small, large]


def test_models_stand_side_by_side(folders: list[Path]) -> None:
    table = compare(folders)
    assert table.models == ("small", "la|rge")
    rows = {line.cells()[0]: line.cells()[1:] for line in table.lines}
    assert rows == {
        "masked-token loss": ["nats", "2.500", "–"],
        "RTE": ["accuracy, %", "60.0 ± 10.0 (3)", "75.0"],
        "MRPC": ["F1, %", "–", "90.0"],
    }
    every = {
        tuple(line.cells()[:2]): line.cells()[2:]
        for line in compare(folders, every_metric=True).lines
    }
    assert every["MRPC", "accuracy, %"] == ["–", "80.0"]
    assert ["3.250", "–"] in every.values()
    assert ["50.0", "–"] in every.values()


def test_forms(folders: list[Path]) -> None:
    table = compare(folders)
    lines = str(table).splitlines()
    assert len({line.find("60.0") for line in lines if "60.0" in line}) == 1
    assert lines[0].split()[:2] == ["task", "measure"]
    head, rule, *rows = table.markdown().splitlines()
    assert head == "| task | measure | small | la\\|rge |"
    assert rule == "| --- | --- | --- | --- |"
    assert "| RTE | accuracy, % | 60.0 ± 10.0 (3) | 75.0 |" in rows
    read = list(csv.DictReader(io.StringIO(table.csv())))
    (rte,) = [row for row in read if (row["model"], row["task"]) == ("small", "rte")]
    assert float(rte["mean"]) == pytest.approx(0.6)
    assert float(rte["standard_deviation"]) == pytest.approx(0.1)
    assert rte["seeds"] == "3"


def test_what_differs_is_not_compared(folders: list[Path]) -> None:
    write(folders[1], "rte", 0, {"accuracy": 0.75}, data_sha256="e", recipe={"epochs": 5})
    table = compare(folders)
    assert "RTE" not in [line.cells()[0] for line in table.lines]
    (note,) = table.notes
    assert note == "rte is not compared: its results are of other data, recipe.epochs"
    assert note in str(table)
    assert note in table.markdown()


def test_a_run_stands_for_its_newest_results(folders: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "mine"
    for step, value in ((1000, 0.1), (2000, 0.2)):
        write(run / "results" / f"step-{step:08d}", "rte", 0, {"accuracy": value})
    (run / "results" / "step-00003000").mkdir()
    table = compare([run, folders[0]])
    assert table.models == ("mine, step 2,000", "small")
    again = compare([run / "results" / "step-00001000", run])
    assert again.models == ("mine, step 1,000", "mine, step 2,000")
    other = write(tmp_path / "other" / "small", "rte", 0, {"accuracy": 0.1})
    assert compare([other, folders[0]]).models == (str(other), str(folders[0]))


def test_losses_per_token_of_other_tokenizers_are_not_put_in_a_line(folders: list[Path]) -> None:
    values: dict[str, Any] = {"family": "intrinsic", "unit": "nats", "recipe": {}}
    metrics = {"loss": 3.0, "pseudo_perplexity": 20.1, "nats_per_character": 0.75}
    for folder, tokens in zip(folders, (100, 120), strict=True):
        counts = {"lines": 5, "tokens": tokens}
        write(folder, "pseudo_perplexity", 0, metrics, num_examples=counts, **values)
    for every in (False, True):
        table = compare(folders, every_metric=every)
        own = [line for line in table.lines if line.task == "pseudo_perplexity"]
        assert [(line.metric, line.values) for line in own] == [
            ("nats_per_character", ((0.75,), (0.75,)))
        ]
        (note,) = table.notes
        assert note.startswith(
            "pseudo_perplexity is compared by nats_per_character: these models cut"
        )
    write(
        folders[1],
        "pseudo_perplexity",
        0,
        metrics,
        num_examples={"lines": 5, "tokens": 100},
        **values,
    )
    assert not compare(folders).notes
    rows = {"rows": 9, "tokens": 90}
    for folder, data in zip(folders, "de", strict=True):  # of prepared data, one for each tokenizer
        write(folder, "mlm", 0, {"loss": 2.5}, data_sha256=data, num_examples=rows, **values)
    (note,) = compare(folders).notes
    assert note.endswith("compared by evaluate --tasks pseudo_perplexity on one text file")


def test_a_result_without_a_number_is_named(folders: list[Path]) -> None:
    write(folders[0], "rte", 2, {"accuracy": float("nan")})
    table = compare(folders)
    (rte,) = [line for line in table.lines if line.task == "rte"]
    assert [len(own) for own in rte.values] == [2, 1]
    assert table.notes == ("small: rte of seed 2 is left out, for its accuracy is nan",)


def test_what_cannot_be_is_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="no results were named"):
        compare([])
    with pytest.raises(UsageError, match="gone does not exist"):
        compare(str(tmp_path / "gone"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file is not a folder"):
        compare([tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no results, and is neither a run nor a model"):
        compare([tmp_path / "empty"])
    for name, file in (("model", "config.json"), ("my run", "config.yaml")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        quoted = shlex.quote(str(tmp_path / name))
        with pytest.raises(
            UsageError, match=f"holds no results: chronomask evaluate {quoted} --tasks"
        ):
            compare([tmp_path / name])
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "results" / "model", "rte", 0, {"accuracy": 0.5})
    with pytest.raises(UsageError, match="name results/model, where"):
        compare(["model"])
    with pytest.raises(UsageError, match="given 2 times"):
        compare([folders[0], folders[0] / "."])
    write(folders[0], "cola", 0, {"mcc": 0.1}, model_sha256="another")
    with pytest.raises(UsageError, match="results of several models"):
        compare(folders)


def test_the_command(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folders[1], "rte", 0, {"accuracy": 0.75}, data_sha256="e")
    for flags, code, match in (
        ([], 0, "MRPC"), (["--markdown"], 0, "| MRPC |"), (["--csv"], 0, "mrpc,f1"),
        (["--csv", "--markdown"], 2, "choose one"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["chronomask", "compare", *map(str, folders), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        told = capsys.readouterr()
        assert match in (told.err if code else told.out)
        assert ("rte is not compared" in told.out + told.err) == (code == 0)
