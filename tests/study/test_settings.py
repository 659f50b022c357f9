"""What a run advises names settings as a study's command line does, and works when it is followed."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import chronomask
from chronomask.cli import app
from chronomask.config_layers import Layer
from chronomask.errors import RunError, UsageError
from chronomask.runs.layout import RunFolder
from chronomask.study.arms import resolve_arms
from chronomask.study.config import load_study
from chronomask.study.settings import as_setting_of_run, as_setting_of_task, naming_settings
from chronomask.train import loop
from chronomask.train.checkpoint import OtherRun
from chronomask.train.config import RunConfig
from tests.support.corpus import made_up_text
from tests.support.opened_study import opened


@pytest.mark.parametrize("own", [False, True])
def test_a_run_without_memory_goes_on_with_what_it_advises(
    own: bool, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``own``: the arm has its own number of micro-batches, which stands before that of the base."""
    values |= {"seeds": [0], "tasks": {}, "curve_steps": [], "arms": {"one": {}}}
    values["arms"]["two"] = {"masking.ratio": 0.3}
    if own:
        values["arms"]["two"]["micro_batches"] = 1
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["study", "run", str(file), "--out", str(out), "--quiet"]
    finish = loop.finish

    def fail(run: Any, state: Any, *others: Any) -> Any:
        if run.folder.path.parts[-2] == "two" and state.step == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return finish(run, state, *others)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", fail)
        with pytest.raises(RunError) as refused:
            app(command, standalone_mode=False)
    said = str(refused.value)
    assert "--resume" not in said
    where = "arms.two" if own else "base"
    ways = rf"set ({where}\.micro_batches=2) or (base\.activation_checkpointing=true); then the same command"
    found = re.search(ways, said)
    assert found is not None, said
    log = (out / "logs" / "two" / "seed-0" / "pretrain.log").read_text()
    assert found[0] in log
    app([*command, "--set", found[1], "--set", found[2]], standalone_mode=False)
    assert RunFolder(out / "runs" / "two" / "seed-0").read_summary() is not None


def test_what_a_run_warns_of_names_settings_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make = logging.getLogRecordFactory()
    with naming_settings("a", ["masking"]):
        loop.logger.warning("slower than it need be: set %s", "precision=auto")
        logging.getLogger("another").warning("set steps=%d", 1)
    assert logging.getLogRecordFactory() is make
    loop.logger.warning("set steps=1")
    assert caplog.messages == [
        "slower than it need be: set base.precision=auto", "set steps=1", "set steps=1",
    ]  # fmt: skip


def test_what_the_config_of_a_study_advises_names_settings_so(
    values: dict[str, Any], tmp_path: Path
) -> None:
    """A ratio of 0 at the start, at which a run that goes by its labels would never move."""
    masking = {"ratio": {"kind": "linear", "start": 0.0, "end": 0.3}, "progress": "masked_tokens"}
    stuck = {"masking": masking, "masked_token_budget": 1000}
    with pytest.raises(UsageError, match=r"set arms\.decay\.masking\.progress=steps"):
        opened(values | {"arms": {"fixed": {}, "decay": stuck}}, tmp_path)
    values["base"] |= stuck
    with pytest.raises(UsageError, match=r"^base.*set base\.masking\.progress=steps"):
        opened(values | {"arms": {"fixed": {}}}, tmp_path)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (
            "set precision=fp32 and bf16_weights=false, or choose another model",
            "set base.precision=fp32 and base.bf16_weights=false, or choose another model",
        ),
        ("or give loggers=[{kind: wandb}] or loggers=[]", None),
        ("give validation.rows=30", "give base.validation.rows=30"),
        (
            "give fewer, such as learning_rate.warmup_steps=9",
            "give fewer, such as base.learning_rate.warmup_steps=9",
        ),
        ("lower learning_rate.peak (now 1), with steps=5", None),
        ("/tmp/data=1/steps=2 and f(x, seed=3) have steps == 5", ""),
        ("pretrain --resume with steps and model", ""),
    ],
)
def test_what_is_advised_and_nothing_else_is_named(said: str, named: str | None) -> None:
    known = {"loggers=": "base.loggers=", "steps=5": "base.steps=5"}
    if named is None:
        named = said
        for before, after in known.items():
            named = named.replace(before, after)
    assert as_setting_of_run(said) == (named or said)


PACKAGE = Path(chronomask.__file__).parent
_ROOMS_OF_A_RUN = ("data", "masking", "model", "runs", "train")
_ADVISED = re.compile(
    rf"(?:\w+ )?\w[\w,]* (?:{'|'.join(RunConfig.model_fields)})(?:\.[\w.]+)?=(?=\S)"
)


def test_all_that_a_run_advises_is_named_as_a_study_names_it() -> None:
    """A setting behind any other word than those that a study looks for would be none of its own."""
    found = 0
    for path in (path for room in _ROOMS_OF_A_RUN for path in (PACKAGE / room).rglob("*.py")):
        for text in texts_in(ast.parse(path.read_text(encoding="utf-8"))):
            for advice in _ADVISED.findall(text):
                found += 1
                assert " base." in as_setting_of_run(f"{advice}9"), (path.name, text)
    assert found > 20


def texts_in(tree: ast.Module) -> Iterator[str]:
    """Every text of a module but its docstrings, with 9 for what is known only as the program runs."""
    documented = [
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    ]
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=parts):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "9" for part in parts
                )
            case ast.Constant(value=str(text)) if node not in documented:
                yield text.replace("%s", "9")


def test_settings_of_an_arm_are_those_it_declares_and_what_lies_in_them() -> None:
    said = "set masking.progress=steps or steps=5 or masking={} or model.longer_rows=true"
    assert as_setting_of_run(said, "a", ["masking.progress", "model"]) == (
        "set arms.a.masking.progress=steps or base.steps=5 or arms.a.masking={} or "
        "arms.a.model.longer_rows=true"
    )
    assert as_setting_of_task("--set cola.batch_size=4", "cola") == (
        "--set tasks.cola.settings.batch_size=4"
    )
    assert as_setting_of_task("choose no rate (--set 'cola.learning_rates=[]')", "cola") == (
        "choose no rate (--set 'tasks.cola.settings.learning_rates=[]')"
    )


def test_what_tasks_and_the_preparation_advise_works_in_a_study(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A field that the text does not have; then too few examples for a slice of them."""
    text, file, out = tmp_path / "text.jsonl", tmp_path / "study.yaml", tmp_path / "out"
    lines = [json.dumps({"body": document}) for document in made_up_text(60)]
    text.write_text("\n".join(lines), encoding="utf-8")
    del values["base"]["data"]
    values["prepare"] = {
        "sources": [str(text)],
        "tagger": "english",
        "row_length": 32,
        "held_out": 0.2,
    }
    values["prepare"] |= {"workers": 1, "tokenizer": {"kind": "wordpiece", "vocab_size": 300}}
    values["base"] |= {"steps": 2, "checkpoint": {"every": 2}}
    values |= {"seeds": [0], "arms": {"fixed": {}}, "curve_steps": [], "task_seeds": [0]}
    settings = {
        "epochs": 1,
        "max_length": 16,
        "device": "cpu",
        "patience": 1,
        "held_out_share": 0.001,
    }
    values["tasks"] = {"cola": {"settings": settings}}
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["study", "run", str(file), "--out", str(out), "--quiet"]
    with pytest.raises(RunError, match=r"--set prepare\.text_key=NAME"):
        app(command, standalone_mode=False)
    command += ["--set", "prepare.text_key=body"]
    with pytest.raises(RunError, match="held_out_share=SHARE") as refused:
        app(command, standalone_mode=False)
    assert (
        "such as --set prepare.tagger=bands, "
        in (out / "logs" / "prepare.log").read_text() + caplog.text
    )
    found = re.search(r"--set (tasks\.cola\.settings\.patience=null)", str(refused.value))
    assert found is not None, refused.value
    app([*command, "--set", found[1]], standalone_mode=False)


def test_an_error_stays_of_its_kind() -> None:
    said = r"^other\. set base\.steps=5; to go on"
    with pytest.raises(OtherRun, match=said) as refused, naming_settings():
        raise OtherRun("other", "set steps=5")
    assert refused.value.difference == "other"


def test_an_arm_whose_name_a_dotted_key_cannot_hold_is_named_in_a_group(
    values: dict[str, Any], tmp_path: Path
) -> None:
    said = "set micro_batches=2 or precision=fp32; then, or --set 'micro_batches=2'."
    name = "fixed 22.5 %, late"
    advised = as_setting_of_run(said, name, ["micro_batches"])
    group = 'arms={"fixed 22.5 %, late": {micro_batches: 2}}'
    assert advised == f"set '{group}' or base.precision=fp32; then, or --set '{group}'."
    values |= {"arms": {"fixed": {}, name: {"micro_batches": 1}}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    study = load_study(file, [Layer.of_override(group)])
    arm = resolve_arms(study, "data")[name]
    assert (arm.config.micro_batches, arm.own_fields) == (2, ("micro_batches",))


def test_an_arm_that_starts_from_a_config_of_its_own_is_given_settings_itself(
    values: dict[str, Any], tmp_path: Path
) -> None:
    values |= {"arms": {"fixed": {}, "own": {"base": values["base"], "masking.ratio": 0.3}}}
    arm = resolve_arms(opened(values, tmp_path).config, "data")["own"]
    advised = as_setting_of_run("set micro_batches=2", "own", arm.own_fields)
    assert advised == "set arms.own.micro_batches=2"
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    study = load_study(file, [Layer.of_override(advised.removeprefix("set "))])
    assert resolve_arms(study, "data")["own"].config.micro_batches == 2
