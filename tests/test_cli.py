"""The command line as a user meets it: what it prints, refuses, and exits with."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import import_module
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from chronomask import __version__, cli, storage
from chronomask.adapt import Plan
from chronomask.config_layers import merge, read_yaml
from chronomask.data.folder import PreparedData
from chronomask.errors import ChronomaskError, RunError, UsageError
from chronomask.model.config import FromCheckpoint, FromConfig
from chronomask.prepare import pipeline
from chronomask.prepare.config import PrepareConfig
from chronomask.recipes import find_recipe, recipes
from chronomask.train import loop, saving
from chronomask.train.config import RunConfig
from tests.support.processes import python_path
from tests.support.results import result
from tests.support.synthetic_runs import write_run

TINY_MODEL = {
    "kind": "config",
    "model_type": "bert",
    "overrides": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
}


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process; the outcome never holds a traceback."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["chronomask", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def config(tmp_path: Path, tiny_data: PreparedData) -> Path:
    values = {
        "data": str(tiny_data.path),
        "model": TINY_MODEL,
        "steps": 4,
        "rows_per_step": 4,
        "device": "cpu",
        "masking": {"ratio": {"kind": "cosine_decay"}, "content": {"kind": "ptw"}},
        "validation": {"rows": 8},
        "checkpoint": {"every": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def refused(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("chronomask: ")
    assert len(outcome.err.strip().splitlines()) == 1
    for word in words:
        assert word in outcome.err


def commands() -> list[list[str]]:
    """Every command by its words, groups included."""
    found: list[list[str]] = [[]]
    for words in found:
        group: Any = typer.main.get_command(cli.app)
        for word in words:
            group = group.commands[word]
        found += [[*words, name] for name in getattr(group, "commands", ())]
    return found


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("prepare", "", "--out", "data"), "the argument behind 'prepare' is empty"),
        (("inspect", "Some words.", "--out", ""), "the argument behind '--out' is empty"),
        (("report", "runs/a", "--out="), "the value of --out is empty"),
        (("pretrain", "bert-tiny", "--set="), "the value of --set is empty"),
    ],
)
def test_an_argument_without_characters_is_no_folder(
    run: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    where: str,
) -> None:
    """A variable of the shell without a value would stand for the current folder."""
    monkeypatch.chdir(tmp_path)
    refused = run(*arguments)
    assert refused.code == 2
    assert refused.err.startswith(f"chronomask: {where}, as a variable of the shell")
    assert not list(tmp_path.iterdir())


def test_a_tilde_that_the_shell_left_is_the_home_folder(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves that of ``--out=~/data``; a folder of the name ``~`` is a trap for who removes it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = tmp_path / "home" / "words.txt"
    text.parent.mkdir()
    text.write_text("a few words\n\n" * 400)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = ["--vocab-size", "200", "--set", "txt_documents=lines", "--tagger", "none"]
    assert run("prepare", "~/words.txt", "--out=~/data", *settings).code == 0
    assert (text.parent / "data" / "manifest.json").exists()
    (text.parent / "run.yaml").write_text("data: ~/nowhere\n")
    refused(
        run("pretrain", "~/run.yaml", "--out", "r"), 2, f"{text.parent}/nowhere is not a folder"
    )
    assert list(Path().iterdir()) == []


def test_what_runs_once_is_refused_under_torchrun(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process would do all of it; a job whose machines have a number each is not meant."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run("study", "run", "no-study.yaml", "--out", "s"), 2, "no-study.yaml")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some-run")
    where_it_is_said = {
        ("study", "run", "no-study.yaml", "--out", "s"): "study run --workers",
        ("adapt", "a", "b", "--out", "c"): "pretrain adapt --model",
        ("evaluate", "a", "--tasks", "mlm"): "several commands at once",
        ("prepare", "a", "--out", "b"): "--only",
        ("quickstart",): "start it without torchrun",
        ("replay", "a"): "start it without torchrun",
    }
    for words, way_out in where_it_is_said.items():
        refused(run(*words), 2, f"{words[0]} runs in one process, and torchrun started 2", way_out)
    assert run("recipes").code == 0
    refused(run("pretrain", "bert-tiny", "--data", "none", "--out", "r"), 2, "none is not a folder")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refused(run("study", "run", "no-study.yaml", "--out", "s"), 2, "no-study.yaml")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(run, flag: str) -> None:
    for words in commands():
        outcome = run(*words, flag)
        assert outcome.code == 0
        assert f"chronomask {' '.join(words)}".strip() in outcome.out
        assert not outcome.err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_few_characters_shows_what_it_can(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    terminal = TextIOWrapper(BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["chronomask", "recipes"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    terminal.flush()
    assert ended.value.code == 0
    assert b"bert-tiny" in terminal.buffer.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_folder_that_was_removed_below_a_command_is_told(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    outcome = run("recipes")
    assert outcome.code == 2
    assert outcome.err.startswith("chronomask: the current folder was removed")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is full")
@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        ["recipes"],
        ["recipes", "bert-tiny"],
        ["inspect", "Some words of a text."],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_what_is_printed_is_told_in_one_line(
    words: list[str], unbuffered: str
) -> None:
    command = [sys.executable, "-m", "chronomask", *words]
    environment = os.environ | {"PYTHONPATH": python_path(), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.stderr == (
        "chronomask: standard output cannot be written: No space left on device; send it to another place, "
        "or make room\n"
    )
    assert done.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is full")
def test_a_refusal_that_prints_nothing_there_is_what_it_was() -> None:
    command = [sys.executable, "-m", "chronomask", "pretrain", "bert-tiny", "--devices", "2"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "chronomask: --devices belongs to --dry-run: give both, or leave it out"
    ]


def test_a_reader_that_has_gone_is_no_error_to_tell() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "chronomask", "recipes"]
    environment = os.environ | {"PYTHONPATH": python_path(), "PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("closed", "words", "code", "said"),
    [
        (1, ["inspect", "The cat sat."], 0, ""),
        (1, ["recipes"], 0, ""),
        (2, ["recipes", "bert-tiny"], 0, None),
        (2, ["recipes", "nope"], 2, ""),
    ],
)
def test_what_is_printed_may_be_closed(
    closed: int, words: list[str], code: int, said: str | None
) -> None:
    """And a refusal never takes the place of output."""
    command = shlex.join([sys.executable, "-m", "chronomask", *words])
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(
        ["sh", "-c", f"{command} <&- {closed}>&-"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    if said is not None:
        assert done.stdout == said


def test_warnings_cannot_act_on_the_terminal(
    run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(sys.stderr))
    assert run("--version").code == 0
    assert logging.lastResort is not None
    logging.lastResort.handle(logging.makeLogRecord({"msg": "file \x1b[2J.txt", "levelno": 30}))
    assert capsys.readouterr().err == "file \\x1b[2J.txt\n"


def test_python_without_docstrings_is_refused() -> None:
    command = [sys.executable, "-OO", "-m", "chronomask", "recipes"]
    environment = os.environ | {"PYTHONPATH": python_path()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "use -O, or neither" in done.stderr


def test_a_group_without_a_command_shows_its_help(run) -> None:
    assert "pretrain" in run().out
    assert "verify" in run("data").out
    assert "status" in run("study").out


def test_the_help_groups_commands_and_flags(run) -> None:
    outcome = run("--help").out
    for heading in ("From text to a model", "Compare", "Look and learn", "--install-completion"):
        assert heading in outcome
    assert "Values of the config" in run("pretrain", "--help").out


def test_the_version(run) -> None:
    assert run("--version").out == f"chronomask {__version__}\n"
    assert run("-V").out == run("--version").out


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["pretrian"], "pretrain"),
        (["pretrain", "--stesp", "3"], "--steps"),
        (["evaluate", "model"], "Missing option '--tasks'"),
        (["prepare"], "Missing option '--out'"),
        (["quickstart", "--steps", "3"], "Invalid value for '--steps'"),
        (["quickstart", "--steps", "few"], "Invalid value for '--steps'"),
        (["data", "shwo"], "show"),
        (["recipes", "one", "two"], "unexpected extra argument"),
        (["report"], "Missing argument"),
        (["pretrain", "--data", "a", "-d", "b", "--out", "r"], "--data is given 2 times"),
        (["data", "show", "a", "--row", "1", "--row", "1"], "--row is given 2 times"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(run, words: list[str], advice: str) -> None:
    outcome = run(*words)
    refused(outcome, 2, advice, "--help")
    command = outcome.err.rpartition("; see ")[2].split()
    assert run(*command[1:]).code == 0  # the way out can be gone


def test_what_would_act_on_a_terminal_is_shown_instead(run) -> None:
    outcome = run("pretrain", "evil\x1b[2J\u202e.yaml", "--out", "r")
    refused(outcome, 2, "\\x1b", "\\u202e")
    assert outcome.err.isprintable() or outcome.err.strip().isprintable()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("chronomask pretrain bert-t", {"bert-tiny"}),
        (
            "chronomask pretrain bert-tiny arms/mrd-",
            {"arms/mrd-cosine", "arms/mrd-linear", "arms/mrd-ptw"},
        ),
        ("chronomask study run study/t", {"study/tiny"}),
        ("chronomask recipes prepare/", {"prepare/english"}),
        ("chronomask pretr", {"pretrain"}),
        ("chronomask pretrain --precis", {"--precision"}),
    ],
)
def test_a_shell_completes(
    run, monkeypatch: pytest.MonkeyPatch, words: str, found: set[str]
) -> None:
    monkeypatch.setenv("_CHRONOMASK_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert set(run().out.split()) == found


def test_recipes_are_listed_and_printed(run) -> None:
    listing = run("recipes").out
    for recipe in recipes():
        assert f"  {recipe.name} " in listing
        assert recipe.summary in listing
        assert recipe.summary.endswith(".")
        assert run("recipes", recipe.name).out == recipe.path.read_text(encoding="utf-8")
    refused(run("recipes", "bert-tny"), 2, "did you mean 'bert-tiny'?", "chronomask recipes")


def test_a_setting_where_a_recipe_stands_is_told_its_place(run) -> None:
    refused(
        run("pretrain", "bert-tiny", "steps=5", "--data", "d", "--out", "r"), 2, "--set steps=5"
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configs that training was started with; it does nothing else."""
    configs: list[RunConfig] = []
    monkeypatch.setattr(loop, "pretrain", lambda config, *_, **__: configs.append(config))
    return configs


def test_pretraining_needs_data_and_a_folder_alone(
    run, trained: list[RunConfig], tiny_data: PreparedData, tmp_path: Path
) -> None:
    outcome = run("pretrain", "--data", tiny_data.path, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert trained == [RunConfig(data=str(tiny_data.path))]


@pytest.mark.parametrize(
    ("command", "groups", "wrong"),
    [
        ("pretrain", ("", "arms"), {"masking": {"ratio": "cosine_dekay", "budgets": "row"}}),
        ("prepare", ("prepare",), {"packing": "heap", "row_lengths": 128}),
        ("study", ("study",), {"base": {"steps": "many"}, "tasks": {"cola": {"seed": 1}}}),
    ],
)
def test_editors_check_files_by_a_schema_that_knows_every_recipe(
    run, command: str, groups: tuple[str, ...], wrong: dict[str, Any]
) -> None:
    schema = json.loads(run("recipes", "--schema", command).out)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    read = [
        yaml.safe_load(recipe.path.read_text()) for group in groups for recipe in recipes(group)
    ]
    assert read
    of_runs = [RunConfig.of("bert-tiny").to_dict(), {"optimiser": {"weight_decay": 0.1}}]
    for values in (*read, *(of_runs if command == "pretrain" else ())):
        validator.validate(values)
    places = {tuple(error.absolute_path) for error in validator.iter_errors(wrong)}
    assert len(places) == 2, places
    refused(
        run("recipes", "bert-tiny", "--schema", command), 2, "'bert-tiny', or --schema", "not both"
    )
    refused(
        run("recipes", "--schema", "pretrian"), 2, "'pretrian' is not one of 'pretrain', 'prepare'"
    )


def test_recipes_flags_and_changes_lie_over_each_other(
    run, trained: list[RunConfig], tiny_data: PreparedData, tmp_path: Path
) -> None:
    outcome = run(
        "pretrain", "bert-small", "arms/fixed-30", "--data", tiny_data.path, "--out", tmp_path / "r",
        "--steps", "1e3", "--rows", "8", "--ratio", "0.4:0.2", "--content", "ptw", "--seed", "7",
        "--device", "cpu", "--precision", "bf16", "--set", "masking.ratio.end=0.1",
        "--set", "learning_rate.peak=1e-3",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    by_hand = RunConfig.parse(
        merge(read_yaml(find_recipe("bert-small")), read_yaml(find_recipe("fixed-30", "arms")))
    )
    assert trained == [
        by_hand.replace(
            [
                f"data={tiny_data.path}", "steps=1000", "rows_per_step=8", "seed=7", "device=cpu",
                "precision=bf16", "masking.ratio={kind: linear, start: 0.4, end: 0.1}",
                "masking.content.kind=ptw", "learning_rate.peak=0.001",
            ]
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "ratio"),
    [
        ("0.2", {"kind": "constant", "base": 0.2}),
        (".2", {"kind": "constant", "base": 0.2}),
        ("2e-1", {"kind": "constant", "base": 0.2}),
        ("0.30:0.15", {"kind": "linear", "start": 0.3, "end": 0.15}),
        ("linear_decay", {"kind": "linear_decay", "base": 0.15}),
    ],
)
def test_the_ways_to_write_a_ratio(
    run, trained: list[RunConfig], tiny_data: PreparedData, tmp_path: Path, text: str, ratio: dict
) -> None:
    outcome = run("pretrain", "--data", tiny_data.path, "--out", tmp_path / "r", "--ratio", text)
    assert outcome.code == 0, outcome.err
    assert trained[0].masking.ratio.model_dump() == ratio


def test_the_ways_to_name_a_model(
    run, trained: list[RunConfig], tiny_data: PreparedData, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    start = ["--data", tiny_data.path, "--out", tmp_path / "r"]
    for recipe, model, expected in (
        ([], "modernbert", FromConfig(model_type="modernbert")),
        (["bert-tiny"], "bert", RunConfig.load(find_recipe("bert-tiny")).model),
        (["bert-tiny"], "roberta", FromConfig(model_type="roberta")),  # sizes are of their own type
        (["bert-tiny"], tmp_path / "model", FromCheckpoint(path=str(tmp_path / "model"))),
        ([], "owner/name", FromCheckpoint(path="owner/name")),
    ):
        outcome = run("pretrain", *recipe, *start, "--model", model)
        assert outcome.code == 0, outcome.err
        assert trained.pop().model == expected
    (tmp_path / "a.yaml").write_text("model: bert\n")  # which --model replaces
    outcome = run("pretrain", tmp_path / "a.yaml", *start, "--model", "modernbert")
    assert outcome.code == 0, outcome.err
    assert trained.pop().model == FromConfig(model_type="modernbert")


def test_a_folder_with_the_name_of_a_type_of_model_is_no_model(
    run,
    trained: list[RunConfig],
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a folder of runs; a model's folder is one by its config.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    start = ["pretrain", "--data", tiny_data.path, "--out", tmp_path / "r", "--model", "bert"]
    assert run(*start).code == 0
    assert trained.pop().model == FromConfig(model_type="bert")
    for file in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "bert" / file).write_text("")
    (tmp_path / "bert" / "checkpoints").mkdir()
    refused = run(*start)  # no new model beside a run that may be meant
    assert refused.code == 2
    assert "bert is not a model folder" in refused.err
    assert "it is a run" in refused.err
    shutil.rmtree(tmp_path / "bert")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")
    assert run(*start).code == 0
    assert trained.pop().model == FromCheckpoint(path="bert")


def test_another_type_of_model_says_which_sizes_it_drops(
    run,
    trained: list[RunConfig],
    tiny_data: PreparedData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And what it advises keeps them, where the type has them."""
    start = ["pretrain", "bert-tiny", "--data", tiny_data.path, "--out", tmp_path / "r"]
    assert run(*start, "--model", "roberta").code == 0
    (said,) = caplog.messages
    assert "not those given for bert (hidden_size, num_hidden_layers," in said
    trained.clear()
    caplog.clear()
    assert run(*start, *said.partition("give ")[2].split()[:2]).code == 0
    sizes = RunConfig.load(find_recipe("bert-tiny")).model.to_dict()["overrides"]
    assert trained.pop().model == FromConfig(model_type="roberta", overrides=sizes)
    assert run(*start, "--model", "bert").code == 0
    assert not caplog.messages
    assert run(*start, "--model", "distilbert").code == 0  # whose sizes have other names
    assert caplog.messages[0].endswith("name its own with  --set model.overrides.KEY=VALUE")


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["--steps", "many"], "--steps many: steps is 'many': it should be a valid integer"),
        (["--steps", "[1"], "--steps '[1': not valid YAML"),
        (["--steps", ".inf"], "'.inf' is not a finite number"),
        (["--steps", "true"], "--steps true: steps is true: expected a number"),
        (["--rows", "0"], "--rows 0: rows_per_step is 0: it should be greater than or equal to 1"),
        (["--ratio", "1.5"], "--ratio 1.5: masking.ratio.base is 1.5: it should be less than"),
        (["--ratio", "0.3:2"], "--ratio 0.3:2: masking.ratio.end is 2.0: it should be less than"),
        (
            ["--ratio", "0.3:"],
            "--ratio 0.3:: masking.ratio is '0.3:': expected a number from 0 to 1",
        ),
        (
            ["--ratio", "30%"],
            "--ratio 30%: masking.ratio is '30%': expected a number from 0 to 1",
        ),
        (
            ["--set", "masking.ratio=0,3"],
            "masking.ratio is '0,3': expected a number from 0 to 1",
        ),
        (["--ratio", "lin"], "did you mean 'linear'?"),
        (["--content", "ptv"], "--content ptv: masking.content.kind is 'ptv'; did you mean 'ptw'?"),
        (
            ["--model", "brt"],
            "--model brt: there is no such type of model, and no such folder; did you",
        ),
        (
            ["--model", "./no"],
            "./no is not a model folder: it has no config.json; name the folder of",
        ),
        (["--device", "cdua"], "--device cdua: device is 'cdua'; did you mean 'cuda'?"),
        (["--precision", "fp61"], "--precision fp61: precision is 'fp61'; did you mean 'fp32'?"),
        (["--seed", "1e99"], "--seed 1e99: seed is 1e+99: it is too large"),
        (["--set", "stepz=3"], "--set stepz=3: unknown key 'stepz'; did you mean 'steps'?"),
        (
            ["--steps", "3", "--set", "micro_batches=9999"],
            "--set micro_batches=9999: micro_batches (9999) must not exceed rows_per_step (32)",
        ),
        (["arms/mrd-cosin"], "did you mean 'arms/mrd-cosine'?"),
    ],
)
def test_a_wrong_flag_is_blamed_on_the_flag(
    run, tiny_data: PreparedData, tmp_path: Path, words: list[str], advice: str
) -> None:
    start = ["pretrain", "bert-tiny", "--data", tiny_data.path, "--out", tmp_path / "run"]
    outcome = run(*start, *words)
    refused(outcome, 2, advice)
    assert not (tmp_path / "run").exists()


def test_a_wrong_value_is_blamed_on_its_file(run, config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("steps: 4", "steps: four"))
    outcome = run("pretrain", "bert-tiny", config, "--out", tmp_path / "r", "--set", "seed=1")
    refused(outcome, 2, f"{config}: steps is 'four'")
    (tmp_path / "arm.yaml").write_text("masking: {ratio: {kind: constant, base: 7}}")
    outcome = run("pretrain", "bert-tiny", tmp_path / "arm.yaml", "--out", tmp_path / "r")
    refused(outcome, 2, f"{tmp_path / 'arm.yaml'}: masking.ratio.base is 7")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tiny_data: PreparedData) -> list[PrepareConfig]:
    """The configs that preparation was started with; it does nothing else."""
    configs: list[PrepareConfig] = []

    def prepare(config: PrepareConfig, *_: object, **__: object) -> PreparedData:
        configs.append(config)
        return tiny_data

    monkeypatch.setattr(pipeline, "prepare", prepare)
    return configs


def test_flags_of_a_preparation(run, prepared: list[PrepareConfig], tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    assert run("prepare", "a.txt", "b", "--out", tmp_path / "d").code == 0
    assert prepared.pop() == PrepareConfig.parse({"sources": ["a.txt", "b"]})
    outcome = run(
        "prepare", "a.txt", "--out", tmp_path / "d", "--config", "english", "--tokenizer",
        "byte_level_bpe", "--vocab-size", "1e3", "--row-length", "64", "--tagger", "none",
        "--held-out", "0.1", "--workers", "3", "--set", "packing.kind=concatenate",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    by_hand = {
        "sources": ["a.txt"], "tokenizer": {"kind": "byte_level_bpe", "vocab_size": 1000},
        "row_length": 64, "tagger": {"kind": "none"}, "held_out": 0.1, "workers": 3,
    }  # fmt: skip
    assert prepared.pop() == PrepareConfig.parse(by_hand)
    run("prepare", "a.txt", "--out", tmp_path / "d", "--tokenizer", tmp_path / "tokenizer")
    assert prepared.pop().tokenizer.model_dump()["path"] == str(tmp_path / "tokenizer")
    run("prepare", "a.txt", "--out", tmp_path / "d", "--tagger", "json")  # any installed package
    assert prepared.pop().tagger.model_dump() == {"kind": "spacy", "name": "json"}
    assert run("prepare", "--config", "english", "--out", tmp_path / "d").code == 0
    assert prepared.pop() == PrepareConfig.load(find_recipe("english", "prepare"))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            ["--tokenizer", "wordpice"],
            "--tokenizer wordpice: there is no such kind of tokenizer, and no such folder; did you mean",
        ),
        (["--tokenizer", "bert-base-cased"], "a model of the hub is named OWNER/NAME"),
        (
            ["--tokenizer", __file__],
            f"--tokenizer {__file__}: this is a file; give a folder with tokenizer",
        ),
        (["--tokenizer", "./no/folder"], "--tokenizer ./no/folder: there is no such folder"),
        (["--vocab-size", "3"], "--vocab-size 3: tokenizer.vocab_size is 3: it should be greater"),
        (["--row-length", "x"], "--row-length x: row_length is 'x'"),
        (
            ["--tagger", "englsh"],
            "--tagger englsh: there is no such tagger; did you mean 'english'? Valid: none, bands",
        ),
        (["--held-out", "2"], "--held-out 2: held_out is 2: it should be less than"),
        (["--workers", "-1"], "--workers -1: workers is -1"),
        (["--config", "englsh"], "did you mean 'prepare/english'?"),
        (["hub:@"], "SOURCES"),
    ],
)
def test_wrong_flags_of_a_preparation(run, tmp_path: Path, words: list[str], advice: str) -> None:
    outcome = run("prepare", "a.txt", "--out", tmp_path / "d", *words)
    refused(outcome, 2, advice)
    assert not (tmp_path / "d").exists()


def test_the_old_name_of_task_data(run, tmp_path: Path) -> None:
    outcome = run("evaluate", "model", "--tasks", "cola", "--data", tmp_path)
    refused(outcome, 2, "--task-data")
    assert "--data" not in run("evaluate", "--help").out.replace("--task-data", "")


def test_a_model_that_is_no_folder_has_no_data_to_be_measured_on(run, tmp_path: Path) -> None:
    outcome = run("evaluate", "nofolder", "--tasks", "mlm")
    refused(outcome, 2, "nofolder is not a folder here", "prepared data with --task-data")
    outcome = run("evaluate", "nofolder", "--tasks", "mlm,cola")
    refused(outcome, 2, "name the folder of the tasks' files: --task-data FOLDER")


def test_adapt_sets_the_preparation_and_the_run(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans: list[Plan] = []

    def remember(*args: Any, **_: Any) -> None:
        plans.append(args[3])
        raise UsageError("enough")

    monkeypatch.setattr(import_module("chronomask.adapt"), "adapt", remember)
    flags = ("txt_documents=lines", "seed=3", "packing.kind=documents")
    sets = [word for flag in flags for word in ("--set", flag)]
    refused(run("adapt", "model", "text", "--out", tmp_path / "out", *sets), 2, "enough")
    (plan,) = plans
    of_text = [{"txt_documents": "lines"}, {"packing.kind": "documents"}]
    assert [layer.values for layer in plan.preparation] == of_text
    assert [layer.values for layer in plan.layers] == [{"seed": 3}]

    words = ["--tasks", "cola,ner", "--set", "glue.epochs=1", "--set", "ner.part=test", *sets]
    refused(run("adapt", "model", "text", "--out", tmp_path / "out", *words), 2, "enough")
    assert plans[1].tasks == ("cola", "ner")
    assert list(plans[1].task_settings) == ["glue.epochs=1", "ner.part=test"]
    assert [layer.values for layer in plans[1].layers] == [{"seed": 3}]


def test_pretrain_resume_and_report(
    run,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "my run"
    outcome = run("pretrain", config, "--out", out, "--quiet")
    assert outcome.code == 0, outcome.err
    summary = json.loads((out / "summary.json").read_text())
    mean, loss = (summary[f"validation_{key}"] for key in ("mean_loss", "loss"))
    assert (
        f"mean loss of five yardsticks: {mean:.4f}; validation loss at 15 %: {loss:.4f}\n"
        in outcome.out
    )
    again = run("pretrain", "--out", out, "--resume", "--quiet")
    assert (again.code, again.out) == (0, outcome.out), again.err
    assert f"nothing is left to train; pretrain --branch '{out}' goes on" in caplog.text
    caplog.clear()
    longer = run("pretrain", "--out", out, "--resume", "--quiet", "--set", "rows_per_step=7")
    refused(longer, 2, "rows_per_step (checkpoint", "give pretrain --branch")
    assert "nothing is left to train" not in caplog.text
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shutil.rmtree(copy / "checkpoints")
    lost = run("pretrain", "--out", copy, "--resume", "--quiet")
    refused(lost, 2, f"{copy} has done all its steps, and its checkpoints are gone")
    assert "nothing is left to train" not in caplog.text
    moved = run("pretrain", "--out", out, "--resume", "--data", tmp_path / "gone")
    refused(moved, 2, "gone, which the run in", "is not there: if it was moved, give --data FOLDER")
    nothing = run("pretrain", "--out", tmp_path / "none", "--resume")
    refused(nothing, 2, f"{tmp_path / 'none'} holds no run to resume", "--data DATA")
    with monkeypatch.context() as second:
        second.setenv("RANK", "1")  # of the processes that torchrun starts the first one speaks
        assert run("pretrain", "--out", out, "--resume", "--quiet").out == ""
    page = run("report", out, "--out", tmp_path / "report")
    assert page.code == 0, page.err
    assert (tmp_path / "report" / "report.html").is_file()
    assert json.loads((out / "summary.json").read_text())["complete"] is True


@pytest.mark.parametrize(("error", "alone"), [(UsageError, True), (RunError, False)])
def test_what_all_processes_would_say_is_said_once(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[ChronomaskError], alone: bool
) -> None:
    """The first one says it; torchrun has the message of every one, in the file that it names."""

    def refuse(*_: object) -> None:
        raise error("the reason")

    monkeypatch.setattr(cli, "_refuse_empty", refuse)
    for rank, speaks in (("0", True), ("1", not alone)):
        file = tmp_path / f"error-{rank}.json"
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
        outcome = run("pretrain")
        assert outcome.code == error.exit_code
        assert outcome.err == ("chronomask: the reason\n" if speaks else "")
        failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
        assert failure.error_file_data["message"]["message"] == "the reason"
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")  # another launcher reads no file
    assert run("pretrain").err == "chronomask: the reason\n"


def test_torchrun_hears_of_a_full_disk(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a/file")

    monkeypatch.setattr(cli, "_refuse_empty", fail)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run("pretrain").code == 1
    told = ProcessFailure(0, 1, 1, str(tmp_path / "error.json")).error_file_data["message"]
    assert told["message"].startswith("a/file: No space left on device")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("the reason"), "ZeroDivisionError: the reason"),
        (OSError(5, "the reason"), "[Errno 5] the reason"),
        (ValueError("no ratio 'gloomy'"), "ValueError: no ratio 'gloomy'"),
        (RuntimeError("NCCL error: out of memory"), "RuntimeError: NCCL error: out of memory"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), None),
    ],
)
def test_torchrun_hears_what_ended_a_process_by_itself(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, told: str | None
) -> None:
    """Not that a process has lost another, which is no cause."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_refuse_empty", fail)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(type(error)):
        run("pretrain")
    if told is None:
        assert not (tmp_path / "error.json").exists()
        return
    failure = ProcessFailure(0, 1, 1, str(tmp_path / "error.json"))
    assert failure.error_file_data["message"]["message"] == told
    assert failure.timestamp < time.time() - 0.5  # before those of the same second


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("masking.ratio.kind=cosine_dcay", ["masking.ratio", "did you mean 'cosine_decay'"]),
        ("masking.ratio.bse=0.2", ["masking.ratio", "bse", "did you mean 'base'"]),
        ("masking.ratio.base=1.5", ["masking.ratio", "1.5", "less than or equal to 1"]),
        ("stepz=3", ["unknown key 'stepz'", "did you mean 'steps'"]),
        ("precision=fp31", ["precision", "did you mean 'fp32'"]),
        ("steps", ["not of the form"]),
        ("model.model_type=brt", ["brt", "bert"]),
        ("data=nowhere", ["nowhere"]),
    ],
)
def test_unknown_names_keys_and_values(run, config: Path, tmp_path: Path, override, words) -> None:
    outcome = run("pretrain", config, "--out", tmp_path / "run", "--set", override)
    refused(outcome, 2, *words)
    assert not (tmp_path / "run").exists()


def test_config_files_that_cannot_be(run, tmp_path: Path) -> None:
    refused(run("pretrain", tmp_path / "no.yaml", "--out", tmp_path / "r"), 2, "does not exist")
    (tmp_path / "bad.yaml").write_text("steps: [1,\n")
    refused_lines = run("pretrain", tmp_path / "bad.yaml", "--out", tmp_path / "r")
    assert refused_lines.code == 2
    assert "not valid YAML" in refused_lines.err
    refused(run("pretrain", "--out", tmp_path / "r"), 2, "give prepared data: --data DATA")


def test_training_without_held_out_rows(
    run, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "text.txt"
    source.write_text(PROSE * 60)
    assert run("prepare", source, "--out", tmp_path / "data", "--quiet", *PREPARE).code == 0
    outcome = run(
        "pretrain", config, "--data", tmp_path / "data", "--out", tmp_path / "run", "--quiet",
        "--set", "masking.content.kind=none",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "no held-out rows" in outcome.out
    assert "no rows of the data are held out, so nothing is validated" in caplog.text
    assert "all of them are used" not in caplog.text


PREPARE = ("--set", "tagger.kind=none", "--set", "tokenizer.vocab_size=300", "--set", "held_out=0")
PROSE = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.\n"


def test_text_that_cannot_be(run, tmp_path: Path) -> None:
    out = tmp_path / "data"
    refused(run("prepare", tmp_path / "no.txt", "--out", out, *PREPARE), 2, "no.txt")
    refused(run("prepare", "--out", out), 2, "nothing to prepare")
    (tmp_path / "empty.txt").write_text("")
    refused(run("prepare", tmp_path / "empty.txt", "--out", out, *PREPARE), 1, "empty.txt")
    (tmp_path / "text.doc").write_text(PROSE)
    refused(run("prepare", tmp_path / "text.doc", "--out", out, *PREPARE), 2, ".doc")
    (tmp_path / "one.txt").write_text("a")
    assert run("prepare", tmp_path / "one.txt", "--out", out, *PREPARE).code == 1
    assert not (out / "manifest.json").exists()


def test_bad_documents_are_skipped_counted_and_named(run, tmp_path: Path) -> None:
    source = tmp_path / "mixed.txt"
    good = (PROSE * 40).encode()
    source.write_bytes(good + b"\n\nbroken \xff\xfe bytes\n\n" + b"x\n\n" + good)
    out = tmp_path / "data"
    outcome = run("prepare", source, "--out", out, "--quiet", *PREPARE)
    assert outcome.code == 0, outcome.err
    skipped = json.dumps(json.loads((out / "statistics.json").read_text())["skipped"])
    assert "mixed.txt" in skipped
    assert "UTF-8" in skipped


def test_every_folder_named_as_a_file_is_refused_before_any_work(
    run, config: Path, tmp_path: Path, tiny_data: PreparedData
) -> None:
    run("pretrain", config, "--out", tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text("Some text.")
    before = sorted(tmp_path.iterdir())
    for words in (
        ["prepare", text],
        ["pretrain", config],
        ["study", "run", "tiny"],
        ["quickstart"],
        ["evaluate", tmp_path / "run", "--tasks", "mlm"],
        ["adapt", tmp_path / "run", text],
        ["report", tmp_path / "run"],
        ["data", "import", text],
    ):
        outcome = run(*words, "--out", tmp_path / "all.json")
        assert outcome.code == 2, words
        assert outcome.err.strip().endswith(
            f"goes into a folder; give the name of one, such as {tmp_path}/all"
        )
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_document_of_ten_megabytes(run, tmp_path: Path) -> None:
    source = tmp_path / "long.txt"
    source.write_text(PROSE.replace("\n", " ") * (10_000_000 // len(PROSE)) + "\n\n" + PROSE * 20)
    outcome = run("prepare", source, "--out", tmp_path / "data", "--quiet", *PREPARE)
    assert outcome.code == 0, outcome.err
    assert PreparedData.open(tmp_path / "data").split("train").num_tokens > 1_500_000


def test_a_truncated_row_file(run, config: Path, tmp_path: Path, tiny_data: PreparedData) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(tiny_data.path, data)
    victim = next((data / "train").glob("ids-*.npy"))
    victim.write_bytes(victim.read_bytes()[:-10])
    outcome = run("pretrain", config, "--data", data, "--out", tmp_path / "run")
    refused(outcome, 1, victim.name, "prepare")


def test_a_checkpoint_of_another_run(run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("pretrain", config, "--out", out, "--quiet").code == 0
    refused(run("pretrain", config, "--out", out), 2, "already holds a run", "--resume")
    other = run("pretrain", config, "--out", out, "--resume", "--set", "seed=5")
    assert other.code in (1, 2)
    assert "seed" in other.err


def test_a_full_disk_while_saving(
    run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    flush, calls = saving.flush, []

    def full(path: Path) -> None:
        calls.append(path)
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    monkeypatch.setattr(saving, "flush", full)
    refused(
        run("pretrain", config, "--out", out, "--quiet"),
        1,
        "could not be saved",
        "intact (step-00000002)",
    )
    monkeypatch.undo()
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", ["environment.json", "validation-rows.npz"])
def test_a_run_that_could_not_write_says_how_it_goes_on(
    run, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "run"
    flush = storage.flush

    def full(path: Path) -> None:
        if name in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    with monkeypatch.context() as disk:
        disk.setattr(storage, "flush", full)
        said = f"{name} cannot be written: No space left on device; make room"
        stopped = run("pretrain", config, "--out", out, "--quiet")
        refused(stopped, 1, said, "then the same command goes on with --resume")
    done = run("pretrain", config, "--out", out, "--quiet", "--resume")
    assert done.code == 0


def test_an_interrupted_command_says_whether_it_goes_on(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("Some text.")
    out = tmp_path / "out"

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "prepare", interrupt)
    stopped = run("prepare", tmp_path / "a.txt", "--out", out)
    refused(stopped, 130, "interrupted; the same command goes on with what is left")
    stopped = run("prepare", tmp_path / "a.txt", "--out", out, "--force")
    refused(stopped, 130, "interrupted; without --force it goes on with what is left")
    monkeypatch.setattr(PreparedData, "open", interrupt)
    stopped = run("data", "info", out)
    refused(stopped, 130, "interrupted\n")


def test_collocations_are_found_and_kept(run: Any, tiny_data: PreparedData, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_data.path, folder)
    refused(run("data", "ngrams", folder), 2, "follow each other 10 times and more often than")
    outcome = run("data", "ngrams", folder, "--min-count", "2", "--min-pmi", "0.1", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "of the training tokens lie in one" in outcome.out
    assert PreparedData.open(folder).manifest.ngrams == "pmi"


def test_links_in_a_circle_and_places_within_a_file_are_refused(
    run: Any, tiny_data: PreparedData, tmp_path: Path
) -> None:
    """Also where a command reads, and resolves what it was given."""
    circle, file = tmp_path / "circle", tmp_path / "file"
    circle.symlink_to(circle)
    file.write_text("")
    refused(run("report", circle), 1, f"{circle}: ", "name another place")
    for out, words in ((circle, "links lead back"), (file / "x", f"{file} is a file")):
        refused(run("data", "export", tiny_data.path, "--out", out), 2, words)
        refused(run("data", "import", file, "--out", out), 2, words)
        refused(run("study", "plan", "small", "--out", out), 2, words)
        refused(run("quickstart", "--out", out), 2, words)


def test_names_from_files_do_not_act_on_a_terminal(run: Any, tmp_path: Path) -> None:
    name = "a\x1b]0;x\x07\x1b[2Jb"
    for place in ("a", "b"):
        result(metrics={"mcc": 0.5, name: 0.5}, left_out={name: 1}).save(tmp_path / place)
        write_run(tmp_path / f"run-{place}", place)
        summary = tmp_path / f"run-{place}" / "summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"name": place + name}))
    for arguments in (
        ["compare", tmp_path / "a", tmp_path / "b", "--every-metric"],
        ["compare", tmp_path / "a", tmp_path / "b", "--every-metric", "--csv"],
        ["report", tmp_path / "run-a", tmp_path / "run-b", "--out", tmp_path / "out"],
    ):
        outcome = run(*arguments)
        assert outcome.code == 0, outcome.err
        assert "\\x1b]0;x\\x07\\x1b[2J" in outcome.out
        assert "\x1b" not in outcome.out + outcome.err


def test_commands_print_in_one_place_alone() -> None:
    """Whatever they print may hold text from files; the version and the help do not."""
    printing = {
        path.name
        for path in Path(cli.__file__).parent.glob("*.py")
        if re.search(r"\bprint\(|typer\.echo|stdout\.write", path.read_text(encoding="utf-8"))
    }
    assert printing == {"__init__.py", "options.py", "output.py"}
