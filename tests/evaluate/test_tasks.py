"""Every task at its defaults, from the command line and in a study; a task defined outside the package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from chronomask import cli
from chronomask.config import Config
from chronomask.data.folder import PreparedData
from chronomask.errors import DataError, UsageError
from chronomask.evaluate.evaluate import evaluate
from chronomask.evaluate.subject import Subject, find_subject
from chronomask.evaluate.task import Task
from chronomask.evaluate.tasks import REGISTRY, make_task, make_tasks
from chronomask.model import device
from chronomask.report.compare import compare
from chronomask.report.comparison import read_comparison
from chronomask.runs.result import TaskResult, read_results, title_of_task, trains_model
from chronomask.storage import files_sha256
from chronomask.study.command import report
from chronomask.study.contrasts import compare_study
from chronomask.study.execute import run_study
from chronomask.study.resample import metric_of
from chronomask.text_files import read_lines
from tests.support.opened_study import opened
from tests.support.task_files import write_task_files
from tests.support.tiny_models import save_tiny, tiny_bert

NUM_TASKS = 28
TOKENS = 384
"""of a window of SQuAD's recipe: the longest row of all tasks"""


@pytest.fixture
def task_data(tmp_path: Path, tiny_data: PreparedData) -> Path:
    (tmp_path / "files").mkdir()
    write_task_files(tmp_path / "files", tiny_data)
    return tmp_path / "files"


def test_every_task_runs_at_its_defaults(
    tmp_path: Path,
    task_data: Path,
    tiny_data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_tiny(tmp_path / "model", tiny_data.tokenizer_path, max_position_embeddings=TOKENS)
    arguments = [str(tmp_path / "model"), "--tasks", ",".join(REGISTRY), "--task-data", task_data]
    command = ["chronomask", "evaluate", *map(str, arguments), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("chronomask.progress._SECONDS_BETWEEN_LINES", -1.0)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    shown = capsys.readouterr()
    results = {result.task: result for result in read_results([tmp_path / "out"])}
    assert list(results) == sorted(REGISTRY)
    assert len(results) == NUM_TASKS
    for name, result in results.items():
        again = metric_of(result.primary, result.examples)  # as a study does, over resamples
        assert again == pytest.approx(result.metrics[result.primary])
        assert np.isfinite(list(result.metrics.values())).all()
        assert f"{name} seed 0: " in shown.err
        assert f"\n{name} " in f"\n{shown.out}"
        # One has no text, and the other is shown by its documents from the first to the last.
        assert (f"\n{name} encoding: 100%, " in f"\n{shown.err}") == (
            name not in ("mlm", "retrieval")
        )


def test_every_task_runs_at_its_defaults_in_a_study(
    tmp_path: Path, task_data: Path, tiny_data: PreparedData
) -> None:
    values = study_values(tiny_data, task_data, {name: {} for name in REGISTRY})
    study = opened(values, tmp_path)
    outcome = run_study(study, study.in_order())
    assert [str(unit) for unit, _ in outcome.failed] == []
    assert len(outcome.done) + len(outcome.there) == 1 + 1 + NUM_TASKS
    assert not run_study(study, study.in_order()).done


def study_values(data: PreparedData, task_data: Path, tasks: dict[str, Any]) -> dict[str, Any]:
    """A study of one arm, one seed and one step, whose model has room for every task's rows."""
    model = tiny_bert(32, max_position_embeddings=TOKENS)
    base = {"data": str(data.path), "model": model, "steps": 1, "rows_per_step": 2}
    return {
        "base": {**base, "device": "cpu", "threads": 1, "validation": {"rows": 4}},
        "arms": {"fixed": {}},
        "seeds": [0],
        "task_seeds": [0],
        "task_data": str(task_data),
        "tasks": tasks,
    }


class CapitalsConfig(Config):
    """Settings of :class:`Capitals`."""

    shortest: int = 1
    """letters of the shortest word that is looked at"""
    limit: int | None = None
    """at most so many lines"""


def define_capitals() -> None:
    """As a user's file does."""

    class Capitals(Task[CapitalsConfig]):
        """Share of words whose tokens begin with the unknown token or not: no model is trained for it."""

        name = "capitals"
        family = "spelling"
        title = "Known spellings"
        draws = False

        def data_sha256(self, task_data: Path) -> str:
            return files_sha256([task_data / "words.txt"])

        def check(self, model: Subject, task_data: Path) -> None:
            if not (task_data / "words.txt").is_file():
                raise UsageError(f"{task_data / 'words.txt'} does not exist")

        def run(self, model: Subject, task_data: Path, seed: int, progress: bool) -> TaskResult:
            words = [
                w for w in read_lines(task_data / "words.txt") if len(w) >= self.config.shortest
            ]
            found = np.array(
                [model.tokenizer.tokenize(w)[0] != model.tokenizer.unk_token for w in words]
            )
            return self.result(
                model,
                seed,
                0.0,
                metrics={"accuracy": float(found.mean())},
                primary="accuracy",
                num_examples={"words": len(words)},
                data_sha256=self.data_sha256(task_data),
                examples={"accuracy": found.astype(float)},
            )


@pytest.fixture
def capitals() -> Iterator[None]:
    """The task, defined for one test."""
    define_capitals()
    yield
    del REGISTRY["capitals"]


@pytest.mark.usefixtures("capitals")
def test_a_task_from_outside_is_asked_for_by_name(tmp_path: Path, tiny_data: PreparedData) -> None:
    (tmp_path / "words.txt").write_text("baco\ndifu\n東京\n")
    model = find_subject(str(save(tmp_path, tiny_data)))
    (by_name,) = make_tasks(["capitals"], ["capitals.shortest=3"], limit=5)
    (by_family,) = make_tasks(["spelling"], ["spelling.shortest=3"], limit=5)
    assert by_name.recipe == by_family.recipe == {"shortest": 3, "limit": 5}
    (result,) = evaluate(model, [by_name], tmp_path, range(3), tmp_path / "out", progress=False)
    assert (result.task, result.family, result.seed) == ("capitals", "spelling", 0)
    assert result.metrics["accuracy"] == 1.0
    assert result.num_examples == {"words": 2}
    kept = evaluate(model, [by_family], tmp_path, [0], tmp_path / "out", progress=False)
    assert kept[0].metrics == result.metrics
    with pytest.raises(UsageError, match=r"made with other recipe\.shortest"):
        evaluate(model, make_tasks(["capitals"], [], 5), tmp_path, [0], tmp_path / "out")
    assert (result.title, result.trains_model) == ("Known spellings", False)
    define_capitals()  # as a cell of a notebook is run again
    with pytest.raises(UsageError, match="a task or a family called 'capitals'"):
        type("Other", (type(by_name),), {"name": "capitals"})
    with pytest.raises(UsageError, match="a task or a family called 'glue'"):
        type("Other", (type(by_name),), {"name": "glue"})
    assert type(REGISTRY["capitals"]).__name__ == "Capitals"
    with pytest.raises(UsageError, match="no task has 'shortes'; did you mean 'shortest'"):
        make_tasks(["capitals"], ["shortes=1"])


def test_a_class_is_registered_with_its_recipe_if_it_needs_no_arguments() -> None:
    before = set(REGISTRY)
    blimp = type(REGISTRY["blimp"])
    type("Asking", (blimp,), {"name": "asking", "__init__": lambda self, config, more: None})
    type("Nameless", (blimp,), {})
    assert set(REGISTRY) == before
    assert type(REGISTRY["ner"].config).__name__ == "Ner"
    assert type(REGISTRY["pseudo_perplexity"].config).__name__ == "PseudoPerplexity"


def test_a_task_from_outside_cannot_take_the_name_of_another_one() -> None:
    """Nor where it is defined before anything asks for a task."""
    code = """
from types import new_class

from chronomask.config import Config
from chronomask.errors import UsageError
from chronomask.evaluate.task import Task

class Settings(Config):
    must: int

methods = {name: lambda self, *rest: "" for name in ("data_sha256", "check", "run")}
for base, name, family in (
    (Task[Config], "glue", "own"), (Task[Config], "cola", "own"), (Task[Config], "own", "cola"),
    (Task[Settings], "own", "own"), (Task, "own", "own"), (Task[Config], "own", None),
):
    try:
        body = {"name": name, "family": family, **methods}
        new_class("Own", (base,), exec_body=lambda names: names.update(body))
        print("defined")
    except UsageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert "a task or a family called 'glue'" in said[0]
    assert "a task or a family called 'cola'" in said[1]
    assert "a task called 'cola': choose another family" in said[2]
    assert "'must' is missing; give every setting a default" in said[3]
    assert "derive the class from Task[Settings]" in said[4]
    assert "needs a name and a family" in said[5]


def test_tasks_and_the_results_of_before_have_the_same_titles_and_kinds() -> None:
    """Results and comparisons of earlier versions state neither."""
    for name, task in REGISTRY.items():
        assert title_of_task(name) == (task.title or name.replace("_", " "))
        assert trains_model(task.family) == task.trains_model


def save(tmp_path: Path, data: PreparedData) -> Path:
    save_tiny(tmp_path / "model", data.tokenizer_path)
    return tmp_path / "model"


@pytest.mark.usefixtures("capitals")
def test_a_task_from_outside_runs_in_a_study(tmp_path: Path, tiny_data: PreparedData) -> None:
    (tmp_path / "words.txt").write_text("baco\ndifu\n東京\n")
    tasks = {"capitals": {"settings": {"shortest": 2}}}
    study = opened(study_values(tiny_data, tmp_path, tasks), tmp_path)
    assert not run_study(study, study.in_order()).failed
    (result,) = read_results(
        list((study.folder / "runs" / "fixed" / "seed-0" / "results").iterdir())
    )
    assert result.recipe == {"shortest": 2, "limit": None}
    compare_study(study)
    compared = read_comparison(study.folder)["tasks"][-1]
    assert (compared["title"], compared["trains_model"]) == ("Known spellings", False)
    page = report(study.folder, tmp_path / "report").read_text(encoding="utf-8")
    assert "Known spellings" in page
    (run,) = (path.parent for path in study.folder.glob("runs/*/*/summary.json"))
    assert "Known spellings" in report(run, tmp_path / "of run").read_text(encoding="utf-8")
    results = next((run / "results").iterdir())
    assert str(compare(results)).splitlines()[1].startswith("Known spellings  accuracy, %")
    tasks["capitals"]["settings"]["shortest"] = 3
    again = opened(study_values(tiny_data, tmp_path, tasks), tmp_path)
    with pytest.raises(UsageError, match=r"made with another recipe \(shortest\)"):
        again.is_complete(again.units[-1])


def test_settings_in_a_study_are_blamed_on_the_study() -> None:
    assert make_task("cola", {"epochs": 1}, "tasks.cola.settings").recipe["epochs"] == 1
    with pytest.raises(UsageError, match=r"tasks\.cola\.settings: epochs is 0"):
        make_task("cola", {"epochs": 0}, "tasks.cola.settings")
    with pytest.raises(UsageError, match="'glue' is a family; name its tasks: cola, sst2"):
        make_task("glue", {}, "tasks.glue.settings")


def test_a_study_names_the_task_files_that_are_missing(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    study = opened(study_values(tiny_data, tmp_path / "none", {"blimp": {}}), tmp_path)
    outcome = run_study(study, study.in_order())
    assert ["does not exist" in why for _, why in outcome.failed] == [True]


def test_results_written_with_the_old_names_of_precisions_are_kept(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    (tmp_path / "text.txt").write_text("baco difu\n")
    model = find_subject(str(save(tmp_path, tiny_data)))
    (task,) = make_tasks(["pseudo_perplexity"])
    evaluate(model, [task], tmp_path, [0], tmp_path / "out", progress=False)
    path = TaskResult.path_in(tmp_path / "out", "pseudo_perplexity", 0)
    values = json.loads(path.read_text())
    assert values["recipe"]["precision"] == "fp32"
    values["recipe"]["precision"] = "float32"
    path.write_text(json.dumps(values))
    (kept,) = evaluate(model, [task], tmp_path, [0], tmp_path / "out", progress=False)
    assert kept.recipe["precision"] == "fp32"
    (half,) = make_tasks(["pseudo_perplexity"], ["precision=bf16"])
    with pytest.raises(UsageError, match=r"made with other recipe\.precision"):
        evaluate(model, [half], tmp_path, [0], tmp_path / "out", progress=False)


def test_where_files_lie_and_what_computes_are_in_no_recipe(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    """Results of other names of the same files, and of earlier versions, which had them there, are kept."""
    for name in sorted(REGISTRY):
        assert make_task(name, {}, "").recipe.keys().isdisjoint({"device", "treebank", "dataset"})
    (tmp_path / "text.txt").write_text("baco difu\n")
    model = find_subject(str(save(tmp_path, tiny_data)))
    for settings in ([], ["device=cpu"]):
        tasks = make_tasks(["pseudo_perplexity"], settings)
        (result,) = evaluate(model, tasks, tmp_path, [0], tmp_path / "out", progress=False)
        path = TaskResult.path_in(tmp_path / "out", "pseudo_perplexity", 0)
        values = json.loads(path.read_text())
        values["recipe"]["device"] = "auto"
        path.write_text(json.dumps(values))
        assert TaskResult.load(path) == result


@pytest.mark.parametrize(("faster", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_result_says_which_precision_auto_was(
    faster: bool,
    precision: str,
    tmp_path: Path,
    tiny_data: PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "_host_is_faster_in_bf16", lambda: faster)
    (tmp_path / "text.txt").write_text("baco difu\n")
    model = find_subject(str(save(tmp_path, tiny_data)))
    (task,) = make_tasks(["pseudo_perplexity"], ["precision=auto", "device=cpu"])
    (result,) = evaluate(model, [task], tmp_path, [0], tmp_path / "out", progress=False)
    assert result.recipe["precision"] == precision
    assert task.differing_settings(result) == []


def test_tasks_and_their_recipes_are_read_without_torch() -> None:
    code = (
        "import sys\n"
        "import chronomask.evaluate.curve, chronomask.evaluate.subject\n"
        "from chronomask.evaluate.tasks import make_tasks\n"
        "make_tasks(['glue', 'squad', 'blimp', 'probe', 'intrinsic'], ['limit=3'])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'numba', 'scipy', 'sklearn', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "[]"


def test_a_refusal_for_missing_files_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from chronomask.errors import UsageError\n"
        "from chronomask.evaluate.evaluate import evaluate\n"
        "from chronomask.evaluate.subject import Subject\n"
        "from chronomask.evaluate.tasks import REGISTRY, make_tasks\n"
        "empty = Path(sys.argv[1])\n"
        "for name in REGISTRY:\n"
        "    try:\n"
        "        evaluate(Subject('m', empty), make_tasks([name]), empty, [0], empty / 'out')\n"
        "    except UsageError as error:\n"
        "        print(name)\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(printed.stdout.split()) == NUM_TASKS


def test_study_files_name_tasks_as_the_command_does(
    tmp_path: Path, tiny_data: PreparedData
) -> None:
    values = study_values(tiny_data, tmp_path, {"colla": {}})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises((UsageError, DataError), match="unknown task 'colla'; did you mean 'cola'"):
        opened(values, tmp_path)
