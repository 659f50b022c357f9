"""The front door: what importing it costs, what it offers, and that typed, plain and stored are one."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import chronomask as cm
from chronomask.data.folder import PreparedData
from chronomask.errors import Stopped, UsageError
from chronomask.prepare import pipeline
from chronomask.prepare.pipeline import OtherData
from chronomask.train.checkpoint import OtherRun
from tests.support.corpus import made_up_text
from tests.support.documents import python_blocks
from tests.support.fixed_tagger import FixedTagger, stand_in_for_english
from tests.support.processes import python_path
from tests.support.tiny_models import tiny_bert
from tests.support.worded_rows import make_tokenizer

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "transformers", "pydantic", "numba", "scipy", "pyarrow", "spacy")


def run_python(code: str) -> str:
    """What ``code`` prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": python_path(), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_it_loads_nothing() -> None:
    """Nothing heavy, and little else: how long it takes, ``benchmarks.startup`` measures."""
    code = (
        "import sys; before = set(sys.modules); import chronomask; new = set(sys.modules) - before;"
        f"print([name for name in {HEAVY} if name in new], len(new) < 40)"
    )
    assert run_python(code) == "[] True"


def test_names_resolve_when_they_are_used_and_are_explained() -> None:
    assert 25 <= len(cm.__all__) <= 37
    for name in cm.__all__:
        value = getattr(cm, name)
        assert name in dir(cm)
        if not isinstance(value, tuple):  # a constant has no docstring of its own
            assert (inspect.getdoc(value) or "").strip(), name
    assert getattr(cm, "Masker") is cm.Masker  # noqa: B009


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Maskr'; did you mean 'Masker'\?"):
        cm.Maskr  # pyright: ignore  # noqa: B018
    assert not hasattr(cm, "__wrapped__")
    with pytest.raises(ImportError):
        from chronomask import nothing  # pyright: ignore # noqa: F401


def test_a_room_can_be_called_whoever_imports_it_first() -> None:
    assert cm.prepare.pipeline is pipeline  # pyright: ignore[reportFunctionMemberAccess]
    for name in ("prepare", "evaluate", "report"):
        room = getattr(cm, name)
        assert callable(room)
        assert next(iter(inspect.signature(room).parameters)) in ("config", "model", "runs")
    code = (
        "import chronomask.prepare.config, chronomask as cm, chronomask.evaluate as room;"
        "print(callable(cm.prepare), callable(room), 'torch' in __import__('sys').modules)"
    )
    assert run_python(code) == "True True False"


def test_what_is_not_installed_is_named_with_its_extra() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None; import chronomask as cm\n"
        "try: cm.TimeVariantMasking\n"
        "except cm.UsageError as error: print(error)"
    )
    assert "pip install 'chronomask[lightning]'" in run_python(code)


def test_the_stub_says_the_same() -> None:
    tree = ast.parse((ROOT / "src/chronomask/__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    homes = {(a.asname or a.name): (node.module, a.name) for node in imports for a in node.names}
    for node in tree.body:
        if isinstance(node, ast.Assign):  # such as report = write_report
            homes[ast.unparse(node.targets[0])] = homes.pop(ast.unparse(node.value))
    assert set(homes) == set(cm.__all__)
    for name, (module, original) in homes.items():
        ours, home = getattr(cm, name), import_module(str(module))
        theirs = getattr(home, original, None) or import_module(f"{module}.{original}")
        assert ours is theirs or inspect.signature(ours) == inspect.signature(theirs), name


@pytest.mark.slow
def test_type_checkers_know_the_names(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import chronomask as cm\n"
        "reveal_type(cm.Masker)\n"
        "reveal_type(cm.ratio.Linear(start=0.3))\n"
        "reveal_type(cm.prepare('text.txt', 'data', row_length=64))\n"
        "cm.Maskr\n",
        encoding="utf-8",
    )
    config = {"venvPath": str(Path(sys.prefix).parent), "venv": Path(sys.prefix).name}
    config["extraPaths"] = [str(ROOT / "src")]  # pyright: ignore[reportArgumentType]
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    texts = [item["message"] for item in found]
    for type_of in ('"type[Masker]"', '"Linear"', '"PreparedData"'):
        assert any(text.endswith(f"is {type_of}") for text in texts), texts
    wrong = [item["message"] for item in found if item["severity"] == "error"]
    assert len(wrong) == 1, wrong
    assert '"Maskr" is not a known attribute' in wrong[0]
    assert (ROOT / "src/chronomask/py.typed").is_file()


def test_typed_plain_and_stored_configs_are_one(tmp_path: Path) -> None:
    typed = cm.MaskingConfig(ratio=cm.ratio.Linear(start=0.4, end=0.1), content=cm.content.Ptw())
    plain = {
        "ratio": {"kind": "linear", "start": 0.4, "end": 0.1},
        "content": {"kind": "ptw"},
    }
    mixed = {"ratio": typed.ratio, "content": {"kind": "ptw"}}
    stored = tmp_path / "masking.yaml"
    stored.write_text(typed.to_yaml(), encoding="utf-8")
    tokenizer = make_tokenizer()
    rows = {"input_ids": [[2, *range(5, 40), 3]], "token_class": [[0, *[1] * 35, 0]]}
    classes = ("none", "NOUN")
    masks = []
    for given in (typed, plain, mixed, stored, str(stored)):
        assert cm.MaskingConfig.of(given) == typed
        masker = cm.Masker.for_tokenizer(tokenizer, given, class_names=classes)
        masks.append(masker(rows, 0.0).labels)
    keys = cm.Masker.for_tokenizer(tokenizer, class_names=classes, **plain)
    masks.append(keys(rows, 0.0).labels)
    for given in (typed, plain, mixed):
        assert cm.RunConfig.of({"data": "d"}, masking=given).masking == typed
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    changed = cm.MaskingConfig.of(typed, ratio={"end": 0.2}, budget="batch")
    assert changed.ratio == cm.ratio.Linear(start=0.4, end=0.2)
    assert (changed.content, changed.budget) == (typed.content, "batch")
    source = cm.PrepareConfig.of([tmp_path / "a.txt"], row_length=64)
    assert source == cm.PrepareConfig.of(str(tmp_path / "a.txt"), row_length=64)
    assert source == cm.PrepareConfig.of({"sources": [tmp_path / "a.txt"], "row_length": 64})
    named = cm.RunConfig.of(["bert-small", "arms/fixed-30"], data=tmp_path)
    assert named.masking.ratio == cm.ratio.Constant(base=0.3)
    assert named.data == str(tmp_path)
    assert cm.RunConfig.of({"data": tmp_path}, steps=5) == cm.RunConfig(data=str(tmp_path), steps=5)


@pytest.mark.parametrize(
    ("value", "changes", "sentence"),
    [
        (5, {}, "5 is not a MaskingConfig: give one, a dict of its keys, the path of a YAML file"),
        ({"ratoi": 1}, {}, r"the MaskingConfig: unknown key 'ratoi'; did you mean 'ratio'\?"),
        ({}, {"ratio": {"kind": "linaer"}}, r"ratio=.*did you mean 'linear'\?"),
        ({"ratio": object()}, {}, "ratio is <object object"),
        ("absent.yaml", {}, "config file absent.yaml does not exist"),
    ],
)
def test_wrong_configs_get_one_sentence(value: Any, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(cm.UsageError, match=sentence):
        cm.MaskingConfig.of(value, **changes)


def test_from_text_to_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_english(monkeypatch, FixedTagger())
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(made_up_text(120)), encoding="utf-8")
    options = {"row_length": 32, "held_out": 0.1, "workers": 1, "progress": False}
    data = cm.prepare(
        text, tmp_path / "data", tokenizer={"kind": "wordpiece", "vocab_size": 300}, **options
    )
    assert isinstance(data, PreparedData)
    assert cm.open_data(str(data.path)).fingerprint == data.fingerprint
    masking = {"ratio": cm.ratio.Linear()}
    run = {"data": data.path, "rows_per_step": 4, "model": tiny_bert(32), "masking": masking}
    for name, ratio in (("a", 0.15), ("b", 0.3)):
        summary = cm.pretrain(
            run,
            tmp_path / name,
            steps=3,
            log_every=1,
            progress=False,
            masking={"ratio": cm.ratio.Constant(base=ratio)},
        )
        assert summary["complete"] is True
        assert cm.read_run(tmp_path / name).metrics["masking_ratio"].tolist() == [ratio] * 3
    page = cm.report([tmp_path / "a", tmp_path / "b"], tmp_path / "report")
    assert "<html" in page.read_text(encoding="utf-8")


def test_the_readme_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .split("## As a library")[1]
        .split("\n## ")[0]
    )
    (code,) = python_blocks(section)
    lines = [line for line in code.splitlines() if line.strip()]
    assert 5 <= len(lines) <= 12
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["losses"].requires_grad
    assert names["batch"].num_predicted == len(names["losses"]) > 0
    assert not list(tmp_path.iterdir())


def test_rooms_and_errors_go_to_other_processes() -> None:
    """A pool of processes sends what it is to call, and gets back what that raised."""
    for room in ("adapt", "evaluate", "prepare", "report", "study"):
        assert pickle.loads(pickle.dumps(getattr(cm, room))) is getattr(cm, room)
    for error in (
        Stopped("asked", 15),
        OtherData("of another config"),
        OtherRun("of another run", "a way"),
        UsageError("no"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)
