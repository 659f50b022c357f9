"""Every block of code in the README and in docs/ says what is so: it runs, or is parsed by what it is for."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import chronomask as cm
from chronomask.cli import app
from chronomask.config_layers import Layer
from chronomask.data.folder import PreparedData
from chronomask.data.parquet import export_parquet
from chronomask.errors import UsageError
from chronomask.evaluate.tasks import REGISTRY, make_tasks
from chronomask.masking import ratio
from chronomask.masking.config import MaskingConfig
from chronomask.prepare.config import PrepareConfig
from chronomask.recipes import find_recipe
from chronomask.runs.layout import RunFolder
from chronomask.study.config import StudyConfig, load_study, study_of
from chronomask.train.config import RunConfig
from tests.support.comparisons import comparison, task
from tests.support.documents import (
    ROOT,
    Code,
    chronomask_words,
    commands,
    fenced,
    python_blocks,
    spans,
)
from tests.support.synthetic_runs import write_run

KINDS = {"python", "diff", "yaml", "bash", "text", "{toctree}", "{include}"}
RUN_ELSEWHERE = {
    "README.md": "tests/test_face.py, and tests/packaging/test_wheel.py with the core alone",
    "docs/integrations/lightning.md": "tests/integrations/test_pages.py",
    "docs/integrations/plain.md": "tests/integrations/test_pages.py",
    "docs/integrations/transformers.md": "tests/integrations/test_pages.py",
    "docs/integrations/workers.md": "tests/integrations/test_pages.py",
}
"""Pages whose Python runs in a test of its own."""
CHECKED_BY_EYE = {
    "git", "hf", "pip", "sbatch", "set", "source", "twine",
}  # fmt: skip
"""Commands of others, which nothing here can parse."""
CONFIGS = (MaskingConfig, RunConfig, PrepareConfig, StudyConfig)


class WorkBegins(Exception):
    """A command has accepted its request."""


def begin_work(*_: Any, **__: Any) -> None:
    raise WorkBegins


def named(codes: list[Code]) -> Any:
    return pytest.mark.parametrize("code", codes, ids=str)


def test_every_block_says_what_it_is() -> None:
    kinds = {str(code): code.kind for code in fenced()}
    assert set(kinds.values()) <= KINDS, {k: v for k, v in kinds.items() if v not in KINDS}
    assert set(RUN_ELSEWHERE) <= {code.page for code in fenced("python", "diff")}


@pytest.fixture
def forget_tasks() -> Iterator[None]:
    """What a page defines is known in its test alone."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.usefixtures("forget_tasks")
@pytest.mark.parametrize(
    "page",
    sorted({code.page for code in fenced("python", "diff")} - RUN_ELSEWHERE.keys()),
)
def test_python_runs(
    page: str, tiny_data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where the reader's files lie, with the names that a page says its reader has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus").symlink_to(tiny_data.path)
    export_parquet(tiny_data, tmp_path / "out")
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, name, weighted=True)
    (tmp_path / "runs" / "tiny").mkdir()
    made = comparison([task("validation_loss", {"a": (0.01, 0.03), "b": (-0.01, 0.03)})])
    (tmp_path / "runs" / "tiny" / "comparison.json").write_text(json.dumps(made))
    for family in (ratio.Schedule, ratio.PureSchedule):  # other tests define the same class
        others = {kind: member for kind, member in family.kinds().items() if kind != "sawtooth"}
        monkeypatch.setattr(family, "_members", others)
    names: dict[str, Any] = {"__name__": f"page.{page}", "cm": cm}
    for number, code in enumerate(python_blocks((ROOT / page).read_text(encoding="utf-8")), 1):
        endless = "for rows in RowLoader(" in code
        code = code.replace("    ...\n", "    break\n") if endless else code
        exec(compile(code, f"{page}, block {number}", "exec", dont_inherit=True), names)


@named(fenced("yaml"))
def test_yaml_is_a_valid_config(code: Code, tmp_path: Path) -> None:
    """It is parsed by the first config that has all its keys; what such a config must have is added."""
    values = yaml.safe_load(code.text)
    config = next(c for c in CONFIGS if values.keys() <= c.model_fields.keys())
    if config is StudyConfig:
        folder = tmp_path / "studies"
        folder.mkdir()
        (folder / "base.yaml").write_text("model: {kind: config, model_type: bert}\nsteps: 2000\n")
        (folder / "study.yaml").write_text(code.text)
        load_study(folder / "study.yaml")
        return
    needed = {RunConfig: {"data": "data"}, PrepareConfig: {"sources": ["text.txt"]}}
    assert config.parse(needed.get(config, {}) | values)


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name, in which every command stops once its request is accepted."""
    monkeypatch.chdir(tmp_path)
    for name in ("docs", "src", "benchmarks", "scripts", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = RunConfig.parse({"data": "data", "model": {"kind": "config", "model_type": "bert"}})
    for name in ("RUN", "runs/ptw"):
        folder = RunFolder(tmp_path / name)
        (folder.path / "checkpoints" / "step-00008000").mkdir(parents=True)
        folder.config.write_text(run.to_yaml())
        folder.summary.write_text('{"complete": true}')
        folder.metrics.write_text('{"class_weight": {"NOUN": 1.0}, "content_strength": 1.0}\n')
    monkeypatch.setattr(sys.modules["chronomask.cli.pretrain"], "_train", begin_work)
    for work in (
        "chronomask.train.dry_run.dry_run",
        "chronomask.prepare.pipeline.prepare",
        "chronomask.prepare.pipeline.prepare_share",
        "chronomask.evaluate.subject.find_subject",
    ):
        monkeypatch.setattr(work, begin_work)
    monkeypatch.setattr("chronomask.adapt.adapt", accept_adapt)
    monkeypatch.setattr("chronomask.evaluate.curve.evaluate_curve", accept_curve)
    monkeypatch.setattr("chronomask.study.command.run", accept_study)
    monkeypatch.setattr("chronomask.study.command.plan", accept_study)
    return tmp_path


def accept_adapt(checkpoint: str, sources: list[str], out: Path, plan: Any, **_: Any) -> None:
    first = Layer.of_file(find_recipe("adapt"))
    RunConfig.from_layers([first, Layer("data", {"data": "data"}), *plan.layers])
    PrepareConfig.from_layers([Layer("text", {"sources": sources}), *plan.preparation])
    begin_work()


def accept_curve(run: Path, plan: Any, *_: Any, **__: Any) -> None:
    make_tasks(plan.tasks, plan.overrides, plan.limit)
    begin_work()


def accept_study(path: Path | None, out: Path, *, changes: Any, **_: Any) -> None:
    assert path is not None
    load_study(path, changes)
    begin_work()


PARSED_ALONE = {"compare", "data", "inspect", "push", "quickstart", "replay", "report"}
"""Commands that take no config: their own parser is all that refuses a request."""


@named(fenced("bash"))
def test_commands_are_accepted(code: Code, readers_folder: Path) -> None:
    for words in commands(code):
        mine = chronomask_words(words)
        if mine is None:
            check_other(words)
            continue
        mine = [os.path.expandvars(word.replace("$SLURM_ARRAY_TASK_ID", "2")) for word in mine]
        mine = ["bert-small" if word == "CONFIG" else word for word in mine]
        command: Any = typer.main.get_command(app)
        if mine[0] in PARSED_ALONE or mine[:2] in (["study", "status"], ["study", "report"]):
            context = command.make_context("chronomask", mine[:1])
            while mine and (inner := getattr(command, "commands", {}).get(mine[0])):
                command, mine = inner, mine[1:]
            command.make_context(command.name, mine, parent=context)
            continue
        if mine[0] == "recipes":
            command.main(mine, standalone_mode=False)
            continue
        with pytest.raises(WorkBegins):
            command.main(mine, standalone_mode=False)


def check_other(words: list[str]) -> None:
    """A command that is not chronomask: a target of make, a module, a file of the repository."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "python" and words[1] == "-m":
        assert find_spec(words[2]), words
    elif words[0] == "python" or "/" in words[0]:
        file = words[1] if words[0] == "python" else words[0]
        assert (ROOT / file).is_file(), words
    else:
        assert words[0] in CHECKED_BY_EYE, words


def option_names(command: Any) -> set[str]:
    own = {name for parameter in command.params for name in parameter.opts}
    return own | {"--help", "-h"}


@named([code for code in spans() if re.match(r"(chronomask|torchrun) \S", code.text)])
def test_commands_within_sentences_exist(code: Code) -> None:
    """Often only a part of a command stands there: what stands there must exist."""
    words = chronomask_words(code.text.split()) or []
    command: Any = typer.main.get_command(app)
    while words and (inner := getattr(command, "commands", None)) and words[0] in inner:
        command, words = inner[words[0]], words[1:]
    assert command.name != app.info.name or not words or words[0].startswith("-"), code.text
    options = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert options <= option_names(command), code.text


CHANGES = r"--(set|content) '?([\w.]+=(?:\[[^\]]*\]|[^\s'…]+)|(?<=content )\w+)"


@named([code for code in spans() if re.search(r"--set '?[a-z][\w.]*=[^\s…]", code.text)])
def test_keys_and_values_of_changes_exist(code: Code) -> None:
    found = [
        text if flag == "set" else f"masking.content.kind={text}"
        for flag, text in re.findall(CHANGES, code.text)
    ]
    assert found
    assert accepted(found), f"{code}: no config takes {found}"


def accepted(changes: list[str]) -> bool:
    """Whether some config takes changes: of a run, a preparation, a study or the tasks."""
    layers = list(map(Layer.of_override, changes))
    attempts = (
        lambda: RunConfig.from_layers([Layer("a run", {"data": "data"}), *layers]),
        lambda: PrepareConfig.from_layers([Layer("text", {"sources": ["a.txt"]}), *layers]),
        lambda: StudyConfig.from_layers([Layer("tiny", study_of("tiny").to_dict()), *layers]),
        lambda: make_tasks(list(REGISTRY), changes),
    )
    for attempt in attempts:
        try:
            attempt()
        except UsageError:
            continue
        return True
    return False


FILES = re.compile(r"(?:src|tests|docs|benchmarks|examples|scripts|tagger)/[\w./-]*\w/?")


def test_files_and_names_within_sentences_exist() -> None:
    wrong = [f"{code}: {code.text}" for code in spans() if not exists(code.text)]
    assert not wrong, "\n".join(wrong)


def exists(text: str) -> bool:
    """Whether code that names a file, a test, a module or a name of the face leads to it; else True."""
    if FILES.fullmatch(text):
        return (ROOT / text).exists()
    if text.startswith("python -m benchmarks.") or text.startswith("python -m tests."):
        return find_spec(text.split()[2]) is not None
    if re.fullmatch(r"make [\w-]+", text):
        check_other(text.split())
    if match := re.fullmatch(r"cm\.(\w+)(?:\.(\w+))?(?:\(.*)?", text):
        value = getattr(cm, match[1], None)
        return value is not None and (match[2] is None or hasattr(value, match[2]))
    if re.fullmatch(r"chronomask(\.\w+)+", text) and not text.endswith(".safetensors"):
        return resolves(text)
    if match := re.fullmatch(r"…?(?:([\w/]+\.py))?::(test_\w+)(…?)", text):
        names = names_of_tests(Path(match[1] or "test_*.py").name)
        return any(name == match[2] or (match[3] and name.startswith(match[2])) for name in names)
    return True


@cache
def names_of_tests(pattern: str) -> set[str]:
    """The names of the test functions of files whose name fits."""
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob(pattern)]
    return {name for text in texts for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    module, _, name = dotted.rpartition(".")
    try:
        if find_spec(dotted):
            return True
    except ModuleNotFoundError:
        pass
    try:
        return hasattr(import_module(module), name)
    except ModuleNotFoundError:
        outer, _, cls = module.rpartition(".")
        return hasattr(getattr(import_module(outer), cls), name)
