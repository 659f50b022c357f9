"""Tasks by name, all checked before any runs; results kept, refused, replaced; the command."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chronomask import cli, storage
from chronomask.errors import DataError, RunError, UsageError
from chronomask.evaluate.evaluate import default_out, evaluate, results_table
from chronomask.evaluate.finetune import FineTuning
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.tasks import REGISTRY, make_tasks
from chronomask.evaluate.tasks.glue import FORMATS, GlueTask
from chronomask.evaluate.tasks.squad import SquadTask
from chronomask.runs.result import TaskResult
from tests.support.official_files import squad_values, write_squad
from tests.support.official_model import make_checkpoint, save_model
from tests.support.processes import python_path

QUICK = ["epochs=1", "max_length=32", "batch_size=8"]


def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Names and seeds of the tasks that are run from now on."""
    seen: list[tuple[str, int]] = []
    run = GlueTask.run

    def noted(
        self: GlueTask, model: Subject, task_data: Path, seed: int, progress: bool
    ) -> TaskResult:
        seen.append((self.name, seed))
        return run(self, model, task_data, seed, progress)

    monkeypatch.setattr(GlueTask, "run", noted)
    return seen


def test_families_and_names_become_tasks_once() -> None:
    assert [task.name for task in make_tasks(["rte", "glue"])] == ["rte", *(set_without("rte"))]
    assert {task.family for task in REGISTRY.values()} >= {"glue", "squad"}
    with pytest.raises(UsageError, match="unknown task 'colla'; did you mean 'cola'"):
        make_tasks(["colla"])
    with pytest.raises(UsageError, match="no task was named"):
        make_tasks([])


def set_without(name: str) -> list[str]:
    return [other for other in FORMATS if other != name]


def test_overrides_reach_all_a_family_or_a_task() -> None:
    tasks = make_tasks(
        ["mrpc", "cola", "squad"],
        ["epochs=1", "glue.max_length=64", "mrpc.epochs=4", "squad.stride=7", "stride=9"],
        limit=10,
    )
    mrpc, cola, squad = tasks
    assert isinstance(mrpc, GlueTask)
    assert isinstance(cola, GlueTask)
    assert isinstance(squad, SquadTask)
    assert (mrpc.config.epochs, cola.config.epochs, squad.config.epochs) == (4, 1, 1)
    assert (mrpc.config.max_length, squad.config.max_length) == (64, 384)
    assert squad.config.stride == 9
    assert {mrpc.config.limit, cola.config.limit, squad.config.limit} == {10}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochss=1", "no task has 'epochss'; did you mean 'epochs'"),
        ("cola.epochss=1", "unknown key 'epochss'; did you mean 'epochs'"),
        ("kola.epochs=1", "'kola' is neither a task nor a family; did you mean 'cola'"),
        ("squad.epochs=1", "'squad' is not one of the tasks to run"),
        ("epochs=0", r"--set epochs=0: epochs is 0: it should be greater"),
        ("cola.epochs=0", r"--set cola.epochs=0: epochs is 0: it should be greater"),
        ("precision=fp8", "--set precision=fp8: precision is 'fp8'"),
    ],
)
def test_overrides_that_reach_nothing_are_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_tasks(["cola"], [override])


def test_everything_is_checked_before_anything_runs(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = ran(monkeypatch)
    (glue / "glue" / "QNLI" / "train.tsv").unlink()
    (glue / "glue" / "RTE" / "dev.tsv").write_text("")
    tasks = make_tasks(["cola", "rte", "qnli", "sst2"], QUICK)
    with pytest.raises(UsageError) as caught:
        evaluate(subject, tasks, glue, [0], tmp_path / "out", progress=False)
    message = str(caught.value)
    assert "rte: " in message
    assert "dev.tsv is empty" in message
    assert "qnli: " in message
    assert "Nothing is wrong with: --tasks cola,sst2" in message
    assert seen == []
    with pytest.raises(DataError, match="is empty"):
        evaluate(subject, make_tasks(["rte"]), glue, [0], tmp_path / "out", progress=False)


def test_an_interrupted_evaluation_goes_on(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run = GlueTask.run

    def interrupted(
        self: GlueTask, model: Subject, task_data: Path, seed: int, progress: bool
    ) -> TaskResult:
        if (self.name, seed) == ("rte", 1):
            raise KeyboardInterrupt
        return run(self, model, task_data, seed, progress)

    monkeypatch.setattr(GlueTask, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(subject, make_tasks(["cola", "rte"], QUICK), glue, [0, 1], out, progress=False)
    assert sorted(path.name for path in out.glob("*.json")) == [
        "cola-seed0.json", "cola-seed1.json", "rte-seed0.json",
    ]  # fmt: skip
    monkeypatch.setattr(GlueTask, "run", run)
    seen = ran(monkeypatch)
    tasks = make_tasks(["cola", "rte"], QUICK)
    results = evaluate(subject, tasks, glue, [0, 1], out, progress=False)
    assert seen == [("rte", 1)]
    assert [(r.task, r.seed) for r in results] == [
        ("cola", 0), ("cola", 1), ("rte", 0), ("rte", 1),
    ]  # fmt: skip
    whole = evaluate(subject, tasks, glue, [0, 1], tmp_path / "whole", progress=False)
    assert [r.metrics for r in whole] == [r.metrics for r in results]


def test_a_task_without_memory_names_what_takes_less(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(GlueTask, "run", fail)
    with pytest.raises(
        RunError, match=r"^cola: .*2\.00 GiB\): --set cola\.batch_size=4 takes less"
    ):
        evaluate(subject, make_tasks(["cola"], QUICK), glue, [0], tmp_path / "out", progress=False)
    assert make_tasks(["cola"], ["cola.batch_size=4"])  # the way out
    least = make_tasks(["cola"], [*QUICK, "cola.batch_size=1"])
    with pytest.raises(
        RunError, match=r"GiB\): end what else has memory there, or evaluate a"
    ) as no:
        evaluate(subject, least, glue, [0], tmp_path / "out", progress=False)
    assert "batch_size" not in str(no.value)


@pytest.mark.parametrize("tasks", [["cola"], ["rte", "cola"]])
def test_a_checkpoint_that_its_run_removes_meanwhile_is_named(
    model_folder: Path,
    glue: Path,
    tmp_path: Path,
    tasks: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the weights of a task are opened, be it the first or a later one."""
    checkpoint = make_checkpoint(tmp_path / "run", 5, model_folder)
    subject = find_subject(str(tmp_path / "run"))
    run = GlueTask.run

    def removed(
        self: GlueTask, model: Subject, task_data: Path, seed: int, progress: bool
    ) -> TaskResult:
        if self.name == tasks[-1]:
            shutil.rmtree(checkpoint)
        return run(self, model, task_data, seed, progress)

    monkeypatch.setattr(GlueTask, "run", removed)
    with pytest.raises(
        RunError, match=rf"^cola: the checkpoint {checkpoint} was removed .*checkpoint\.keep=all"
    ):
        evaluate(subject, make_tasks(tasks, QUICK), glue, [0], tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out").glob("*.json"))) == len(tasks) - 1  # what was done is kept


def test_bfloat16_on_a_card_that_does_not_compute_it_is_refused(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    asked = make_tasks(["cola"], [*QUICK, "cola.precision=bf16", "cola.device=cuda"])
    with pytest.raises(
        UsageError, match=r"Tesla T4 does not compute it: --set cola\.precision=fp32"
    ):
        evaluate(subject, asked, glue, [0], tmp_path / "out", progress=False)
    mended = make_tasks(["cola"], [*QUICK, "cola.precision=bf16", "cola.device=cpu"])
    assert evaluate(subject, mended, glue, [0], tmp_path / "out", progress=False)


def test_results_of_something_else_are_refused_and_kept(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tasks = make_tasks(["cola"], QUICK)
    evaluate(subject, tasks, glue, [0], out, progress=False)
    before = (out / "cola-seed0.json").read_text()
    seen = ran(monkeypatch)
    other = find_subject(str(save_model(tmp_path / "other", seed=1)))
    with pytest.raises(
        UsageError, match=r"cola-seed0.json already exists and was made with other weights"
    ):
        evaluate(other, tasks, glue, [0, 1], out, progress=False)
    changed = make_tasks(["cola"], [*QUICK, "epochs=2"], limit=3)
    with pytest.raises(UsageError, match=r"made with other recipe.epochs, recipe.limit"):
        evaluate(subject, changed, glue, [0], out, progress=False)
    config = other.path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    (other.path / "model.safetensors").write_bytes(
        (subject.path / "model.safetensors").read_bytes()
    )
    with pytest.raises(UsageError, match=r"was made with other config or tokenizer \(of"):
        evaluate(str(other.path), tasks, glue, [0], out, progress=False)
    path = glue / "glue" / "CoLA" / "dev.tsv"
    path.write_text(path.read_text() + "gj04\t1\t\tthe film\n")
    with pytest.raises(UsageError, match="made with other data"):
        evaluate(subject, tasks, glue, [0], out, progress=False)
    assert seen == []
    assert (out / "cola-seed0.json").read_text() == before
    evaluate(subject, tasks, glue, [0], out, force=True, progress=False)
    assert seen == [("cola", 0)]
    assert TaskResult.load(out / "cola-seed0.json").num_examples["dev"] == 6


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GlueTask, "run", lambda *_: pytest.fail("it began"))
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match="file is a file, and nothing can be made in one; give another place"
    ):
        evaluate(subject, ["cola"], glue, 1, tmp_path / "file" / "inner", progress=False)


def test_a_result_that_cannot_be_written_is_told(
    subject: Subject, glue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "flush", full)
    with pytest.raises(RunError) as raised:
        evaluate(subject, make_tasks(["rte"], QUICK), glue, 1, tmp_path, progress=False)
    monkeypatch.undo()
    (result,) = evaluate(subject, make_tasks(["rte"], QUICK), glue, 1, tmp_path, progress=False)
    told = f"What it was to hold: rte seed 0: accuracy {result.metrics['accuracy']:.4f}"
    assert "cannot be written: No space left" in str(raised.value)
    assert str(raised.value).endswith(told)


def test_tasks_that_draw_nothing_run_once(subject: Subject, tmp_path: Path) -> None:
    class Fixed(GlueTask):
        draws = False

        def check(self, model: Subject, task_data: Path) -> None:
            pass

        def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
            return TaskResult(
                "fixed", "glue", seed, model.name, model.sha256, None, {"accuracy": 0.5},
                "accuracy", True, {"dev": 1}, {}, "", {}, 0.0,
            )  # fmt: skip

    task = Fixed("cola", FineTuning())
    results = evaluate(subject, [task], tmp_path, range(3), tmp_path / "out", progress=False)
    assert [result.seed for result in results] == [0]


def test_tasks_are_given_by_name_or_made(subject: Subject, glue: Path, tmp_path: Path) -> None:
    made = make_tasks(["rte"], QUICK)
    (result,) = evaluate(subject, made, glue, out=tmp_path / "out", progress=False)
    assert result.task == "rte"
    for mixed in ([*made, "cola"], ["cola", *made], [*made, 5]):
        with pytest.raises(UsageError, match="names such as 'cola', or what make_tasks gives"):
            evaluate(subject, mixed, glue, progress=False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="unknown task 'rtee'"):
        evaluate(subject, "cola, rtee", glue, progress=False)
    with pytest.raises(UsageError, match="no task was named"):
        evaluate(subject, "", glue, progress=False)


def test_seeds_are_a_number_of_them_or_the_seeds_each_once(
    subject: Subject, glue: Path, tmp_path: Path
) -> None:
    tasks = make_tasks(["cola"], QUICK)
    found = evaluate(subject, tasks, glue, [5, 7, 5], tmp_path / "out", progress=False)
    assert [result.seed for result in found] == [5, 7]
    found = evaluate(subject, tasks, glue, np.array([5, 7]), tmp_path / "out", progress=False)
    assert [(result.seed, type(result.seed)) for result in found] == [(5, int), (7, int)]
    (one,) = evaluate(subject, tasks, glue, np.int64(1), tmp_path / "one", progress=False)
    assert one.seed == 0
    for wrong in (0, -1, 1.5, "3", [1.5], None, np.zeros(2), [], range(0)):
        with pytest.raises(UsageError, match=r"seeds is .*; give how many there are to be"):
            evaluate(subject, tasks, glue, wrong, progress=False)  # pyright: ignore[reportArgumentType]


def test_default_folder(subject: Subject, tmp_path: Path) -> None:
    assert default_out(subject) == Path("results") / "tiny"
    of_run = Subject("x", tmp_path / "transformers", step=40, run=tmp_path / "run")
    assert default_out(of_run) == tmp_path / "run" / "results" / "step-00000040"


def test_table_shows_mean_and_deviation(subject: Subject) -> None:
    def result(seed: int, score: float) -> TaskResult:
        return TaskResult(
            "cola", "glue", seed, "m", "", None, {"mcc": score}, "mcc", True, {}, {}, "", {}, 0.0
        )

    assert results_table([result(0, 0.2), result(1, 0.4)]) == "cola  mcc  0.3000 ± 0.1414  2 seeds"
    assert results_table([result(0, 0.2)]) == "cola  mcc  0.2000  1 run"
    measured = replace(
        result(0, 0.2),
        details={
            "yardstick_loss/words-5": 5.25,
            "yardstick_loss/words-5/NOUN": 7.0,
            "yardstick_loss/words-5/function words": 4.5,
            "yardstick_count/words-5": 1234,
            "yardstick_count/words-5/function words": 400,
            "yardstick_count/words-5/NOUN": 9,
        },
    )
    titles = "  ".join([*(f"whole words, {ratio} %" for ratio in (15, 30, 50)), "single mask"])
    rows = {"all words": "5.250 (1,234)", "function words": "4.500 (400)", "NOUN": "7.000 (9)"}
    assert results_table([measured]).splitlines()[1:] == [
        "",
        f"nats (predictions)  mean of the five  whole words, 5 %  {titles}",
        *(
            f"{named:<20}–                 {loss:<18}{'–                  ' * 3}–"
            for named, loss in rows.items()
        ),
    ]


def test_the_command(
    model_folder: Path,
    glue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = [("the key is here", [("where is the key?", "here")])]
    write_squad(glue / "squad", squad_values([asked]), squad_values([asked]))

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chronomask", "evaluate", *map(str, arguments)])
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
        shown = capsys.readouterr()
        return int(code or 0), shown.out, shown.err

    monkeypatch.chdir(tmp_path)
    settings = ["--set", "epochs=1", "--set", "max_length=64", "--set", "squad.stride=8"]
    settings += ["--set", "squad.max_question_tokens=20"]
    tasks = ["--tasks", "rte,squad", "--task-data", glue]
    code, out, err = command(model_folder, *tasks, "--seeds", 2, "--limit", 6, *settings)
    assert code == 0
    assert "results: results/tiny" in out
    assert "[4/4] squad seed 1: exact_match" in err
    saved = sorted(path.name for path in (tmp_path / "results" / "tiny").glob("*.json"))
    assert saved == [f"{task}-seed{seed}.json" for task in ("rte", "squad") for seed in (0, 1)]
    values = json.loads((tmp_path / "results" / "tiny" / "squad-seed1.json").read_text())
    assert (values["recipe"]["limit"], values["recipe"]["stride"]) == (6, 8)

    code, out, err = command(model_folder, *tasks, *settings)
    assert (code, out) == (2, "")
    assert "made with other recipe.limit" in err
    code, _, err = command(model_folder, "--tasks", "mnlii", "--task-data", glue)
    assert (code, "did you mean 'mnli'" in err) == (2, True)
    code, _, err = command(tmp_path / "nothing", *tasks)
    assert (code, "does not exist" in err) == (2, True)


def test_a_missing_model_is_refused_before_what_scores_is_loaded(tmp_path: Path) -> None:
    code = (
        "import atexit, sys\nfrom chronomask.cli import main\n"
        "atexit.register(lambda: print(sorted({'sklearn', 'scipy', 'torch'} & set(sys.modules))))\n"
        "main()\n"
    )
    arguments = [str(tmp_path / "none"), "--tasks", "glue,squad,mlm", "--task-data", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": python_path()},
    )  # fmt: skip
    assert done.returncode != 0
    assert "does not exist" in done.stderr
    assert done.stdout.strip() == "[]"


def test_what_was_left_out_is_said_at_the_end(
    subject: Subject, glue: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(
        subject, make_tasks(["qqp"], ["epochs=1"]), glue, 1, tmp_path / "whole", progress=False
    )
    assert "left out" not in caplog.text
    train = glue / "glue" / "QQP" / "train.tsv"
    train.write_text(train.read_text() + "1\t2\n3\t4\n")
    again = make_tasks(["qqp"], ["epochs=1"])
    evaluate(subject, again, glue, 1, tmp_path / "cut", progress=False)
    assert "left out: 2 training rows that are cut off (qqp)" in caplog.text
