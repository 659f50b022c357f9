"""The wheel as a stranger installs it: what is in it, what the core does alone, what it says it needs."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from chronomask import __version__
from chronomask.data.folder import PreparedData
from chronomask.recipes import recipes
from tests.support.core_only import ROOT, build_sdist, build_wheel, core_only_environment
from tests.support.processes import HANG

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def core_only(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return core_only_environment(tmp_path_factory.mktemp("core") / "env", wheel)


def call(core_only: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of the environment's ``bin``, run in ``folder``."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(core_only / arguments[0]), *map(str, arguments[1:])],
        cwd=folder, env=kept, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip


def test_the_wheel_holds_what_the_package_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    kept = {
        str(file.relative_to(source))
        for file in source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == kept
    for recipe in recipes():
        assert str(recipe.path.relative_to(source)) in names


def test_the_metadata_say_what_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (file,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(file).decode().splitlines()
    assert f"Version: {__version__}" in lines
    assert "Requires-Python: >=3.11" in lines
    core = {line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line}
    assert len(core) == len(PROJECT["dependencies"])


def test_the_licences_of_code_and_weights_travel_with_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (file,) = (name for name in names if name.endswith("/METADATA"))
        lines = archive.read(file).decode().splitlines()
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-4.0" in lines
    weights = Path("chronomask/prepare/words/english/english_tagger")
    texts = [name for name in names if ".dist-info/licenses/" in name]
    assert {name.partition("/licenses/")[2] for name in texts} == {
        "LICENSE",
        f"src/{weights}/LICENSE",
    }
    assert f"{weights}/LICENSE" in names


def test_the_source_archive_builds_and_holds_no_results(tmp_path: Path) -> None:
    with tarfile.open(build_sdist(tmp_path)) as archive:
        files = {Path(*Path(m.name).parts[1:]): m.size for m in archive if m.isfile()}
    for name in (
        "README.md",
        "LICENSE",
        "CITATION.cff",
        "pyproject.toml",
        "docs/results/README.md",
    ):
        assert Path(name) in files
    assert not [name for name in files if name.match("docs/results/*/*")]
    large = [name for name, size in files.items() if size > 100_000]
    assert [name.name for name in large] == ["model"]  # the tagger's weights alone
    assert sum(files.values()) < 12_000_000


def test_the_version_is_said_once_and_its_changes_are_written_up() -> None:
    """The package, the citation and the newest release of the changelog agree."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert headings[1] == f"[{__version__}] – {citation['date-released']}"


def test_the_first_lines_of_a_stranger(core_only: Path, tmp_path: Path) -> None:
    assert (
        call(core_only, tmp_path, "chronomask", "--version").stdout == f"chronomask {__version__}\n"
    )
    listing = call(core_only, tmp_path, "chronomask", "recipes").stdout
    assert all(recipe.name in listing for recipe in recipes())
    printed = call(core_only, tmp_path, "chronomask", "recipes", "bert-tiny").stdout
    assert printed == next(r.path for r in recipes() if r.name == "bert-tiny").read_text()
    helped = call(core_only, tmp_path, "chronomask", "--help")
    assert helped.returncode == 0
    assert "pretrain" in helped.stdout


def test_the_python_of_the_readme(core_only: Path, tmp_path: Path) -> None:
    """The face's first lines need nothing beyond the core."""
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "import chronomask as cm" in code
    done = call(core_only, tmp_path, "python", "-c", code + "print('loss', losses.mean().item())")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("loss ")


def test_no_optional_package_is_there(core_only: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would say nothing."""
    for module in ("spacy", "sklearn", "scipy", "matplotlib", "pyarrow", "zstandard", "pytest"):
        done = call(core_only, tmp_path, "python", "-c", f"import {module}")
        assert f"No module named '{module}'" in done.stderr


def test_the_core_trains(core_only: Path, tmp_path: Path, tiny_data: PreparedData) -> None:
    done = call(
        core_only, tmp_path, "chronomask", "pretrain", "bert-tiny", "--data", tiny_data.path,
        "--out", "run", "--steps", "2", "--rows", "4", "--device", "cpu", "--quiet",
        "--set", "learning_rate.warmup_steps=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["complete"] is True


def test_the_core_shows_masks(core_only: Path, tmp_path: Path) -> None:
    done = call(core_only, tmp_path, "chronomask", "inspect", "What a model reads.")
    assert done.returncode == 0, done.stderr
    assert "words are shown without classes" in done.stdout


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("prepare text.txt --out new", "prepare"),
        ("report run", "report"),
        ("inspect Sentence --content ptw", "prepare"),
        ("quickstart", "prepare"),
        ("data export data --out rows.parquet", "prepare"),
        ("study run tiny --out study --task-data .", "prepare"),
        ("evaluate model --tasks cola --task-data .", "evaluate"),
    ],
)
def test_what_needs_more_says_which_extra(
    core_only: Path, tmp_path: Path, tiny_data: PreparedData, words: str, extra: str
) -> None:
    (tmp_path / "text.txt").write_text("Some text.\n")
    (tmp_path / "data").symlink_to(tiny_data.path)
    done = call(core_only, tmp_path, "chronomask", *words.split())
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    assert f"pip install 'chronomask[{extra}]'" in done.stderr


def test_refusals_are_those_of_the_whole_package(core_only: Path, tmp_path: Path) -> None:
    for words, advice in (
        ("pretrain bert-tny", "did you mean 'bert-tiny'?"),
        ("pretrain bert-tiny", "--out RUN"),
        ("pretrain bert-tiny --out run --data nowhere", "`chronomask prepare` makes one"),
        ("pretrain bert-tiny --out run --ratio cosine_dcay", "did you mean 'cosine_decay'?"),
    ):
        done = call(core_only, tmp_path, "chronomask", *words.split())
        assert done.returncode == 2
        assert advice in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_advice_about_extras_can_be_followed() -> None:
    """Every extra that a message names brings the module that was missed."""
    distributions = packages_distributions()
    found = 0
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "need"):
                continue
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if len(texts) < 2:
                continue
            module, extra = texts[0], texts[1]
            names = {name.lower() for name in distributions[module.partition(".")[0]]}
            assert names & required_by(extra), (
                f"{file.name}: chronomask[{extra}] brings no {module}"
            )
            found += 1
    assert found > 5


def required_by(extra: str) -> set[str]:
    """Names of the distributions of an extra, those of extras within it included."""
    names: set[str] = set()
    for line in EXTRAS[extra]:
        inner = re.fullmatch(r"chronomask\[(.+)\]", line)
        if inner:
            names |= set().union(*(required_by(part) for part in inner[1].split(",")))
        else:
            names.add(re.split(r"[^\w-]", line)[0].lower())
    return names
