"""The reference pages say everything that the code takes; the site is built without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

import chronomask
from chronomask.cli import app
from chronomask.config import Config
from chronomask.evaluate.tasks import REGISTRY
from docs.reference_pages import (
    ROOTS,
    commands_below,
    default_of,
    groups_below,
    page_of_commands,
    page_of_config,
    page_of_face,
    page_of_tasks,
)
from tests.support.processes import HANG

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ROOTS)
def test_every_key_of_every_group_has_a_row_that_says_what_it_means(name: str) -> None:
    title, root, lead = ROOTS[name]
    page = page_of_config(title, root, lead)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    keys = [key for _, group in groups_below(root) for key in group.model_fields if key != "kind"]
    assert [row.split("`")[1] for row in rows] == keys
    for row in rows:
        _, key, takes, default, meaning, _ = row.replace("\\|", "/").split("|")
        assert takes.strip(), key
        assert default.strip(), key
        assert meaning.strip(), key


def test_every_kind_of_a_run_stands_in_its_page() -> None:
    page = page_of_config(*ROOTS["run"])
    for kind in ("linear", "cosine_decay", "ptw", "whole_word", "adamw", "checkpoint"):
        assert f"kind `{kind}`" in page


def test_bounds_and_defaults_are_those_of_the_code() -> None:
    class Small(Config):
        """A group."""

        share: float = 0.25
        """how much of it"""

    page = page_of_config("Small", Small, "For this test.")
    assert "| `share` | number | `0.25` | how much of it |" in page


def test_a_default_as_it_is_written_is_the_default() -> None:
    """Of groups, whose kind alone stands for the defaults of that kind."""
    checked = 0
    for group in (group for _, root, _ in ROOTS.values() for _, group in groups_below(root)):
        for key, field in group.model_fields.items():
            value = field.get_default(call_default_factory=True)
            if isinstance(value, Config):
                written = yaml.safe_load(default_of(field).strip("`"))
                if isinstance(written, str):  # a kind, or "its own defaults"
                    assert value == type(value)(), key
                else:
                    assert value == type(value).parse(written), key
                checked += 1
    assert checked > 20


def test_every_task_command_and_name_has_its_section() -> None:
    tasks, commands, face = page_of_tasks(), page_of_commands(), page_of_face()
    for task in REGISTRY:
        assert f"## `{task}`" in tasks
    for words, command in commands_below(typer.main.get_command(app), ["chronomask"]):
        assert f"## `{' '.join(words)}`" in commands
        for parameter in command.params:
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
                assert f"`{parameter.opts[0]}`" in commands
    for name in chronomask.__all__:
        assert f"## `cm.{name}`" in face


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "run.html").is_file()
